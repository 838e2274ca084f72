"""The command: a verb of ``hekaton``. It imports what is heavy when it needs it."""

from __future__ import annotations

from hekaton.errors import ConfigError

USAGE = """\
usage: hekaton template_command FILE [FILE...] [flags]

Print which model and which data a run reads."""


def run(arguments: list[str]) -> int:
    """:param arguments: those after the verb; :returns: the exit status."""
    if set(arguments) & {"-h", "--help"}:
        print(USAGE)
        return 0
    if not arguments:
        raise ConfigError("hekaton template_command needs a FILE", hint=USAGE.splitlines()[0])
    from hekaton.config import load
    from hekaton.config.flags import split_files

    config = load(*split_files(arguments)).config
    print(f"{config.model.name} {config.model.flavor} reads {config.training.dataset}")
    return 0
