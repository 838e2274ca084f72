"""Which linear layers of a model a converter to a low precision takes, and why it leaves the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from hekaton.errors import ConfigError, choices_hint
from hekaton.parallel.ties import ties
from hekaton.patterns import pattern_of, resolve, without_numbers

if TYPE_CHECKING:
    from hekaton.draft import Draft

AUTO_FILTER = "auto_filter_small_kn"
"""Stands in ``filter_fqns`` for the layers that are too small to gain."""

CUT_DIMS = {
    "colwise": 0, "gathering_colwise": 0, "vocab_output": 0, "gathering_vocab_output": 0, "rowwise": 1,
}  # fmt: skip
"""Style -> the dim by which it cuts the weight of a linear layer."""


@dataclass(frozen=True)
class LayerChoice:
    """A linear layer, or a tensor of experts, and whether a converter took it.

    :param layer: its name.
    :param shape: of its weight: outputs and inputs, of experts their number first.
    :param left: why it was left as it is; empty where it was converted.
    :param kind: what those are that a converter chose among, for messages.
    """

    layer: str
    shape: tuple[int, ...]
    left: str = ""
    kind: str = "linear layers"


def choose_linear_layers(
    draft: Draft,
    filters: Sequence[str],
    *,
    field: str,
    multiple: int,
    tp: int = 1,
    too_small: Callable[[int, int], str] | None = None,
) -> list[LayerChoice]:
    """Choose among the linear layers of a model.

    :param filters: texts that a name contains, or patterns with ``*`` or ``{``, of layers to leave; and
        ``auto_filter_small_kn``.
    :param field: the configuration field that ``filters`` comes from, for messages.
    :param multiple: what outputs and inputs, of a rank's part too, must be multiples of.
    :param tp: the tensor-parallel degree.
    :param too_small: ``too_small(outputs, inputs)`` says why such a layer is too small to gain, or nothing.
    :raises ConfigError: for a filter that matches no layer, a layer of sizes that cannot be converted and
        that no filter leaves, and where no layer is left to convert.
    """
    linear = {name: one for name, one in draft.model.named_modules() if isinstance(one, nn.Linear)}
    texts = [text for text in filters if text != AUTO_FILTER]
    filtered = {
        name: text
        for text in reversed(texts)
        for name in named_by(text, linear, draft, field, words=[AUTO_FILTER])
    }
    tied = {name for group in ties(draft.model) for name in group}
    cuts = _cuts(draft, linear) if tp > 1 else {}
    choices = []
    for name, layer in linear.items():
        outputs, inputs = layer.weight.shape
        if name in filtered:
            left = f"{field} has '{filtered[name]}'"
        elif type(layer) is not nn.Linear:
            left = f"it is a {type(layer).__name__}, which computes in a way of its own"
        elif f"{name}.weight" in tied:
            left = "its weight is tied to another module's"
        else:
            part = [
                size // (tp if cuts.get(name) == dim else 1) for dim, size in enumerate((outputs, inputs))
            ]
            left = _left_for_size(
                draft,
                name,
                (outputs, inputs),
                part,
                multiple,
                field,
                too_small if AUTO_FILTER in filters else None,
            )
        choices.append(LayerChoice(name, (outputs, inputs), left))
    if all(choice.left for choice in choices):
        why = choices[0].left if choices else "it has none"
        raise ConfigError(
            f"no linear layer of {draft.what} is left to convert: of {len(choices)}, the first is left "
            f"because {why}",
            hint=f"change {field}, or leave the converter out of model.converters",
            fields=[field, "model.converters"],
        )
    return choices


def _left_for_size(
    draft: Draft,
    name: str,
    shape: tuple[int, int],
    part: Sequence[int],
    multiple: int,
    field: str,
    too_small: Callable[[int, int], str] | None,
) -> str:
    """Why a layer of this shape is left; empty where it is not.

    :param part: outputs and inputs that a rank has.
    """
    uneven = next((size for size in part if size % multiple), None)
    if uneven is None:
        return too_small(*shape) if too_small is not None else ""
    where = "" if tuple(part) == shape else f", of which a rank has {part[0]} x {part[1]}"
    what = f"{shape[0]} x {shape[1]}{where}: {uneven} is no multiple of {multiple}"
    if too_small is not None:
        return f"it is {what}"
    raise ConfigError(
        f"{field}: '{name}' of {draft.what} is {what}",
        hint=f"leave it as it is: add '{without_numbers(name)}' to {field}, or '{AUTO_FILTER}', which leaves "
        "all such layers",
        fields=[field],
    )


def named_by(
    text: str,
    modules: Mapping[str, nn.Module],
    draft: Draft,
    field: str,
    *,
    what: str = "linear layer",
    words: Sequence[str] = (),
) -> list[str]:
    """The names that contain a text or match a pattern.

    :param what: what the modules are, for the message; :param words: what the field also takes.
    :raises ConfigError: where there is none, and for what is no pattern.
    """
    if "*" in text or "{" in text:
        compiled = pattern_of(text, field)
        found = [name for name in modules if compiled.fullmatch(name)]
    else:
        found = [name for name in modules if text and text in name]
    if not found:
        raise ConfigError(
            f"{field}: '{text}' matches no {what} of {draft.what}",
            hint=choices_hint(text, {*words, *(without_numbers(name) for name in modules)}),
            fields=[field],
        )
    return found


def _cuts(draft: Draft, linear: dict[str, nn.Linear]) -> dict[str, int]:
    """Layer -> the dim by which tensor parallel cuts its weight."""
    if not draft.plan.tensor:
        return {}
    names = [name for name, _ in draft.model.named_modules(remove_duplicate=False) if name]
    styles = resolve(draft.plan.tensor, names, what=f"plan of {draft.what}, tensor")
    return {name: CUT_DIMS[styles[name]] for name in linear if styles.get(name) in CUT_DIMS}


def replace_layers(
    model: nn.Module, choices: Sequence[LayerChoice], make: Callable[[nn.Linear], nn.Module]
) -> None:
    """Put what ``make`` returns in the place of each linear layer that was chosen."""
    for choice in choices:
        if not choice.left:
            layer = model.get_submodule(choice.layer)
            assert isinstance(layer, nn.Linear)
            model.set_submodule(choice.layer, make(layer))


def describe(converter: str, choices: Sequence[LayerChoice]) -> Iterator[str]:
    """Lines that say what a converter took and what it left, layers that differ in their number as one."""
    taken = [choice for choice in choices if not choice.left]
    yield f"{converter}: {len(taken)} of {len(choices)} {choices[0].kind} converted"
    kinds: dict[tuple[str, tuple[int, ...], str], int] = {}
    for choice in choices:
        kind = (without_numbers(choice.layer), choice.shape, choice.left)
        kinds[kind] = kinds.get(kind, 0) + 1
    width = max((len(name) for name, _, _ in kinds), default=0)
    for (name, shape, left), count in kinds.items():
        size = " x ".join(map(str, shape))
        yield f"  {name:{width}}  {count:>4}  {size:>15}  {f'left: {left}' if left else 'converted'}"
