"""The converter ``lora``: adapters beside the linear layers that it is told of, and nothing else trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from hekaton.draft import Draft, Merge
from hekaton.errors import ConfigError, choices_hint
from hekaton.init import Constant
from hekaton.mesh import ParallelDims
from hekaton.parallel.plan import blocks
from hekaton.parallel.ties import ties
from hekaton.patterns import pattern_of, without_numbers
from hekaton_lora.linear import A, AddedProduct, B, KaimingUniform, adapt
from hekaton_lora.sections import LoraSection


class Lora:
    """Adapters as the section says; A is drawn uniformly, and B is 0, so that a run starts from its base."""

    def __init__(self, section: LoraSection, dims: ParallelDims) -> None:
        self._section = section

    def convert(self, draft: Draft) -> Draft:
        """:raises ConfigError: for a pattern that matches no linear layer, a layer whose weight is tied, and
        a rank that is not below what a layer can use."""
        section = self._section
        layers = targets(draft, section)
        product = AddedProduct(section.rank, section.alpha)
        merges = list(draft.merges)
        for name, layer in layers.items():
            adapt(layer, rank=section.rank, scale=section.alpha / section.rank)
            parts = [f"{name}.{part}" for part in ("weight", A, B)]
            merges.append(Merge(into=parts[0], parts=parts, make=product))
        draft = draft.with_entries(init={f"**.{A}": KaimingUniform(), f"**.{B}": Constant(0.0)})
        return replace(
            draft,
            merges=merges,
            trained=[*(draft.trained or ()), f"**.{{{A},{B}}}"],
            export_format="peft" if section.export == "adapter" else draft.export_format,
        )


def targets(draft: Draft, section: LoraSection) -> dict[str, nn.Linear]:
    """Name -> linear layer of those that are to have an adapter.

    :raises ConfigError: as :meth:`Lora.convert`.
    """
    modules = dict(draft.model.named_modules())
    linear = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    if section.targets:
        names = {name for pattern in section.targets for name in _matching(pattern, linear, modules, draft)}
    else:
        inside = tuple(f"{name}." for name, _ in blocks(draft.model, draft.plan))
        names = {name for name in linear if name.startswith(inside)}
        if not names:
            raise ConfigError(
                f"lora: the blocks of {draft.what} have no linear layers",
                hint="name some in lora.targets",
                fields=["lora.targets"],
            )
    chosen = {name: layer for name, layer in linear.items() if name in names}
    _check_ties(chosen, draft)
    _check_rank(chosen, section.rank, draft)
    return chosen


def _matching(
    pattern: str, linear: Mapping[str, nn.Linear], modules: Mapping[str, nn.Module], draft: Draft
) -> list[str]:
    compiled = pattern_of(pattern, "lora.targets")
    found = [name for name in linear if compiled.fullmatch(name)]
    if not found:
        others = [name for name in modules if compiled.fullmatch(name)]
        what = f"'{others[0]}', which is no linear layer" if others else "nothing"
        raise ConfigError(
            f"lora.targets: '{pattern}' matches {what} of {draft.what}",
            hint=choices_hint(pattern, {without_numbers(name) for name in linear}),
            fields=["lora.targets"],
        )
    return found


def _check_ties(layers: Mapping[str, nn.Linear], draft: Draft) -> None:
    for group in ties(draft.model):
        tied = [name for name in layers if f"{name}.weight" in group]
        if tied:
            other = next(name for name in group if name != f"{tied[0]}.weight")
            raise ConfigError(
                f"lora: the weight of '{tied[0]}' is tied to '{other}': merged into it, an adapter would "
                "change both",
                hint="leave it out of lora.targets",
                fields=["lora.targets"],
            )


def _check_rank(layers: Mapping[str, nn.Linear], rank: int, draft: Draft) -> None:
    smallest = min(layers, key=lambda name: min(layers[name].weight.shape))
    size = min(layers[smallest].weight.shape)
    if rank > size:
        shape = " x ".join(map(str, layers[smallest].weight.shape))
        raise ConfigError(
            f"lora.rank = {rank} is more than the rank of a weight: '{smallest}' of {draft.what} is {shape}",
            hint=f"choose at most {size}, of use are far fewer; or leave the layer out of lora.targets",
            fields=["lora.rank", "lora.targets"],
        )
