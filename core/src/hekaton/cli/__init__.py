"""The ``hekaton`` command: finds the verb among the plugins, runs it, and prints errors for people.

Nothing here imports torch, pydantic or rich: the verbs do, as they need them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from hekaton import __version__
from hekaton.contributions import Command
from hekaton.environment import among_others
from hekaton.errors import INTERRUPTED, ConfigError, HekatonError, RaisedElsewhere, choices_hint
from hekaton.failures.exits import exits_are_errors
from hekaton.plugins import CORE_PLUGIN, Contributed, Plugins

PIPE_CLOSED = 141
FIRST_PRINTS = 15.0
"""Seconds that the other processes of a node leave its first one to print an error that all of them have."""
ALL_PRINT = 2.0
"""The same, where all ranks raise it in the same moment."""
PLUGIN_FLAGS = ("--plugins.load", "--plugins.disable")


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``hekaton ARGV`` and return its exit status.

    0 for success, 2 for an error that the user can cure (printed without a traceback), 75 for a run that a
    signal ended after a save (start it again), 130 for what a signal ended without one. What is nobody's to
    cure but ours is raised.

    :param argv: the arguments after ``hekaton``; by default those of the process.
    """
    try:
        arguments = list(sys.argv[1:] if argv is None else argv)
        with _answering_signals(arguments):
            status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except HekatonError as error:
        report(error)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        if not _nobody_reads_stdout():
            raise
        _forget_stdout()
        return PIPE_CLOSED
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        _forget_stdout()
        where = f"'{error.filename}'" if error.filename else "standard output, or a file"
        report(HekatonError(f"cannot write {where}: {error.strerror}"))
        return 2


def report(error: HekatonError) -> None:
    """Print an error on stderr.

    In a distributed run, what was raised before the process group existed is mostly the same on every rank of
    a node and is printed by its first one. torchrun ends the others as soon as one has ended, so they give
    the first the time to print; one that is still there after that has an error of its own, and prints it
    with its number in front, as every rank does once there is a process group. What all ranks are known to
    raise is printed by the first one of each node alone.
    """
    if not str(error):
        return
    if isinstance(error, RaisedElsewhere):
        print(f"error: {error}", file=sys.stderr, flush=True)
        return
    if error.everywhere:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(ALL_PRINT)
            return
        error.rank = None
    prefix = "" if error.rank is None else f"rank {error.rank}: "
    if error.rank is None and among_others() and os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(FIRST_PRINTS)
        prefix = f"rank {os.environ.get('RANK', os.environ['LOCAL_RANK'])}: "
    print(f"{prefix}error: {error}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class PluginFlags:
    """What a command line says about plugins themselves."""

    load: Sequence[str] = ()
    disable: Sequence[str] = ()

    def discover(self) -> Plugins:
        return Plugins.discover(load=self.load, disable=self.disable)


def plugin_flags(arguments: Sequence[str]) -> tuple[PluginFlags, list[str]]:
    """Take ``--plugins.load`` and ``--plugins.disable`` out of a command line.

    Both are lists (``a,b``), may be repeated, and take their value as ``--flag value`` or ``--flag=value``.

    :returns: the flags, and the other arguments.
    :raises ConfigError: for a flag without its value.
    """
    values: dict[str, list[str]] = {flag: [] for flag in PLUGIN_FLAGS}
    others = []
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, value = argument.partition("=")
        if flag not in values:
            others.append(argument)
            continue
        if not equals:
            value = next(remaining, "")
        if not value or value.startswith("--"):
            raise ConfigError(f"{flag} needs a value")
        values[flag] += value.split(",")
    load, disable = (values[flag] for flag in PLUGIN_FLAGS)
    return PluginFlags(load, disable), others


def _dispatch(arguments: list[str]) -> int:
    flags, _ = plugin_flags(arguments)
    leading, rest = _split_at_verb(arguments)
    if rest and rest[0] == "--version":
        print(f"hekaton {__version__}")
        return 0
    if rest and rest[0].startswith("-") and rest[0] not in ("-h", "--help"):
        raise ConfigError(
            f"unknown option '{rest[0]}' before the verb",
            hint=choices_hint(rest[0], ["--help", "--version", *PLUGIN_FLAGS])
            + "\nflags of a run come after its verb: hekaton train FILE [flags]",
        )
    plugins = flags.discover()
    if not rest or rest[0] in ("-h", "--help"):
        print(_usage(plugins))
        return 0
    verb = rest[0]
    command = plugins.get(Command, verb)
    own = plugins.all(Command)[verb].plugin.name == CORE_PLUGIN
    if not own:
        # The core's verbs check for themselves: a TOML file may disable what clashes, and `plugins` shows it.
        plugins.check()
    with exits_are_errors() if own else contextlib.nullcontext():
        status: int = command.run.function()([*rest[1:], *leading])
    return status


def _answering_signals(arguments: list[str]) -> contextlib.AbstractContextManager[None]:
    """Training answers signals, also those that come while plugins are looked for."""
    _, rest = _split_at_verb(arguments)
    if rest[:1] != ["train"]:
        return contextlib.nullcontext()
    from hekaton.stop_signals import signals_wait

    return signals_wait()


def _split_at_verb(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The plugin flags in front of the verb (the verb gets them behind its own arguments), and the rest."""
    start = 0
    while start < len(arguments) and arguments[start].partition("=")[0] in PLUGIN_FLAGS:
        start += 1 if "=" in arguments[start] else 2
    return arguments[:start], arguments[start:]


def _usage(plugins: Plugins) -> str:
    commands = plugins.all(Command)
    width = max([len(name) for name in commands], default=0)
    verbs = [f"  {name:{width}}  {_summary(commands[name])}".rstrip() for name in commands]
    lines = [
        "usage: hekaton VERB [arguments]",
        "",
        "Pretrain large language models on PyTorch; every choice is a plugin.",
        "",
        "verbs ('hekaton VERB --help' explains one):",
        *verbs,
        "",
        "options:",
        "  -h, --help               print this",
        "  --version                print the version",
        "  --plugins.load NAME      also load this module, or this .py file, as a plugin",
        "  --plugins.disable NAME   leave this plugin out",
    ]
    if plugins.problems or any(info.status in ("broken", "incompatible") for info in plugins.infos):
        lines += ["", "Some plugins could not be loaded; 'hekaton plugins' says which and why."]
    return "\n".join(lines)


def _summary(command: Contributed[Command]) -> str:
    plugin = command.plugin
    if plugin.name == CORE_PLUGIN:
        return command.record.summary
    origin = f"{plugin.distribution} {plugin.version}" if plugin.distribution else plugin.module
    return f"{command.record.summary} (from {origin})".lstrip()


def _forget_stdout() -> None:
    """The interpreter flushes it once more at exit, and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _nobody_reads_stdout() -> bool:
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
