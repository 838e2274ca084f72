"""What differs between the supported versions of torch and Python, each with the version that ends it."""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from datetime import timedelta
from typing import IO, TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.torch_version import TorchVersion

if TYPE_CHECKING:
    from torch.distributed.checkpoint.planner import WriteItem

log = logging.getLogger("hekaton")


def set_group_timeout(seconds: int, group: dist.ProcessGroup) -> None:
    """Change the timeout of the operations that follow on ``group``.

    ``torch.distributed.set_timeout`` came with torch 2.14, which deprecates the private function that 2.11 to
    2.13 have instead.
    """
    public: Any = getattr(dist, "set_timeout", None)
    if public is None:
        from torch.distributed import distributed_c10d

        public = distributed_c10d._set_pg_timeout
    public(timedelta(seconds=seconds), group)


def log_slow_guards() -> None:
    """Call it before anything is compiled: say once what torch would say on every rank.

    Python 3.13.1 ends it: 3.13.0 alone changes the versions of dicts in a way that costs guards their speed.
    """
    if sys.version_info[:3] != (3, 13, 0):
        return
    from torch._dynamo import config

    if config.issue_3_13_0_warning:
        config.issue_3_13_0_warning = False
        log.info("compiled code checks its guards slower on Python 3.13.0 than on 3.13.1 and later")


def expect_cleared_events() -> None:
    """Call it before a profiler with cycles starts: a trace is written when its cycle ends.

    torch 2.11 warns that the events of a cycle are gone after it; 2.13 does not.
    """
    warnings.filterwarnings("ignore", "Warning: Profiler clears events at the end of each cycle", UserWarning)


def ignore_warning_of_view_outputs(part: nn.Module) -> None:
    """Call it where nobody changes the outputs of ``part`` in place.

    torch 2.13 warns of outputs that are views, such as those of a linear layer with a bias, since FSDP does
    not notice it when such an output is changed in place; 2.11 does not warn.
    """
    name = re.escape(type(part).__name__)
    warnings.filterwarnings("ignore", rf"FSDP2-wrapped module \({name}\) returned a view", UserWarning)


def send_nothing_to_itself(stage: Any, *, rank: int) -> None:
    """Call it with each stage of a pipeline: it exchanges its first message with stages of other ranks only.

    torch 2.13 ends it: in 2.11 gloo has no connection of a process with itself, over which a rank with two
    neighbouring stages (the schedules in the form of a V) would send one.

    :param rank: of the stage, within its group.
    """
    if TorchVersion(torch.__version__) >= "2.13":
        return
    operations = stage._get_init_p2p_neighbors_ops
    stage._get_init_p2p_neighbors_ops = lambda: [one for one in operations() if one.group_peer != rank]


class NoTransforms:
    """For ``FileSystemWriter.transforms``: items go into their file as they are.

    torch's own wraps the file in a stream that is never closed, and flushes the file when it is collected:
    after a failed save that file is closed, and Python 3.13 and later print the error. In torch up to 2.14 at
    least.
    """

    def transform_save_stream(self, item: WriteItem, file: io.IOBase) -> tuple[IO[bytes], list[str]]:
        return cast(IO[bytes], _LeftOpen(file)), []


class _LeftOpen(io.RawIOBase):
    """Writes to a file that stays open when this is closed."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return int(self._file.write(data))

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()
