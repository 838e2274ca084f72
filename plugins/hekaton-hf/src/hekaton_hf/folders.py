"""The JSON files of a folder that transformers saved."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hekaton.checkpoint.disk.folders import read_file, reason_of
from hekaton.errors import CheckpointError
from hekaton.json_text import parsed

CONFIG, GENERATION = "config.json", "generation_config.json"
MAX_JSON = 1 << 26
"""Bytes: several times what the index of the largest published models has."""


def read_json(file: Path) -> dict[str, Any]:
    """:raises CheckpointError: when it is missing, cannot be read, or is not a JSON object."""
    try:
        content = parsed(read_file(file, limit=MAX_JSON).decode())
    except FileNotFoundError as error:
        raise CheckpointError(f"'{file}' is missing") from error
    except OSError as error:
        raise CheckpointError(f"cannot read '{file}': {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read '{file}': {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"cannot read '{file}': a JSON object was expected")
    return content


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is safe on the disk when this returns."""
    with file.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(content, indent=2) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
