"""The command line: what every verb's ``--help`` prints."""

from __future__ import annotations

import os
import subprocess
import sys

from generator.installed import plugins, third_party_plugins
from hekaton.contributions import Command
from hekaton.plugins import DISABLE_VARIABLE

INTRODUCTION = """\
# Command line

`hekaton` and `python -m hekaton` are the same. Verbs are contributions of plugins (see
[`hekaton_commands`](hooks.md#hekaton_commands)); these are the core's and those of the plugins in the
repository. Every verb sees all plugins.

The exit status is 0 for success, 1 when `checkpoint verify` finds a step that is not whole, 2 for an error
that you can cure (printed as `error: ...`, with its origin and a hint, without a traceback) and 130 after
Ctrl-C.

```console
$ hekaton --help
"""

# In a run, the same as `hekaton train FILE [flags]`, for torchrun to start.
TORCHRUN = """\
## torchrun

`torchrun ... -m hekaton.train --job.config_file FILE [flags]` is `hekaton train FILE [flags]` on many
processes:

```bash
torchrun --standalone --nproc_per_node 2 -m hekaton.train --job.config_file my_run.toml --training.steps 20
```

`python -m hekaton.launch` takes the options of torchrun. It leaves out torchrun's own report where a process
has said what is wrong, and ends with that process's exit status. Signals are passed on to the processes,
which have `--stop_seconds` (630) to save and to end. `./run_train.sh` of the repository uses it, and sets up
the environment on first use.
"""

ENVIRONMENT = """\
## Environment variables

| variable | read by | meaning |
| --- | --- | --- |
| `HEKATON_DISABLE` | every verb | names of plugins to leave out, separated by commas |
| `LOG_RANK` | `train` | ranks whose messages are shown, separated by commas; 0 when not set |
| `HF_TOKEN`, `HF_ENDPOINT` | `download` | token for the Hugging Face Hub; another server in its place |
| `NGPU` | `run_train.sh` | processes on this machine; when not set all GPUs, or 1 without one |
| `CONFIG_FILE` | `run_train.sh` | the TOML file; when not set the Llama 3 debug model's |
"""


def page() -> str:
    parts = [f"{INTRODUCTION}{help_of([])}\n```"]
    for verb in plugins().all(Command):
        text, *flags = help_of([verb]).partition("\n[")
        parts.append(f"## hekaton {verb}\n\n```console\n$ hekaton {verb} --help\n{text.rstrip()}\n```")
        if any(flags):
            parts.append("The flags follow: every field of the [configuration](configuration.md).")
    parts += [TORCHRUN, ENVIRONMENT]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def help_of(arguments: list[str]) -> str:
    """What ``hekaton ARGUMENTS --help`` prints, on a terminal of 100 columns without colours."""
    environment = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"}
    environment |= {"COLUMNS": "100", "NO_COLOR": "1", DISABLE_VARIABLE: ",".join(third_party_plugins())}
    command = [sys.executable, "-m", "hekaton", *arguments, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())
