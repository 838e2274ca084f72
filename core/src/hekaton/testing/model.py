"""Does a model keep its contract: tables that fit it, and a forward and backward that do what they say?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hekaton.build import materialize
from hekaton.contributions import Objective
from hekaton.draws import Draw
from hekaton.init import Initializer, initialize, resolve_init
from hekaton.mesh import ParallelDims
from hekaton.objective import Batch, BatchTensor, ObjectiveContext, TrainingObjective
from hekaton.parallel.plan import blocks, check_plan
from hekaton.plugins import Plugins
from hekaton.spec import TrainSpec

SEQ_LEN = 16
DOCUMENT_ENDS = 7
"""Where the second document of the test's sequences begins."""
CPU = torch.device("cpu")
DRAW = Draw(seed=0, step=1, rows=range(2), device=CPU)


def check_model(spec: TrainSpec, flavor: str | None = None) -> None:
    """Check a model's tables in every flavor, and run one flavor in float32 on the CPU.

    Every flavor is a frozen dataclass from which the model builds on the meta device; every row of the plan
    and of the init table matches something, every parameter has an initialiser. The flavor that runs gives a
    finite loss and a finite gradient for every parameter. A model trained to predict the next token must not
    see later tokens, nor another document's.

    :param flavor: the one to run; by default that with the fewest parameters.
    :raises AssertionError: naming the flavor and what is wrong with it.
    :raises ConfigError: from the tables, naming the row or the parameter.
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
    _check_run(spec, run)


def _on_meta(spec: TrainSpec, flavor: str, config: Any) -> tuple[nn.Module, dict[str, Initializer]]:
    what = f"{spec.name} {flavor}"
    settings = getattr(type(config), "__dataclass_params__", None)
    frozen = settings is not None and settings.frozen
    assert frozen, f"{what}: the flavor must be a frozen dataclass, not {config!r}"
    with torch.device("meta"):
        model = spec.model(config)
    devices = {parameter.device.type for parameter in model.parameters()}
    assert devices == {"meta"}, f"{what}: does not build on the meta device but on {sorted(devices)}"
    plan = spec.plan(config)
    check_plan(model, plan, what=what)
    assert list(blocks(model, plan)), f"{what}: the plan's block '{plan.block}' matches no module"
    return model, resolve_init(model, spec.init(config), what=what)


def _check_run(spec: TrainSpec, flavor: str) -> None:
    what = f"{spec.name} {flavor}"
    config = spec.flavors[flavor]
    model, initializers = _on_meta(spec, flavor, config)
    materialize(model, torch.device("cpu"))
    initialize(model, initializers, seed=0)

    context = ObjectiveContext(
        device=CPU, dtype=torch.float32, dims=ParallelDims(), model=config, sequence_is_cut=False
    )
    record = Plugins.discover().get(Objective, spec.objective)
    objective: TrainingObjective = record.build.load()(None, context)
    next_token = spec.objective == "next_token"
    batch = _batch(vocab_size=getattr(config, "vocab_size", 256))
    if next_token:
        inputs, targets = objective.prepare(batch, DRAW)
    else:
        inputs, targets = (_made_up(one) for one in (objective.inputs(SEQ_LEN), objective.targets(SEQ_LEN)))
    outputs = model(**inputs)
    if next_token:
        assert outputs.shape[:-1] == targets["labels"].shape, (
            f"{what}: outputs must be of shape (batch, seq, vocab), not {tuple(outputs.shape)}"
        )
    sums, counts = objective.loss(outputs, targets), objective.count(targets)
    terms = [weight * sums[name] / counts[name] for name, weight in objective.weights.items()]
    loss: Any = torch.stack(terms).sum()
    assert torch.isfinite(loss), f"{what}: the loss is {loss.item()}"
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{what}: the loss does not depend on '{name}'"
            assert torch.isfinite(parameter.grad).all(), f"{what}: the gradient of '{name}' is not finite"
    if next_token:
        _check_sight(model, objective, batch, what=what)


def _batch(*, vocab_size: int) -> Batch:
    """Two sequences of two documents each; tensors of (2, SEQ_LEN)."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (2, SEQ_LEN + 1), generator=generator)
    positions = torch.cat([torch.arange(DOCUMENT_ENDS), torch.arange(SEQ_LEN - DOCUMENT_ENDS)])
    return {"tokens": tokens[:, :-1], "labels": tokens[:, 1:], "positions": positions.expand(2, -1)}


def _made_up(declared: Sequence[BatchTensor]) -> Batch:
    """Values for what an objective declares: numbers around 0, and where they are integers 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    return {
        one.name: torch.randn(2, *one.shape, generator=generator).to(one.dtype)
        if one.dtype.is_floating_point
        else torch.randint(2, (2, *one.shape), generator=generator).to(one.dtype)
        for one in declared
    }


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
