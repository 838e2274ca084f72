"""Does a model keep its contract: tables that fit it, and a forward and backward that do what they say?"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hekaton.flops import is_flops
from hekaton.generation import recomputed
from hekaton.init import Initializer, resolve_init
from hekaton.meta import given, tables_of
from hekaton.objective import Batch
from hekaton.parallel.plan import blocks, check_plan
from hekaton.spec import OpenCache, RunFacts, TrainSpec
from hekaton.testing.buffers import check_buffers
from hekaton.testing.model_layouts import check_claimed_layouts, with_overrides
from hekaton.testing.plain_run import DOCUMENT_ENDS, DRAW, SEQ_LEN, plain_run

ALONE_WITHIN = 1e-4
"""Relative difference that rounding in float32 explains."""


def check_model(
    spec: TrainSpec,
    flavor: str | None = None,
    *,
    layouts: bool = True,
    load: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> tuple[str, ...]:
    """Check a model's tables in every flavor, and run one flavor in float32 on the CPU, under every layout.

    Every flavor is a frozen dataclass from which the model builds on the meta device; every entry of the plan
    and of the init table matches something, every parameter has an initialiser. The flavor that runs gives a
    finite loss and a finite gradient for every parameter, and fills its buffers (:func:`check_buffers`). A
    model trained to predict the next token must not see later tokens, nor another document's, has the logits
    for a document in a row that it has for it alone, and the same ones where it is called with its cache
    (``TrainSpec.cache``).

    Then it takes one step on two processes under every layout that its plan claims: FSDP always, tensor
    parallel with ``tensor`` entries, context parallel (``allgather``) with ``context`` entries, a
    pipeline with ``stages``. The loss and the gradient of every parameter are those of one process, and so is
    what its ``before_step`` leaves (:func:`check_before_step`).

    :param flavor: the one to run; by default that with the fewest parameters.
    :param layouts: whether to start those processes. They import the specification, which a module must have
        a name for.
    :param load: plugins that are not installed, by module or file, as ``--plugins.load`` takes them: that of
        the model's objective, for example.
    :param overrides: fields of the flavor that runs to replace, as ``model.overrides`` does.
    :returns: the layouts that ran, by their short names (``shard2``, ``tp2``, ``cp2``, ``pp2``). One that is
        refused by name is left out: a pipeline that would cut a tied parameter, heads that 2 does not divide.
    :raises AssertionError: naming the flavor and what is wrong with it.
    :raises ConfigError: from the tables, naming the entry or the parameter.
    """
    assert spec.flavors, f"{spec.name} has no flavors"
    sizes = {}
    for name, config in spec.flavors.items():
        model, _ = _on_meta(spec, name, config)
        sizes[name] = sum(parameter.numel() for parameter in model.parameters())
    for name in spec.defaults:
        assert name in spec.flavors, f"{spec.name} has defaults for '{name}', which is no flavor of it"
    run = flavor or min(sizes, key=lambda name: sizes[name])
    assert run in spec.flavors, f"{spec.name} has no flavor '{run}'"
    overridden = with_overrides(spec, run, overrides)
    check_buffers(overridden, run)
    _check_run(overridden, run, load)
    return check_claimed_layouts(spec, run, load=load, overrides=overrides) if layouts else ()


def _on_meta(spec: TrainSpec, flavor: str, config: Any) -> tuple[nn.Module, dict[str, Initializer]]:
    what = f"{spec.name} {flavor}"
    settings = getattr(type(config), "__dataclass_params__", None)
    frozen = settings is not None and settings.frozen
    assert frozen, f"{what}: the flavor must be a frozen dataclass, not {config!r}"
    with torch.device("meta"):
        model = given(spec, "model", spec.model(config), nn.Module)
    devices = {parameter.device.type for parameter in model.parameters()}
    assert devices == {"meta"}, f"{what}: does not build on the meta device but on {sorted(devices)}"
    plan, init = tables_of(spec, config)
    check_plan(model, plan, what=what)
    assert list(blocks(model, plan)), f"{what}: the plan's block '{plan.block}' matches no module"
    return model, resolve_init(model, init, what=what)


def _check_run(spec: TrainSpec, flavor: str, load: Sequence[str]) -> None:
    what = f"{spec.name} {flavor}"
    if spec.check is not None:
        refusals = [
            refusal.message for refusal in spec.check(spec.flavors[flavor], RunFacts(seq_len=SEQ_LEN))
        ]
        assert not refusals, f"{what} {'; '.join(refusals)}"
    if spec.flops_per_unit is not None:
        flops = spec.flops_per_unit(spec.flavors[flavor], SEQ_LEN)
        assert is_flops(flops), f"{what}: flops_per_unit gives {flops!r}, not a finite number above 0"
    run = plain_run(spec, flavor, load=load)
    assert math.isfinite(run.loss), f"{what}: the loss is {run.loss}"
    for name, parameter in run.model.named_parameters():
        if parameter.requires_grad:
            assert name in run.gradients, f"{what}: the loss does not depend on '{name}'"
            assert run.gradients[name].isfinite().all(), f"{what}: the gradient of '{name}' is not finite"
    if run.batch is not None:
        _check_sight(run.model, run.objective, run.batch, what=what)
        _check_alone(run.model, run.objective, run.batch, what=what)
        if spec.cache is not None:
            _check_cache(run.model, spec.cache, run.batch["tokens"], what=what)


@torch.no_grad()
def _check_sight(model: nn.Module, objective: Any, batch: Batch, *, what: str) -> None:
    """Change one token, and see which outputs change."""
    model.eval()
    tokens = batch["tokens"]

    def changed_by(position: int) -> torch.Tensor:
        other = tokens.clone()
        other[:, position] = (other[:, position] + 1) % (tokens.max() + 1)
        inputs, _ = objective.prepare({**batch, "tokens": other}, DRAW)
        difference: torch.Tensor = model(**inputs) - before
        return (difference.abs().amax(dim=(0, 2)) > 1e-5).nonzero().flatten()

    inputs, _ = objective.prepare(batch, DRAW)
    before = model(**inputs)
    last_of_first, last = DOCUMENT_ENDS - 1, SEQ_LEN - 1
    assert (changed_by(last) >= last).all(), f"{what}: a token's output depends on a later token"
    assert (changed_by(last_of_first) >= last_of_first).all(), (
        f"{what}: a token's output depends on a later token"
    )
    assert (changed_by(last_of_first) <= last_of_first).all(), (
        f"{what}: a token's output depends on another document's tokens"
    )
    assert len(changed_by(last)) == 1, f"{what}: a token's output does not depend on the token"


@torch.no_grad()
def _check_alone(model: nn.Module, objective: Any, batch: Batch, *, what: str) -> None:
    """Compare the outputs of each document in a row with those that it has alone, with larger weights than at
    the start, where attention is nearly the same for all tokens."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)

    def outputs(part: slice) -> torch.Tensor:
        inputs, _ = objective.prepare({name: value[:, part] for name, value in batch.items()}, DRAW)
        found: torch.Tensor = model(**inputs)
        return found

    together = outputs(slice(SEQ_LEN))
    for part in (slice(DOCUMENT_ENDS), slice(DOCUMENT_ENDS, SEQ_LEN)):
        difference = (together[:, part] - outputs(part)).abs().max() / together.abs().max()
        assert difference <= ALONE_WITHIN, (
            f"{what}: a document has other outputs in a row than alone: count positions from where it begins"
        )


@torch.no_grad()
def _check_cache(model: nn.Module, open_cache: OpenCache, tokens: torch.Tensor, *, what: str) -> None:
    """Give a text in pieces, the second row a token behind the first, and compare with the whole text."""
    rows, length = tokens.shape
    behind = (torch.arange(rows) > 0).long()[:, None]
    with recomputed(model, rows, length) as forward:
        expected = forward(tokens, torch.arange(length).expand(rows, -1))
    begin = torch.arange(length // 2).expand(rows, -1)
    steps = [torch.full((rows, 1), at) - behind for at in range(length // 2, length)]
    with open_cache(model, rows, length) as forward:
        for at in (begin, *steps):
            logits = forward(tokens.gather(1, at), at)
            within = expected.gather(1, at[:, :, None].expand(logits.shape))
            assert torch.allclose(logits, within, rtol=1e-4, atol=1e-5), (
                f"{what}: with its cache, the logits after token {int(at.max())} are those of another text"
            )
