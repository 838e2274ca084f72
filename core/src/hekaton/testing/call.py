"""``python -m hekaton.testing.call FILE FUNCTION ARGUMENTS``: call a function of a Python file.

The arguments are a JSON object of keyword arguments.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path


def call(file: str, function: str, arguments: str) -> None:
    """Import the file and call its function."""
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    getattr(module, function)(**json.loads(arguments))


if __name__ == "__main__":
    call(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # What is tested has passed. Threads of torch that outlive their group can abort the interpreter's own
    # end, which was seen with Python 3.11.2 after errors that tests provoke.
    os._exit(0)
