"""A pass that is repeated: what differs is named, whether the results themselves were kept or their digests."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

from hekaton.fault import replay
from hekaton.fault.replay import Replay, has_room

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_process(tmp_path_factory):
    store = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def replayed(*, flip: str | None) -> tuple[str | None, nn.Module, list[bool]]:
    """What is said when a bit of one result of the first pass is flipped, the model, and of each pass
    whether the gradients of the first one were still there.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5), nn.BatchNorm1d(2))
    rows, held, gradients = torch.randn(4, 3), [], []

    def run():
        held.append(any(gradient() is not None for gradient in gradients))
        loss = model(rows).sum()
        loss.backward()
        gradients.append(weakref.ref(model[0].weight.grad))
        total, term = loss.detach(), loss.detach().clone()
        results = {
            "loss": total, "term": term, "gradient": model[0].weight.grad, "buffer": model[2].running_var,
        }  # fmt: skip
        if len(held) == 1 and flip:
            results[flip].view(torch.int32).view(-1)[0] ^= 1
        return total, {"mean": term}

    check = Replay([model], device=CPU)
    check(7, run)
    said = None if check.fault is None else str(check.fault).split("): ")[1].splitlines()[0]
    return said, model, held


NAMED = {
    None: None,
    "loss": "the loss",
    "term": "the term 'mean' of the loss",
    "gradient": "the gradient of 0.weight",
    "buffer": "the buffer 2.running_var",
}


@pytest.mark.parametrize("flip", NAMED, ids=str)
@pytest.mark.parametrize("room", [True, False], ids=["kept", "digests"])
def test_the_result_that_differs_is_named(monkeypatch, room, flip):
    monkeypatch.setattr(replay, "has_room", lambda results, device: room)
    said, model, held = replayed(flip=flip)
    assert said == NAMED[flip]
    assert held == [False, room]
    assert model[2].num_batches_tracked.item() == 1


def test_there_is_room_when_half_of_what_the_last_pass_left_free_is_enough(monkeypatch):
    cuda = SimpleNamespace(
        mem_get_info=lambda device: (10, 100),
        memory_reserved=lambda device: 80,
        max_memory_allocated=lambda device: 70,
    )
    monkeypatch.setattr(torch, "cuda", cuda)
    device = torch.device("cuda", 0)

    def of(size: int, where: torch.device = device) -> SimpleNamespace:
        return SimpleNamespace(nbytes=size, device=where)

    assert has_room([of(4), of(6), of(50, CPU)], device)
    assert not has_room([of(4), of(7)], device)
    assert has_room([of(4), of(7)], CPU)
