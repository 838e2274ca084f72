"""YAML files of tasks and groups that a user names by path."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from hekaton.errors import ConfigError

ENDINGS = (".yaml", ".yml")
_READERS = ("json", "csv", "parquet", "arrow", "text", "pandas", "xml")
"""Kinds of files that are read as a dataset."""


def content(file: Path) -> Mapping[str, Any]:
    """What a file says, with what it includes and without the functions that it names.

    :raises ConfigError: for a file that is not there.
    """
    if not file.is_file():
        raise ConfigError(f"there is no task file '{file}'")
    found: Mapping[str, Any] = load_yaml(file, resolve_func=False)
    return found


def is_group(config: Mapping[str, Any]) -> bool:
    return "group" in config and "class" not in config


def named(config: Mapping[str, Any]) -> Iterator[str]:
    """Tasks and groups that a group's file names and does not describe."""
    for _, name in _members(config):
        if name is not None:
            yield name


def is_local(config: Mapping[str, Any]) -> bool:
    """Whether all data of a task or group are files, of which the Hub is not asked."""
    members = _members(config) if is_group(config) else [(config.get("dataset_path"), None)]
    return all(name is None and path in _READERS for path, name in members)


def add_group(config: Mapping[str, Any], file: Path, manager: TaskManager) -> str:
    """Make a group known to the harness, which reads one of a path only where it has no tasks of its own.

    :returns: its name.
    :raises ConfigError: for one that names what there is not.
    """
    name = config["group"]
    if not isinstance(name, str):
        raise ConfigError(f"'{file}': group = {name!r}: a name was expected")
    for one in named(config):
        if one not in manager.task_index:
            near = difflib.get_close_matches(one, manager.all_tasks, n=3)
            meant = f"did you mean {', '.join(near)}?\n" if near else ""
            raise ConfigError(
                f"group '{name}' in '{file}' names '{one}', and there is no such task",
                hint=f"{meant}describe it in the group's file, or say --include_path FOLDER with its file "
                "(in a run: [evaluation] include_path)",
            )
    manager.task_index.pop(name, None)
    TaskIndex.process_cfg(dict(config), file.resolve(), manager.task_index)
    return name


def _members(group: Mapping[str, Any], path: Any = None) -> Iterator[tuple[Any, str | None]]:
    """Of each task of a group its dataset, and its name where it is not described.

    :param path: of the dataset, where the group is in another one that says it.
    """
    path = group.get("dataset_path", path)
    members = group.get("task")
    for member in members if isinstance(members, list) else ():
        if not isinstance(member, Mapping):
            yield path, None if path is not None else str(member)
        elif isinstance(member.get("task"), list):
            yield from _members(member, path)
        else:
            own = member.get("dataset_path", path)
            yield own, None if own is not None else str(member.get("task", member.get("group")))
