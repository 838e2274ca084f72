"""Context parallel looks at what an objective declares, and not at the length of texts alone."""

import pytest
import torch

from hekaton.errors import ConfigError
from hekaton.objective import BatchTensor
from hekaton.parallel.context import check_sequences, contiguous, head_tail


class Strategy:
    passes, traceable = None, True

    def __init__(self, order):
        self.order = order

    def replace(self, inner):
        raise AssertionError("is only asked for its order")


PATCHES = BatchTensor(name="patches", shape=(3, 12), dtype=torch.float32, sequence=1)
WHOLE = BatchTensor(name="whole", shape=(7,), dtype=torch.float32)


def test_a_declared_sequence_that_is_cut_unevenly_is_rejected():
    check_sequences([PATCHES, WHOLE], Strategy(head_tail), degree=3)
    check_sequences([PATCHES, WHOLE], Strategy(contiguous), degree=4)
    with pytest.raises(
        ConfigError, match=r"'patches' has a sequence of 12, .*context_parallel_degree = 4 \(twice"
    ):
        check_sequences([WHOLE, PATCHES], Strategy(head_tail), degree=4)
    with pytest.raises(ConfigError, match=r"'patches' has a sequence of 12, .*context_parallel_degree = 5\n"):
        check_sequences([PATCHES], Strategy(contiguous), degree=5)
