"""Which experts of a model a converter to a low precision takes, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from hekaton.errors import ConfigError
from hekaton.layer_choices import LayerChoice, named_by
from hekaton.parallel.experts import expert_entries

if TYPE_CHECKING:
    from hekaton.draft import Draft
    from hekaton.grouped_products import GroupedProduct

TENSORS = "tensors of experts"

ETP_DIMS = {
    "grouped_experts": {"w1": 1, "w3": 1, "w2": 2},
    "biased_experts": {"mlp1_weight": 1, "mlp2_weight": 2},
}
"""Style -> tensor -> the dim by which expert-tensor parallel cuts it."""


def choose_experts(
    draft: Draft, fqns: Sequence[str], *, field: str, multiple: int, etp: int = 1
) -> list[LayerChoice]:
    """Choose among the experts of a model.

    :param fqns: texts that a module's name contains, or patterns with ``*`` or ``{``, of experts to convert.
    :param field: the configuration field that ``fqns`` comes from, for messages.
    :param multiple: what outputs and inputs, of a rank's part too, must be multiples of.
    :param etp: the expert-tensor-parallel degree.
    :returns: one choice for each tensor of each module of experts.
    :raises ConfigError: for a model without experts, a name that matches none, no name, sizes that cannot be
        converted, and experts that do not compute with a :class:`~hekaton.grouped_products.GroupedProduct`.
    """
    entries = expert_entries(draft.model, draft.plan.experts, what=draft.what)
    styles = {f"{layer}.experts": style for layer, style in entries.items()}
    modules = {name: draft.model.get_submodule(name) for name in styles}
    if not modules:
        raise ConfigError(
            f"this {draft.what} has no experts, and the converter computes their products",
            hint="leave it out of model.converters, or choose a model with experts",
            fields=["model.converters"],
        )
    named = {name for text in fqns for name in named_by(text, modules, draft, field, what="experts")}
    if not named:
        raise ConfigError(
            f"{field} names no experts to convert",
            hint='set it to ["experts"], which names all of them, or leave the converter out',
            fields=[field, "model.converters"],
        )
    choices = []
    for name, module in modules.items():
        left = "" if name in named else f"{field} does not name it"
        if not left and not callable(getattr(module, "product", None)):
            raise ConfigError(
                f"{field}: '{name}' of {draft.what} computes its products in a way of its own",
                hint="a module of experts computes them with its attribute 'product', a GroupedProduct",
                fields=[field],
            )
        cuts = ETP_DIMS.get(styles[name], {}) if etp > 1 else {}
        for tensor, parameter in module.named_parameters():
            if parameter.dim() == 3:
                shape = tuple(parameter.shape)
                if not left:
                    _check_sizes(draft, f"{name}.{tensor}", shape, cuts.get(tensor), etp, multiple, field)
                choices.append(LayerChoice(f"{name}.{tensor}", shape, left, kind=TENSORS))
    return choices


def replace_products(
    model: nn.Module, choices: Sequence[LayerChoice], make: Callable[[GroupedProduct], GroupedProduct]
) -> None:
    """Have each module of experts that was chosen compute with what ``make`` makes of its product."""
    for name in dict.fromkeys(choice.layer.rpartition(".")[0] for choice in choices if not choice.left):
        module: Any = model.get_submodule(name)
        module.product = make(module.product)


def _check_sizes(
    draft: Draft,
    name: str,
    shape: tuple[int, ...],
    cut: int | None,
    etp: int,
    multiple: int,
    field: str,
) -> None:
    part = [size // (etp if dim == cut else 1) for dim, size in enumerate(shape)][1:]
    uneven = next((size for size in part if size % multiple), None)
    if uneven is None:
        return
    where = "" if tuple(part) == shape[1:] else f", of which a rank has {part[0]} x {part[1]}"
    raise ConfigError(
        f"{field}: '{name}' of {draft.what} is {' x '.join(map(str, shape))}{where}: {uneven} is no multiple "
        f"of {multiple}",
        hint="leave the converter out of model.converters, or choose sizes and an "
        f"expert_tensor_parallel_degree of which a rank has multiples of {multiple}",
        fields=[field, "model.converters"],
    )
