"""Cross-entropy in chunks, against torch's own in float64."""

import pytest
import torch
import torch.nn.functional as F

from hekaton import cross_entropy
from hekaton.loss import IGNORE_INDEX, NextToken


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 17, 300, 1000])
def test_loss_and_gradient_are_those_of_the_whole(monkeypatch, dtype, rows):
    monkeypatch.setattr(cross_entropy, "CHUNK_NUMEL", rows * 1000)
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(3, 100, 1000, generator=generator) * 3).to(dtype).requires_grad_()
    targets = torch.randint(1000, (3, 100), generator=generator)
    targets[:, ::7] = IGNORE_INDEX

    loss = NextToken().loss(logits, {"labels": targets})["next_token"] / 257
    loss.backward()
    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact.flatten(0, 1), targets.flatten(), reduction="sum") / 257
    expected.backward()

    assert loss.dtype == torch.float32
    assert abs(loss.item() - expected.item()) < 1e-5
    # The gradient is rounded once, to the dtype of the logits: a relative error of at most 2^-8 and 2^-11,
    # and below float16's smallest normal number an absolute one of 2^-25.
    relative = {torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    error = (logits.grad.double() - exact.grad).abs()
    assert (error <= exact.grad.abs() * (relative + 1e-5) + 2**-25).all()


def test_a_batch_without_targets_gives_zero():
    logits = torch.randn(1, 4, 10, dtype=torch.bfloat16, requires_grad=True)
    loss = NextToken().loss(logits, {"labels": torch.full((1, 4), IGNORE_INDEX)})["next_token"]
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.abs().max() == 0
