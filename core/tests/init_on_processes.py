"""Run by test_init.py on several processes: initialise sharded parameters, compare with the whole ones."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from hekaton.init import Normal, TruncatedNormal, initialize


class Odd(nn.Module):
    """Shapes that no number of ranks divides, one larger than a block of rows, one empty on most ranks."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Parameter(torch.empty(700, 4099))
        self.uneven = nn.Parameter(torch.empty(7, 5))
        self.vector = nn.Parameter(torch.empty(3))
        self.one = nn.Parameter(torch.empty(1, 2, 3))


ROWS = {"wide": Normal(0.5), "uneven": TruncatedNormal(1.0), "vector": Normal(1.0), "one": Normal(2.0)}


def whole():
    model = Odd()
    initialize(model, ROWS, seed=7)
    return dict(model.named_parameters())


def fsdp():
    dist.init_process_group("gloo")
    with torch.device("meta"):
        model = Odd()
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    model.to_empty(device="cpu")
    initialize(model, ROWS, seed=7)
    for name, expected in whole().items():
        assert torch.equal(model.get_parameter(name).full_tensor(), expected), name
    dist.destroy_process_group()


def strided():
    """Tensor parallel cuts rows, then FSDP cuts them again, in strides."""
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("fsdp", "tp"))
    for tp in (Shard(0), Shard(1)):
        model = Odd()
        for name in ("wide", "uneven"):
            parameter = nn.Parameter(
                distribute_tensor(torch.zeros_like(model.get_parameter(name)), mesh["tp"], [tp])
            )
            setattr(model, name, parameter)
        del model.vector, model.one
        fully_shard(model, mesh=mesh["fsdp"])
        initialize(model, ROWS, seed=7)
        for name, parameter in model.named_parameters():
            assert isinstance(parameter, DTensor)
            assert torch.equal(parameter.full_tensor(), whole()[name]), (tp, name)
    dist.destroy_process_group()
