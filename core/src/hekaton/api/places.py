"""What the functions of the API are given: where something is, a device, a whole number."""

from __future__ import annotations

import numbers
import os
from os import PathLike
from typing import TYPE_CHECKING

from hekaton.errors import ConfigError
from hekaton.paths import expanded
from hekaton.urls import is_url

if TYPE_CHECKING:
    import torch


def location(given: str | PathLike[str], *, what: str = "a path", hint: str = "") -> str:
    """A path, with the home folder in place of ``~``, or a URL.

    :param what: was expected, for the message.
    :raises ConfigError: for what is neither.
    """
    if not isinstance(given, str | PathLike) or not isinstance(text := os.fspath(given), str):
        raise ConfigError(f"{what} was expected, not {type(given).__name__}", hint=hint)
    if is_url(text):
        return text
    try:
        return expanded(text)
    except ValueError as error:
        raise ConfigError(f"'{text[:80]}': {error}") from error


def whole(given: object, *, what: str, least: int | None = None, end: int | None = None) -> int:
    """A whole number, numpy's too.

    :param what: is said of anything else.
    :param least: the smallest that is taken, and ``end`` the first that is not.
    :raises ConfigError: for what is none, or is out of range.
    """
    if isinstance(given, numbers.Integral) and not isinstance(given, bool):
        number = int(given)
        if (least is None or number >= least) and (end is None or number < end):
            return number
    raise ConfigError(what)


def device_of(given: str | torch.device) -> torch.device:
    """:raises ConfigError: for a device that this machine has not, or of a kind that is not supported."""
    import torch

    if not isinstance(given, str | int | torch.device):
        raise ConfigError(f"device = {given!r}: a device was expected", hint='choose "cpu" or "cuda"')
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError) as error:
        said = str(error).splitlines()[0]
        raise ConfigError(f"device = {given!r}: {said[:100]}", hint='choose "cpu" or "cuda"') from error
    if device.type not in ("cpu", "cuda", "meta"):
        raise ConfigError(f"device = {given!r}: models run on CPUs and CUDA", hint='choose "cpu" or "cuda"')
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device = {given!r}: this machine has {torch.cuda.device_count()} CUDA devices",
            hint='choose "cpu"',
        )
    return device
