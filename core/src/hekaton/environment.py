"""What the launcher (torchrun, srun) says in the environment: this process among the others of the run."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hekaton.errors import ConfigError

ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class LaunchedRank:
    """The place of this process; without a launcher it is alone.

    :param local_rank: its number among those on this machine.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def launched() -> LaunchedRank:
    """The place that the environment gives this process.

    :raises ConfigError: for a variable that is no number or out of range, or where others are missing.
    """
    world_size = number("WORLD_SIZE", default=1, at_least=1)
    rank = number("RANK", default=0)
    local_rank = number("LOCAL_RANK", default=0)
    if rank >= world_size:
        said = "" if "WORLD_SIZE" in os.environ else ", since WORLD_SIZE is not set"
        raise ConfigError(
            f"the environment has RANK = {rank}, but there are ranks 0 to {world_size - 1}{said}", hint=_CURE
        )
    missing = [name for name in ("RANK", *ADDRESS) if name not in os.environ]
    if world_size > 1 and missing:
        raise ConfigError(
            f"the environment has WORLD_SIZE = {world_size}, but not {', '.join(missing)}", hint=_CURE
        )
    if world_size > 1 and number("MASTER_PORT", default=0) > 65535:
        raise ConfigError(f"the environment's MASTER_PORT = {os.environ['MASTER_PORT']} is above 65535")
    return LaunchedRank(rank, local_rank, world_size)


_CURE = """\
a launcher such as torchrun sets all of RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT
for a single process: env -u RANK -u LOCAL_RANK -u WORLD_SIZE hekaton train ..."""


def among_others() -> bool:
    """Whether the environment says that this process is one of several."""
    text = os.environ.get("WORLD_SIZE", "1")
    return is_number(text) and int(text) > 1


def is_number(text: str) -> bool:
    """Whether it is what a launcher says of a rank or of a number of processes."""
    return text.isascii() and text.isdecimal() and len(text) < 10


def number(name: str, *, default: int, at_least: int = 0) -> int:
    """A number from the environment.

    :raises ConfigError: for anything else, or a number below ``at_least``.
    """
    text = os.environ.get(name, str(default))
    if not is_number(text) or int(text) < at_least:
        raise ConfigError(
            f"the environment's {name} must be a number, at least {at_least}, not '{text[:40]}'"
        )
    return int(text)
