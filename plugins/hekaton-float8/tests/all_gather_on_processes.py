"""Run by test_layouts.py on four processes: what was gathered in float8, against what is cast from the whole."""

from unittest import mock

import torch
import torch.distributed as dist
import torchao.float8.float8_utils as torchaos
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torchao.float8.float8_linear import Float8Linear
from torchao.float8.float8_scaling_utils import hp_tensor_to_float8_dynamic
from torchao.float8.float8_training_tensor import GemmInputRole

import hekaton_float8.tensor_parallel as ours
from hekaton.layer_choices import LayerChoice, replace_layers
from hekaton.mesh import ParallelDims
from hekaton_float8.linear import LinearFloat8, as_torchao
from hekaton_float8.sections import Float8Section

SECTION = Float8Section(
    enable_fsdp_float8_all_gather=True, precompute_float8_dynamic_scale_for_fsdp=True, emulate=True
)
PRODUCTS = Float8Linear(16, 16, device="meta", config=as_torchao(SECTION)).linear_mm_config


def gather() -> None:
    """Gather weights over FSDP ranks, and inputs and gradients over tensor-parallel ones; then the same with the
    mistake that each rank scales by the largest value of its own part, which some rank must see."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    alone = init_device_mesh("cpu", (4,))
    pairs = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    for where, fsdp in {"shard4": alone, "replicate2 shard2": pairs}.items():
        for ahead in (False, True):
            assert on_all(weight_is_the_wholes(fsdp, ahead=ahead)), (where, ahead)
        with mock.patch.object(torchaos, "all_reduce", lambda amax, *_: amax):
            assert not on_all(weight_is_the_wholes(fsdp, ahead=False)), where
    for style in (ColwiseParallel(), RowwiseParallel()):
        # Without scales computed ahead a rank takes that of its part, which is why such a run is refused.
        for ahead in (False, True):
            same = weight_is_the_wholes(pairs["outer"], ahead=ahead, tp=pairs["inner"], style=style)
            assert on_all(same) == ahead, (style, ahead)
    assert on_all(inputs_and_gradients_are_the_wholes(pairs["inner"]))
    with mock.patch.object(torchaos, "all_reduce", lambda amax, *_: amax), own_scales():
        assert not on_all(inputs_and_gradients_are_the_wholes(pairs["inner"]))
    dist.destroy_process_group()


def on_all(holds: bool) -> bool:
    """Whether it holds on every rank."""
    lowest = torch.tensor(int(holds))
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    return bool(lowest)


def own_scales():
    """The mistake in what tensor-parallel ranks gather."""
    cast = ours.hp_tensor_and_scale_to_float8

    def with_own(part, scale, dtype, *rest):
        return cast(part, ours.amax_to_scale(part.abs().max(), dtype), dtype, *rest)

    return mock.patch.object(ours, "hp_tensor_and_scale_to_float8", with_own)


def weight_is_the_wholes(fsdp, *, ahead, tp=None, style=None) -> bool:
    """Whether the weight that a layer computes with is, bit for bit, its part of what is cast from the whole weight.

    :param ahead: compute scales before the gather, as after an optimizer step.
    :param style: how tensor parallel cuts the layer.
    """
    weight = torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
    weight[-1, -1] = 100  # the largest value is in the part of the last rank
    # With a bias, FSDP gathers bytes: gloo has no float8, which it would gather if there were nothing else.
    model = torch.nn.Sequential(torch.nn.Linear(48, 32))
    model[0].weight.data.copy_(weight)
    config = as_torchao(SECTION, gathers=True)
    replace_layers(
        model, [LayerChoice("0", (32, 48))], lambda layer: Float8Linear.from_float(layer, config=config)
    )
    if tp is not None:
        parallelize_module(model[0], tp, style)
    fully_shard(model, mesh=fsdp)
    if ahead:
        LinearFloat8(SECTION, ParallelDims(dp_shard=2)).after_step([model])
    assert (model[0].weight._local_tensor._precomputed_scale is not None) == ahead
    model.unshard()
    gathered = model[0].weight
    whole = hp_tensor_to_float8_dynamic(
        weight, torch.float8_e4m3fn, model[0].linear_mm_config, gemm_input_role=GemmInputRole.WEIGHT
    )
    bits = whole._data.view(torch.uint8)
    if tp is not None:
        bits = distribute_tensor(bits, tp, gathered.placements).to_local()
        gathered = gathered.to_local()
    return torch.equal(gathered._scale, whole._scale) and torch.equal(gathered._data.view(torch.uint8), bits)


def inputs_and_gradients_are_the_wholes(tp) -> bool:
    """Whether what ranks cast and gather is, bit for bit, what they would cast after a gather."""
    x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    x[:, -1] *= 100
    same = []
    for role, dtype in (
        (GemmInputRole.INPUT, torch.float8_e4m3fn),
        (GemmInputRole.GRAD_OUTPUT, torch.float8_e5m2),
    ):
        expected = hp_tensor_to_float8_dynamic(x, dtype, PRODUCTS, gemm_input_role=role)
        found = ours.cast_and_gather(distribute_tensor(x, tp, [Shard(1)]), dtype, PRODUCTS, role).to_local()
        same += [
            torch.equal(found._scale, expected._scale),
            torch.equal(found._data.view(torch.uint8), expected._data.view(torch.uint8)),
        ]
    return all(same)
