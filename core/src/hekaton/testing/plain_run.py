"""One step of a model in one process, without anything of a layout: what every layout must agree with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hekaton.building import materialize
from hekaton.components import build_component
from hekaton.config import load as load_configuration
from hekaton.contributions import Objective
from hekaton.draws import Draw
from hekaton.init import resolve_init
from hekaton.mesh import ParallelDims
from hekaton.objective import Batch, BatchTensor, ObjectiveContext, TrainingObjective
from hekaton.spec import TrainSpec
from hekaton.terms import collected_terms
from hekaton.testing import small_decoder
from hekaton.testing.initial import check_initial

ROWS = 2
SEQ_LEN = 16
DOCUMENT_ENDS = 7
"""Where the second document of the test's sequences begins."""
CPU = torch.device("cpu")
DRAW = Draw(seed=0, step=1, rows=range(ROWS), device=CPU)


@dataclass(frozen=True, kw_only=True)
class PlainRun:
    """What one step gave.

    :param batch: of the row maker, ``None`` for objectives other than ``next_token``.
    """

    model: nn.Module
    objective: TrainingObjective
    batch: Batch | None
    inputs: Batch
    targets: Batch
    loss: float
    gradients: dict[str, torch.Tensor]


def plain_run(spec: TrainSpec, flavor: str, *, load: Sequence[str] = ()) -> PlainRun:
    """Build a model in float32 on the CPU, in eval mode, and run one forward and backward.

    :param load: plugins that are not installed, as ``--plugins.load`` takes them.
    :raises AssertionError: for an objective that no plugin contributes, and for logits of another shape than
        (batch, seq, vocab).
    """
    config = spec.flavors[flavor]
    with torch.device("meta"):
        model = spec.model(config)
    initializers = resolve_init(model, spec.init(config), what=f"{spec.name} {flavor}")
    materialize(model, CPU)
    check_initial(model, initializers, what=f"{spec.name} {flavor}")
    model.eval()
    context = ObjectiveContext(
        device=CPU, dtype=torch.float32, dims=ParallelDims(), model=config, sequence_is_cut=False
    )
    objective = _objective(spec, context, load)
    batch = None
    if spec.objective == "next_token":
        batch = _batch(vocab_size=getattr(config, "vocab_size", 256))
        inputs, targets = objective.prepare(batch, DRAW)
    else:
        inputs, targets = (_made_up(one) for one in (objective.inputs(SEQ_LEN), objective.targets(SEQ_LEN)))
    added = spec.terms(config) if spec.terms is not None else {}
    with collected_terms({name: weight / ROWS for name, weight in added.items()}) as sums_added:
        outputs = model(**inputs)
    if batch is not None:
        found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
        assert found[:-1] == tuple(targets["labels"].shape), (
            f"{spec.name} {flavor}: outputs must be of shape (batch, seq, vocab), not {found}"
        )
    missing = sorted(added.keys() - sums_added.keys())
    assert not missing, f"{spec.name} {flavor}: TrainSpec.terms has '{missing[0]}', which no layer adds"
    sums, counts = objective.loss(outputs, targets), objective.count(targets)
    terms = [weight * sums[name] / counts[name] for name, weight in objective.weights.items()]
    terms += [weight * sums_added[name] / ROWS for name, weight in added.items()]
    loss: Any = torch.stack(terms).sum()
    loss.backward()
    return PlainRun(
        model=model,
        objective=objective,
        batch=batch,
        inputs=inputs,
        targets=targets,
        loss=loss.item(),
        gradients={
            name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None
        },
    )


def _objective(spec: TrainSpec, context: ObjectiveContext, load: Sequence[str]) -> TrainingObjective:
    loads = ",".join(dict.fromkeys([*load, small_decoder.__name__]))
    loads = ",".join(dict.fromkeys([*load, small_decoder.__name__]))
    # The model and tokenizer come with the core: those of the defaults may not be installed.
    flags = ["--model.name", small_decoder.NAME, "--model.flavor", "tiny", "--model.tokenizer", "byte"]
    loaded = load_configuration([], ["--plugins.load", loads, *flags])
    if spec.objective not in loaded.plugins.all(Objective):
        raise AssertionError(
            f"{spec.name}: no installed plugin contributes its objective '{spec.objective}': name the module "
            "or file of the plugin that does, load=['my_plugin']"
        )
    built: TrainingObjective = build_component(
        loaded.config, loaded.plugins, Objective, spec.objective, context
    )
    return built


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
