"""Steps on disk, for people to look at: what is there, whether it is whole, and what is in it.

Nothing is changed, nothing is loaded, and no file can run code.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

from hekaton.checkpoint.disk.folders import Folder, folder_at, is_there, read_file, reason_of
from hekaton.checkpoint.disk.manifest import (
    MANIFEST,
    METADATA,
    MODEL,
    Manifest,
    NotWhole,
    check_contents,
    check_sizes,
    check_step,
    read_metadata,
    stored_in,
)
from hekaton.checkpoint.disk.step_folders import StepFolders, read_manifest, step_of
from hekaton.checkpoint.disk.stored import dtypes
from hekaton.errors import CheckpointError
from hekaton.identity.history import Change, history_in
from hekaton.paths import expanded
from hekaton.urls import check_url, is_url

CONFIG = "config.toml"
_MAX_CONFIG = 2**24
_DEFAULT_FOLDER = "checkpoint"  # as [checkpoint] folder has it
_READERS = 4


@dataclass(frozen=True)
class ListedStep:
    """A step folder, as far as it shows without reading its tensors."""

    folder: Folder
    number: int | None
    """From the folder's name; ``None`` for a folder of another name."""
    manifest: Manifest | None
    wrong: str
    """Why it is not whole; empty where nothing was found."""
    external: bool
    """It has tensors and no manifest: another tool wrote it, or saving it was cut short at the very end."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def status(self) -> str:
        if self.wrong:
            return "not whole"
        assert self.manifest is not None
        return "good" if self.manifest.good else "not good"

    @property
    def model_only(self) -> bool:
        """No run resumes from it; others start from it."""
        return self.manifest is not None and self.manifest.parts == (MODEL,)

    def described(self, key: str) -> Any:
        """``model``, ``flavor``, ``layout`` or ``config`` of the run that saved it; ``None`` if not known."""
        describe = self.manifest.describe if self.manifest else None
        return describe.get(key) if isinstance(describe, Mapping) else None


def find_steps(location: str) -> list[ListedStep]:
    """The steps that a path or URL means, oldest first.

    :param location: one step folder, a checkpoint folder, or the dump folder of a run, which has its steps in
        ``checkpoint`` or where its ``config.toml`` says.
    :raises CheckpointError: when there is none, or it cannot be read.
    :raises ConfigError: for a URL of an unknown kind, or whose package is not installed.
    """
    if is_url(location):
        check_url(location)
    try:
        path = folder_at(location)
        if any(is_there(path / name) for name in (MANIFEST, METADATA)):
            return [look_at(path)]
        found = StepFolders(path).found() or StepFolders(_folder_of_run(path)).found()
        if found:
            return [look_at(folder) for folder in found.values()]
        if step_of(path) is not None and is_there(path):
            return [look_at(path)]
        there = is_there(path)
    except OSError as error:
        raise CheckpointError(f"cannot read '{location}': {reason_of(error)}") from error
    raise CheckpointError(
        f"no checkpoint in '{location}'" if there else f"there is no '{location}'",
        hint="give a folder of steps step-N, a run's dump folder, or one step folder",
    )


def config_of_run(folder: Folder) -> dict[str, Any]:
    """The resolved configuration that a run wrote into its folder, as tables; empty where there is none.

    :raises CheckpointError: when it cannot be read.
    """
    file = folder / CONFIG
    try:
        return tomllib.loads(read_file(file, limit=_MAX_CONFIG).decode())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"cannot read '{file}': {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read '{file}': {error}") from error


def _folder_of_run(folder: Folder) -> Folder:
    """Where a run of this dump folder has its steps: by default, and where its configuration cannot be read,
    in ``checkpoint``.

    :raises CheckpointError: when that is behind a URL, which is not followed, or no path.
    """
    try:
        section = config_of_run(folder).get("checkpoint")
    except CheckpointError:
        section = None
    name = str(section.get("folder", _DEFAULT_FOLDER)) if isinstance(section, dict) else _DEFAULT_FOLDER
    if is_url(name):
        raise CheckpointError(f"the run in '{folder}' has its steps at {name}", hint="give that URL")
    try:
        return folder / expanded(name)
    except ValueError as error:
        raise CheckpointError(f"checkpoint.folder in '{folder / CONFIG}': {error}") from error


def look_at(folder: Folder) -> ListedStep:
    """Look at one step folder: its manifest, and which files there are.

    :raises OSError: when that cannot be determined.
    """
    number = step_of(folder)
    external = not is_there(folder / MANIFEST) and is_there(folder / METADATA)
    if external:
        wrong = f"it has no {MANIFEST}: another tool wrote it, or saving was interrupted"
        return ListedStep(folder, number, None, wrong, external)
    manifest, wrong = None, ""
    try:
        manifest = read_manifest(folder)
        check_step(folder, manifest, number)
    except NotWhole as reason:
        wrong = str(reason)
    return ListedStep(folder, number, manifest, wrong, external)


def verify(step: ListedStep, advance: Callable[[int], None] | None = None) -> list[str]:
    """Read every file of a step through, and say everything that is wrong with it.

    :param advance: called with the number of bytes that were read since the last call, from several threads.
    """
    manifest = step.manifest
    if manifest is None:
        return [step.wrong]

    def check(name: str) -> str | None:
        try:
            check_sizes(step.folder, {name: manifest.files[name]})
        except NotWhole as reason:
            return str(reason)
        return check_contents(step.folder, manifest.files, [name], advance)

    with ThreadPoolExecutor(_READERS) as threads:
        problems = [step.wrong, *threads.map(check, manifest.files)]
    wrong = list(dict.fromkeys(problem for problem in problems if problem))
    if not wrong:
        try:
            # Other tools go by it, where we go by the manifest.
            tensors = read_metadata(step.folder, manifest.files)
            if tensors != stored_in(step.folder, manifest):
                raise NotWhole(f"{METADATA} describes other tensors than {MANIFEST}")
        except NotWhole as reason:
            wrong.append(str(reason))
    return wrong


def history_of(step: ListedStep) -> list[Change]:
    """What changed at the resumes of the run before a step, oldest first."""
    return history_in(step.manifest.describe) if step.manifest else []


@dataclass(frozen=True)
class Tensor:
    """A tensor of a step."""

    name: str
    """Its key on disk."""
    part: str
    """``model``, ``optimizer``, ...; empty where no manifest says which parts there are."""
    shape: tuple[int, ...]
    dtype: str
    size: int
    """Bytes."""


def tensors_of(step: ListedStep) -> list[Tensor]:
    """Read the names, shapes and dtypes of a step's tensors; no tensor itself.

    What is not a tensor, in a folder that another tool wrote, is left out.

    :raises NotWhole: when the metadata is missing, damaged or hostile.
    """
    from hekaton.checkpoint.tensors.comparison import part_of
    from hekaton.checkpoint.tensors.external import manifest_elsewhere

    parts: tuple[str, ...] = ()
    if step.manifest is not None:
        parts = step.manifest.parts
        tensors = stored_in(step.folder, step.manifest)
    else:
        files = manifest_elsewhere(step.folder).files
        tensors = read_metadata(step.folder, files, leave_out_others=True)
    return [
        Tensor(
            name,
            part_of(name, parts) if parts else "",
            tensor.shape,
            tensor.dtype,
            prod(tensor.shape) * dtypes()[tensor.dtype].itemsize,
        )
        for name, tensor in tensors.items()
    ]
