"""What models promise, and what is made of them: converters, styles, objectives, adapters."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from hekaton.checkpoint.tensors.state import model_tensors
from hekaton.contributions import Converter, HFAdapter, Objective, ParallelStyle, RowMaker
from hekaton.mesh import ParallelDims
from hekaton.objective import ObjectiveContext
from hekaton.parallel.tensor import TensorContext
from hekaton.testing.adapter import check_adapter
from hekaton.testing.conformance.data import _dataset, _encoder, _tokenizer
from hekaton.testing.conformance.subject import CheckedContribution, smallest_flavor
from hekaton.testing.converter import check_converter
from hekaton.testing.model import check_model
from hekaton.testing.model_layouts import check_claimed_layouts
from hekaton.testing.objective import check_objective
from hekaton.testing.plain_run import plain_run
from hekaton.weights import whole

TOLERANCE = 1e-4


def tables(subject: CheckedContribution) -> None:
    check_model(subject.spec, subject.flavor, layouts=False, load=subject.load, overrides=subject.overrides)


def gradients(subject: CheckedContribution) -> None:
    check_claimed_layouts(subject.spec, subject.flavor, load=subject.load, overrides=subject.overrides)


def adapter(subject: CheckedContribution) -> None:
    assert isinstance(subject.record, HFAdapter)
    check_adapter(subject.record, subject.spec)


def reference(subject: CheckedContribution) -> None:
    """Load an export into transformers' model of the written config.json, and compare logits."""
    record, spec = subject.record, subject.spec
    assert isinstance(record, HFAdapter)
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    flavor = smallest_flavor(spec)
    content = {
        "architectures": list(record.architectures[:1]),
        **record.write_config.load()(spec.flavors[flavor]),
    }
    kind = getattr(transformers, record.architectures[0], None)
    if kind is None or spec.objective != "next_token":
        pytest.skip(f"transformers has no {record.architectures[0]} that gives logits")
    settings = {key: value for key, value in content.items() if value is not None}
    theirs = kind(kind.config_class(**settings)).eval()
    run = plain_run(spec, flavor, load=subject.load)
    ours = {name: whole(tensor.detach()) for name, tensor in model_tensors([run.model]).items()}
    exported = record.table.load()(spec.flavors[flavor]).to_hf(ours, what=spec.name)
    missing = theirs.load_state_dict({name: one.read() for name, one in exported.items()}, strict=False)
    held = theirs.state_dict()
    loaded = {held[name].data_ptr() for name in exported if name in held}
    lost = [name for name in missing.missing_keys if held[name].data_ptr() not in loaded]  # those tied are
    assert not lost, f"an export has no '{lost[0]}', which {record.architectures[0]} has"
    assert not missing.unexpected_keys, (
        f"{record.architectures[0]} has no '{missing.unexpected_keys[0]}', which an export has"
    )
    tokens = run.inputs["tokens"]
    with torch.no_grad():
        expected, found = theirs(tokens).logits, run.model(tokens=tokens)
    difference = (found - expected).abs().max() / expected.abs().max()
    assert difference <= TOLERANCE, (
        f"the logits differ from those of {record.architectures[0]} by {difference:.2g} of the largest"
    )


def draft(subject: CheckedContribution) -> None:
    assert subject.record is not None
    converter = subject.build(Converter, subject.record.name, ParallelDims())
    check_converter(converter, subject.spec_of_run, subject.flavor, load=subject.load)


def style(subject: CheckedContribution) -> None:
    """Build it for every combination of switches; what it does to a module, plans of models say."""
    assert subject.record is not None
    for sequence_parallel in (False, True):
        for loss_parallel in (False, True):
            context = TensorContext(sequence_parallel=sequence_parallel, loss_parallel=loss_parallel)
            subject.build(ParallelStyle, subject.record.name, context)


def terms(subject: CheckedContribution) -> None:
    """On rows of the run's dataset, with the run's model."""
    assert subject.record is not None
    spec, flavor = subject.spec_of_run, subject.flavor
    config = spec.flavors[flavor]
    context = ObjectiveContext(
        device=torch.device("cpu"), dtype=torch.float32, dims=ParallelDims(), model=config,
        sequence_is_cut=False,
    )  # fmt: skip
    objective = subject.build(Objective, subject.record.name, context)
    run = plain_run(dataclasses.replace(spec, objective=subject.record.name), flavor, load=subject.load)
    seq_len = subject.loaded.config.training.seq_len

    def model(**inputs: torch.Tensor) -> Any:
        return run.model(**inputs)

    check_objective(objective, _rows(subject, seq_len), seq_len=seq_len, model=model)


def _rows(subject: CheckedContribution, seq_len: int) -> dict[str, torch.Tensor]:
    from hekaton.data.loader import build_loader

    packing = subject.loaded.config.training.packing
    loader = build_loader(
        _dataset(subject), _tokenizer(subject), seq_len=seq_len, global_batch_size=2, rows=range(2), seed=0,
        packing=packing, maker=subject.build(RowMaker, packing, seq_len), encoder=_encoder(subject),
    )  # fmt: skip
    return loader.next_step()
