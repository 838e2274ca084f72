"""The weights of a model under other names: the invertible weight table, its ops, tensors read on demand."""

from hekaton.weights.lazy import LazyTensor, cast, whole
from hekaton.weights.ops import Each, Fuse, Inverse, Op, RotaryHalves, Transpose, Unstack
from hekaton.weights.table import Entry, Own, WeightTable, entry

__all__ = [
    "Each",
    "Entry",
    "Fuse",
    "Inverse",
    "LazyTensor",
    "Op",
    "Own",
    "RotaryHalves",
    "Transpose",
    "Unstack",
    "WeightTable",
    "cast",
    "entry",
    "whole",
]
