"""What differs between the versions of torch that are supported, each with the version that ends it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d


def set_group_timeout(seconds: int, group: dist.ProcessGroup) -> None:
    """Change the timeout of the operations that follow on ``group``.

    ``torch.distributed.set_timeout`` came with torch 2.14, which deprecates the private function that 2.11 to
    2.13 have instead.
    """
    public: Any = getattr(dist, "set_timeout", None)
    if public is None:
        public = distributed_c10d._set_pg_timeout
    public(timedelta(seconds=seconds), group)
