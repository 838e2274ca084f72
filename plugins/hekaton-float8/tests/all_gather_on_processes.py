"""Run by test_layouts.py: what was gathered in float8, against what is cast from the whole."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torchao.float8.float8_linear import Float8Linear
from torchao.float8.float8_scaling_utils import hp_tensor_to_float8_dynamic
from torchao.float8.float8_training_tensor import GemmInputRole

from hekaton.layer_choices import LayerChoice, replace_layers
from hekaton.mesh import ParallelDims
from hekaton_float8.linear import LinearFloat8, as_torchao
from hekaton_float8.sections import Float8Section
from hekaton_float8.tensor_parallel import cast_and_gather

SECTION = Float8Section(
    enable_fsdp_float8_all_gather=True, precompute_float8_dynamic_scale_for_fsdp=True, emulate=True
)


def gather(own_scale: bool = False) -> None:
    """Gather weights in float8, with scales computed at the gather and ahead of it.

    :param own_scale: put the mistake in that each rank scales by the largest value of its own part.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    if own_scale:
        import torchao.float8.float8_utils as torchaos

        torchaos.all_reduce = lambda amax, *_: amax
    generator = torch.Generator().manual_seed(0)
    # The largest value is in the part of the last rank.
    weight = torch.randn(32, 48, generator=generator) * torch.logspace(-2, 2, 32)[:, None]
    # With a bias, FSDP gathers bytes: gloo has no float8, which it would gather if there were nothing else.
    model = torch.nn.Sequential(torch.nn.Linear(48, 32))
    model[0].weight.data.copy_(weight)
    config = as_torchao(SECTION, gathers=True)
    replace_layers(
        model, [LayerChoice("0", (32, 48))], lambda layer: Float8Linear.from_float(layer, config=config)
    )
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    converter = LinearFloat8(SECTION, ParallelDims(dp_shard=dist.get_world_size()))
    expected = hp_tensor_to_float8_dynamic(
        weight, torch.float8_e4m3fn, model[0].linear_mm_config, gemm_input_role=GemmInputRole.WEIGHT
    )
    for ahead in (False, True):
        if ahead:
            converter.after_step([model])
            assert model[0].weight._local_tensor._precomputed_scale is not None
        model.unshard()
        gathered = model[0].weight
        assert torch.equal(gathered._scale, expected._scale), (ahead, gathered._scale, expected._scale)
        assert torch.equal(gathered._data.view(torch.uint8), expected._data.view(torch.uint8)), ahead
        model.reshard()
    dist.destroy_process_group()


def cast_before_a_gather(own_scale: bool = False) -> None:
    """What tensor-parallel ranks gather in float8 is what they would cast after a gather, bit for bit.

    :param own_scale: put the mistake in that each rank scales by the largest value of its own part.
    """
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    x = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    x[:, -1] *= 100
    mm = Float8Linear(16, 16, device="meta", config=as_torchao(SECTION)).linear_mm_config
    if own_scale:
        import hekaton_float8.tensor_parallel as ours

        scale = ours.amax_to_scale
        ours.amax_to_scale = lambda amax, dtype: scale(part.to_local().abs().max(), dtype)
    for role, dtype in (
        (GemmInputRole.INPUT, torch.float8_e4m3fn),
        (GemmInputRole.GRAD_OUTPUT, torch.float8_e5m2),
    ):
        expected = hp_tensor_to_float8_dynamic(x, dtype, mm, gemm_input_role=role)
        part = distribute_tensor(x, mesh, [Shard(1)])
        gathered = cast_and_gather(part, dtype, mm, role).to_local()
        assert torch.equal(gathered._scale, expected._scale), (gathered._scale, expected._scale)
        assert torch.equal(gathered._data.view(torch.uint8), expected._data.view(torch.uint8))
    _weights_have_the_scale_of_the_whole()
    dist.destroy_process_group()


def _weights_have_the_scale_of_the_whole() -> None:
    """Gather a weight in float8 whose outputs are on two ranks, with scales computed ahead: they are those of the
    whole weight. Without, a rank takes that of its part, which is why such a run is refused."""
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("dp", "tp"))
    weight = torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
    weight[-1] *= 100  # the largest value is in the part of the last rank
    model = torch.nn.Sequential(torch.nn.Linear(48, 32))
    model[0].weight.data.copy_(weight)
    config = as_torchao(SECTION, gathers=True)
    replace_layers(
        model, [LayerChoice("0", (32, 48))], lambda layer: Float8Linear.from_float(layer, config=config)
    )
    parallelize_module(model[0], mesh["tp"], ColwiseParallel())
    fully_shard(model, mesh=mesh["dp"])
    expected = hp_tensor_to_float8_dynamic(
        weight, torch.float8_e4m3fn, model[0].linear_mm_config, gemm_input_role=GemmInputRole.WEIGHT
    )
    scales = []
    for ahead in (False, True):
        if ahead:
            LinearFloat8(SECTION, ParallelDims(dp_shard=2, tp=2)).after_step([model])
        model.unshard()
        scales.append(model[0].weight.to_local()._scale)
        model.reshard()
    assert torch.equal(scales[1], expected._scale), (scales, expected._scale)
    assert torch.equal(scales[0], expected._scale) == (dist.get_rank() == 1)
