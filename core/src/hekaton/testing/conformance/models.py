"""What models promise, and what is made of them: converters, styles, objectives, adapters."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from hekaton.building import model_config
from hekaton.checkpoint.tensors.state import model_tensors
from hekaton.contributions import Converter, HFAdapter, Objective, ParallelStyle
from hekaton.mesh import ParallelDims
from hekaton.objective import ObjectiveContext
from hekaton.parallel.tensor import TensorContext
from hekaton.testing.adapter import check_adapter
from hekaton.testing.conformance.data import _loader
from hekaton.testing.conformance.subject import CheckedContribution
from hekaton.testing.converter import check_converter
from hekaton.testing.model import check_model
from hekaton.testing.model_layouts import check_claimed_layouts
from hekaton.testing.objective import check_objective
from hekaton.testing.plain_run import plain_run
from hekaton.weights import LazyTensor, whole

TOLERANCE = 1e-4


def tables(subject: CheckedContribution) -> None:
    model_config(subject.loaded.config, subject.loaded.plugins)  # with the section of the run
    check_model(subject.spec, subject.flavor, layouts=False, load=subject.load, overrides=subject.overrides)


def gradients(subject: CheckedContribution) -> None:
    overrides, tolerance = subject.overrides, subject.tolerance
    check_claimed_layouts(
        subject.spec, subject.flavor, load=subject.load, overrides=overrides, tolerance=tolerance
    )


def adapter(subject: CheckedContribution) -> None:
    assert isinstance(subject.record, HFAdapter)
    check_adapter(subject.record, subject.spec_of_run)


def reference(subject: CheckedContribution) -> None:
    """Load an export into transformers' model of the written config.json, and compare logits."""
    record, spec, flavor = subject.record, subject.spec_of_run, subject.flavor
    assert isinstance(record, HFAdapter)
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    content = {
        "architectures": list(record.architectures[:1]),
        **record.write_config.load()(spec.flavors[flavor]),
    }
    kind = getattr(transformers, record.architectures[0], None)
    if kind is None or spec.objective != "next_token":
        pytest.skip(f"transformers has no {record.architectures[0]} that gives logits")
    run = plain_run(spec, flavor, load=subject.load)
    ours = {name: whole(tensor.detach()) for name, tensor in model_tensors([run.model]).items()}
    exported = record.table.load()(spec.flavors[flavor]).to_hf(ours, what=spec.name)
    theirs, found = _opened(kind, content, exported)
    for wrong, what in (
        ("missing_keys", "an export has no '{}', which {} has"),
        ("unexpected_keys", "an export has '{}', which {} has not"),
        ("mismatched_keys", "'{}' of an export has another shape than that of {}"),
    ):
        names = sorted(map(str, found[wrong]))
        assert not names, what.format(names[0], record.architectures[0])
    tokens = run.inputs["tokens"]
    with torch.no_grad():
        expected, logits = theirs(tokens).logits, run.model(tokens=tokens)
    difference = (logits - expected).abs().max() / expected.abs().max()
    assert difference <= TOLERANCE, (
        f"the logits differ from those of {record.architectures[0]} by {difference:.2g} of the largest"
    )


def _opened(kind: Any, content: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> tuple[Any, Any]:
    """transformers' model of files as an export has them, and what it says of their tensors."""
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(content), encoding="utf-8")
        values = {name: one.read().contiguous() for name, one in tensors.items()}
        save_file(values, Path(folder, "model.safetensors"), metadata={"format": "pt"})
        theirs, found = kind.from_pretrained(folder, output_loading_info=True)
    return theirs.float().eval(), found


def draft(subject: CheckedContribution) -> None:
    assert subject.record is not None
    converter = subject.build(Converter, subject.record.name, ParallelDims())
    tolerance = subject.tolerance or TOLERANCE
    check_converter(converter, subject.spec_of_run, subject.flavor, tolerance=tolerance, load=subject.load)


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

    check_objective(objective, _loader(subject, 2).next_step(), seq_len=seq_len, model=model)
