"""Does a model's adapter keep its contract: a table for every tensor, and no word lost on the way?"""

from __future__ import annotations

import json

import torch

from hekaton.checkpoint.tensors.state import model_tensors
from hekaton.contributions import HFAdapter
from hekaton.spec import TrainSpec
from hekaton.weights import LazyTensor, WeightTable, whole


def check_adapter(adapter: HFAdapter, spec: TrainSpec) -> None:
    """Check an adapter with its model in every flavor, on the meta device, and one flavor with values.

    The table has an entry for every tensor of the model; what it makes of the shapes, it undoes. The
    ``config.json`` that is written is read as the same configuration. With the values of the flavor that has
    the fewest parameters there and back is the same bit for bit.

    :raises AssertionError: naming the flavor and what is wrong with it.
    :raises CheckpointError: from the table, listing the tensors.
    """
    assert adapter.name == spec.name, f"an adapter has its model's name, '{spec.name}', not '{adapter.name}'"
    assert adapter.architectures, f"{spec.name}: the adapter names no architecture"
    sizes = {}
    for name, config in spec.flavors.items():
        what = f"{spec.name} {name}"
        with torch.device("meta"):
            model = spec.model(config)
        ours = _tensors(model)
        sizes[name] = sum(tensor.nbytes for tensor in ours.values())
        _there_and_back(adapter.table.function()(config), ours, what=what)
        content = json.loads(json.dumps(adapter.write_config.function()(config)))
        read = adapter.read_config.function()(content)
        assert read == config, f"{what}: its config.json is read as {read}"
    smallest = min(sizes, key=lambda name: sizes[name])
    config = spec.flavors[smallest]
    with torch.device("meta"):
        model = spec.model(config)
    table = adapter.table.function()(config)
    numbered = {
        name: whole(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0)))
        for name, tensor in _tensors(model).items()
    }
    for name, own in table.own_tensors().items():
        numbered[name] = whole(torch.full(own.shape, own.value))
    back = _there_and_back(table, numbered, what=f"{spec.name} {smallest}")
    for name, tensor in numbered.items():
        assert torch.equal(back[name].read(), tensor.read()), f"{spec.name}: '{name}' comes back changed"


def _tensors(model: torch.nn.Module) -> dict[str, LazyTensor]:
    return {name: whole(tensor) for name, tensor in model_tensors([model]).items()}


def _there_and_back(table: WeightTable, ours: dict[str, LazyTensor], *, what: str) -> dict[str, LazyTensor]:
    back = table.from_hf(table.to_hf(ours, what=what), what=f"what the table makes of {what}")
    for name, tensor in ours.items():
        assert back[name].shape == tensor.shape, f"{what}: '{name}' comes back as {back[name].shape}"
    return back
