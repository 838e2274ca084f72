"""Copies to pinned memory: those of the moment, though the device goes on at once."""

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.cuda


def test_copies_are_of_the_moment_and_their_memory_is_used_again():
    from hekaton.checkpoint.tensors.staging import Staging
    from hekaton.checkpoint.tensors.state import model_tensors, optimizer_state

    model = nn.Sequential(nn.Linear(4096, 4096), nn.BatchNorm1d(4096), nn.Linear(4096, 4096)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    staging = Staging(pinned=True)
    optimizer.register_step_pre_hook(lambda *_: staging.hold_device())

    def step():
        model(torch.randn(512, 4096, device="cuda")).square().mean().backward()
        optimizer.step()

    def state():
        return {"model": model_tensors([model]), "optimizer": optimizer_state([model], [optimizer])[0]}

    step()
    places = None
    for _ in range(3):
        expected = {
            part: {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
            for part, tensors in state().items()
        }
        torch.cuda._sleep(50_000_000)  # the device is behind, and the copies are not there yet
        copies = staging.copy(state())
        step()
        staging.wait()
        for part, tensors in expected.items():
            for name, tensor in tensors.items():
                assert torch.equal(copies[part][name], tensor), name
        assert all(tensor.is_pinned() for tensor in copies["model"].values())
        now = {name: tensor.data_ptr() for name, tensor in copies["model"].items()}
        assert places in (None, now)
        places = now


def test_sharded_tensors_are_copied_to_the_host(tmp_path):
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    from hekaton.checkpoint import CheckpointManager
    from hekaton.checkpoint.runs.background import BackgroundSaves
    from hekaton.checkpoint.tensors.state import model_tensors

    dist.init_process_group(
        "cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda", 0)
    )
    try:
        model = nn.Linear(512, 512).cuda()
        fully_shard(model)
        saved = []
        saves = BackgroundSaves(
            CheckpointManager(tmp_path, describe={}), pinned=True, saved=lambda step, _: saved.append(step)
        )
        expected = {name: tensor.full_tensor().cpu() for name, tensor in model_tensors([model]).items()}
        saves.start(1, {"model": model_tensors([model])}, {}, good=True)
        saves.hold_device()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(7)
        saves.wait()
        assert saved == [1]
        into = model_tensors([model])
        assert CheckpointManager(tmp_path, describe={}).load({"model": into})
        for name, tensor in into.items():
            assert isinstance(tensor, DTensor)
            assert tensor.is_cuda
            assert torch.equal(tensor.full_tensor().cpu(), expected[name])
    finally:
        dist.destroy_process_group()
