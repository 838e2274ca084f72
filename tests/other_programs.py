"""Programs other than ``hekaton``, run by tests in processes of their own."""

import runpy
import signal
import sys
import time
import warnings

from hekaton.cli import main
from hekaton.weights.lazy import LazyTensor
from hekaton_llama3.model import Llama3Config
from hekaton_llama3.spec import flavors


def check_pages() -> None:
    """``python docs/generate.py --check``, with ``docs`` in ``PYTHONPATH``."""
    import generate

    sys.exit(generate.main(["--check"]))


def run_module_and_script(module: list[str], script: str) -> None:
    """``python -m MODULE WORDS``, then ``python -c SCRIPT``."""
    sys.argv = module
    with warnings.catch_warnings():
        # The module is imported already.
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy|importlib|<frozen runpy>")
        warnings.filterwarnings("ignore", message=".*weights_only")
        runpy.run_module(module[0], run_name="__main__", alter_sys=True)
    exec(compile(script, "script", "exec"), {"__name__": "__main__"})


def convert_slowly(words: list[str]) -> None:
    """``hekaton convert WORDS`` of a tiny model, which prints ``reading`` at each tensor."""
    # A shell has what it runs in the background ignore interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    flavors["tiny"] = Llama3Config(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48, vocab_size=64)
    read = LazyTensor.read

    def slowly(self, region=None):
        print("reading", flush=True)
        time.sleep(0.05)
        return read(self, region)

    LazyTensor.read = slowly
    sys.exit(main(["convert", *words]))
