"""What checkpoint formats promise: what was written is read back, of a model or the part that it holds."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from hekaton.building import build_meta
from hekaton.checkpoint.tensors.state import model_tensors
from hekaton.contributions import CheckpointFormat, HFAdapter
from hekaton.errors import CheckpointError
from hekaton.mesh import ParallelDims
from hekaton.testing.conformance.subject import CheckedContribution
from hekaton.weights import LazyTensor, whole
from hekaton.weights.counterpart import Counterpart, export
from hekaton.weights.facts import ModelFacts
from hekaton.weights.format import HoldsPart, WeightFormat, Weights, WriteOptions

MADE_UP = {"model_type": "test"}


def written_and_read(subject: CheckedContribution) -> None:
    """Two ranks share a folder; names and values come back, and the config of a whole model. The weights are
    those of the run's model where it has an adapter, and made up elsewhere."""
    found = _of_run(subject)
    weights = _exported(found) if found is not None else _made_up()
    form: WeightFormat = subject.build(CheckpointFormat, subject.record.name)  # type: ignore[union-attr]
    for ranks in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            for rank in reversed(range(ranks)):
                form.write(Path(folder), weights, WriteOptions(rank=rank, ranks=ranks))
            if isinstance(form, HoldsPart):
                expected = form.part_of(weights)
                assert expected, "part_of() of the run's model is empty: give a run that has such a part"
                _compare(form.open_part(Path(folder)), expected, ranks)
                _check_no_model(form, Path(folder))
            else:
                read = form.open(Path(folder))
                _check_config(read, found)
                _compare(read.tensors, weights.tensors, ranks)


def _compare(read: Mapping[str, LazyTensor], written: Mapping[str, LazyTensor], ranks: int) -> None:
    assert sorted(read) == sorted(written), f"tensors are read as {sorted(read)}, not {sorted(written)}"
    for name, lazy in written.items():
        value = lazy.read()
        assert torch.equal(read[name].read(), value), f"'{name}', written by {ranks}, is read back changed"
        region = tuple(slice(size // 3, size // 3 + (size + 1) // 2) for size in value.shape)
        assert torch.equal(read[name].read(region), value[region]), f"a part of '{name}' is read back changed"


def _check_config(read: Weights, found: Counterpart | None) -> None:
    if found is None:
        assert dict(read.config).get("model_type") == "test", f"config.json is read as {dict(read.config)}"
        return
    config = found.adapter.read_config.function()(read.config)
    assert config == found.config, f"the model's configuration is read as {config}, written as {found.config}"


def _check_no_model(form: WeightFormat, folder: Path) -> None:
    try:
        form.open(folder)
    except CheckpointError:
        return
    raise AssertionError("it holds a part of a model, which open() gives for a model: raise CheckpointError")


def _of_run(subject: CheckedContribution) -> Counterpart | None:
    """The model of the run after its converters; ``None`` where it has no adapter."""
    loaded = subject.loaded
    adapters = loaded.plugins.all(HFAdapter)
    if loaded.config.model.name not in adapters:
        return None
    meta = build_meta(loaded.config, loaded.plugins, ParallelDims())
    adapter = adapters[loaded.config.model.name].record
    return Counterpart(spec=meta.spec, flavor="", config=meta.config, adapter=adapter, draft=meta.draft)


def _exported(found: Counterpart) -> Weights:
    """Random weights of the model, as its adapter makes them."""
    generator = torch.Generator().manual_seed(0)
    ours = {
        name: whole(torch.randn(tensor.shape, generator=generator))
        for name, tensor in model_tensors([found.on_meta()]).items()
    }
    own = {name: whole(torch.full(one.shape, one.value)) for name, one in found.table.own_tensors().items()}
    return export(found, {**ours, **own}, dtype=None, facts=ModelFacts(), what=str(found))


def _made_up() -> Weights:
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{number}.weight" for number in range(3)]
    return Weights(
        config=MADE_UP, tensors={name: whole(torch.randn(5, 3, generator=generator)) for name in names}
    )
