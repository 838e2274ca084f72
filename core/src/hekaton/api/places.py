"""What the functions of the API are given: where something is, and a device."""

from __future__ import annotations

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


def device_of(given: str | torch.device) -> torch.device:
    """:raises ConfigError: for a device that this machine has not."""
    import torch

    try:
        device = torch.device(given)
    except (RuntimeError, TypeError) as error:
        said = str(error).splitlines()[0]
        raise ConfigError(f"device = {given!r}: {said[:100]}", hint='choose "cpu" or "cuda"') from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device = {given!r}: this machine has {torch.cuda.device_count()} CUDA devices",
            hint='choose "cpu"',
        )
    return device
