"""A digest is a function of a tensor's bits and their order."""

from __future__ import annotations

import pytest
import torch

from hekaton.fault import digest as module
from hekaton.fault.digest import differences, digest, digests, position_numbers

CPU = torch.device("cpu")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool,
          torch.complex64, torch.float8_e4m3fn]  # fmt: skip


def test_the_positions_have_the_numbers_of_splitmix64():
    # The first outputs of the authors' splitmix64.c from state 0; ours are made odd.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
    assert position_numbers(4).tolist() == [number | 1 for number in published]


def test_a_digest_computed_by_hand(monkeypatch):
    monkeypatch.setitem(module.CHUNK, "cpu", 2)
    numbers = [int(number) for number in position_numbers(2)]
    words = [5, -7, 11]
    expected = ((5 * numbers[0] - 7 * numbers[1]) * module._BASE + 11 * numbers[0]) % 2**64
    assert digest(torch.tensor(words, dtype=torch.int32)).item() % 2**64 == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_bit_counts(dtype):
    tensor = (torch.arange(7) % 2 * 3).to(dtype)
    expected, before = digest(tensor).item(), tensor.clone()
    bits = tensor.view(torch.uint8)
    for index in range(bits.numel()):
        for bit in range(8):
            bits[index] ^= 1 << bit
            assert digest(tensor).item() != expected, (index, bit)
            assert differences([tensor, before], [before, before], CPU).tolist() == [True, False], (
                index,
                bit,
            )
            bits[index] ^= 1 << bit
    assert digest(tensor).item() == expected


def test_the_order_counts_within_a_chunk_and_across_chunks(monkeypatch):
    monkeypatch.setitem(module.CHUNK, "cpu", 4)
    tensor = torch.arange(12.0)
    seen = {digest(tensor).item()}
    for first in range(12):
        for second in range(first):
            swapped = tensor.clone()
            swapped[[first, second]] = tensor[[second, first]]
            seen.add(digest(swapped).item())
    assert len(seen) == 1 + 12 * 11 // 2


def test_two_signs_that_change_together_are_seen():
    tensor = torch.arange(1.0, 65.0)
    expected = digest(tensor).item()
    for other in range(1, 64):
        changed = tensor.clone()
        changed[[0, other]] *= -1
        assert digest(changed).item() != expected


def test_what_is_equal_as_a_number_and_not_in_its_bits_differs():
    assert digest(torch.zeros(3)).item() != digest(-torch.zeros(3)).item()
    nan = torch.full((3,), torch.nan)
    assert digest(nan).item() == digest(nan.clone()).item()
    pairs = [
        (torch.zeros(3), -torch.zeros(3)),
        (nan, nan.clone()),
        (nan, nan[:2]),
        (nan, nan.view(torch.int32)),
    ]
    assert differences(*zip(*pairs, strict=True), CPU).tolist() == [True, False, True, True]


def test_views_are_digested_as_what_they_show():
    matrix = torch.arange(30.0).view(5, 6).to(torch.bfloat16)
    for view in (matrix.T, matrix[1:, 1:], matrix[:, 3], matrix.flatten()[1:4], matrix[:0]):
        assert digest(view).item() == digest(view.clone()).item()
        assert not differences([view], [view.clone()], CPU).item()
    assert digests([matrix, matrix.T], CPU).tolist() == [digest(matrix).item(), digest(matrix.T).item()]
    assert digests([], CPU).tolist() == differences([], [], CPU).tolist() == []
