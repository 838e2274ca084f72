"""What Python, torch and gloo raise where a process has as many files and connections open as it may."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator

from hekaton.errors import TrainingError

_TEXT = os.strerror(errno.EMFILE)


@contextlib.contextmanager
def too_many_files_are_said(where: object) -> Iterator[None]:
    """:param where: says what was being done, as in "in step 3".
    :raises TrainingError: in place of what is raised where no more files may be opened.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if _TEXT not in str(error):
            raise
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        raise TrainingError(
            f"too many open files and connections {where}: this process may have {limit:,}",
            hint="raise its limit: ulimit -n, LimitNOFILE= of systemd, --ulimit nofile= of docker\n"
            "or have fewer open: training.dataloader.num_workers",
        ) from error
