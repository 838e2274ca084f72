"""The code that a run is made of: versions of what contributes to it, and the source of its plugins.

A distribution that is installed editable changes without a new version, so source is compared by its content.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterator, Mapping

import xxhash
from packaging.markers import Marker
from packaging.utils import canonicalize_name

from hekaton.contributions import Ref
from hekaton.data.identity import FileState
from hekaton.plugins import CONTRIBUTION_HOOKS, Plugins

CORE = "hekaton"

_NAME = re.compile(r"[A-Za-z0-9._-]+")

COMPUTES_NOTHING = {
    "filelock": "it keeps processes from writing the same index",
    "fsspec": "it carries the bytes of checkpoints, which have checksums",
    "huggingface-hub": "it downloads files, whose content is compared",
    "mlflow-skinny": "it sends logs",
    "pluggy": "it calls hooks, whose results are compared",
    "pydantic": "it checks the configuration, whose values are compared",
    "rich": "it draws on the terminal",
    "s3fs": "it carries the bytes of checkpoints, which have checksums",
    "tensorboard": "it writes logs",
    "tomli": "it reads the configuration, whose values are compared",
    "tomli-w": "it writes the configuration beside the run",
    "packaging": "it compares versions",
    "wandb": "it sends logs",
}
"""Distributions that may have other versions on other machines, with a notice, and why."""


COMPUTES_FOR_TORCH = ("nvidia-", "cuda-", "triton", "pytorch-triton")
"""What names of distributions begin with that torch requires and computes or communicates with: its own
version says nothing of the cuBLAS, cuDNN and NCCL that are there."""
SOURCE_SUFFIXES = frozenset(
    {".py", ".json", ".toml", ".yaml", ".yml", ".csv", ".txt", ".jinja", ".cu", ".cuh", ".cpp", ".h"}
)
"""Files of a package that are its source. What is compiled on each machine may have other bytes on each."""


def versions(plugins: Plugins) -> dict[str, str]:
    """Versions of Python, torch, and every distribution that contributes something or is required by one."""
    found = {"Python": platform.python_version()}
    for name in _distributions(plugins):
        version = version_of(name)
        if version:
            found[name] = version
    return found


def imported_versions(plugins: Plugins) -> dict[str, str]:
    """Versions of what contributing distributions require as an extra, as far as this process has imported
    it: what a run does not use may be anything."""
    found = {}
    optional = {one for contributing in _contributing(plugins) for one in _optional(contributing)}
    for name in sorted(optional):
        version = version_of(name) if name.replace("-", "_") in sys.modules else ""
        if version and not is_notice(name):
            found[name] = version
    return found


def version_of(distribution: str) -> str:
    """The version of a distribution; empty where it is not installed."""
    return _header(distribution)[0]


def is_notice(name: str) -> bool:
    """Whether another version of it on another machine is no more than a notice."""
    return canonicalize_name(name) in COMPUTES_NOTHING


def source(plugins: Plugins) -> dict[str, str]:
    """Digest of each source file, by its path from the package on, of the core and of what contributes.

    Of a plugin these are the packages of its own module and of all that its records name, and packages of
    distributions that it requires and that require hekaton themselves. What they import from elsewhere is a
    matter of :mod:`hekaton.identity.imported`.
    """
    found = {}
    for name in sorted(packages(plugins)):
        for file, path in _files_of(name):
            found[file] = digest(path)
    return found


def by_package(files: Mapping[str, str]) -> dict[str, str]:
    """One digest for each package, or module that is none."""
    digests: dict[str, xxhash.xxh3_64] = {}
    for file, digest in sorted(files.items()):
        package = file.partition("/")[0].removesuffix(".py")
        digests.setdefault(package, xxhash.xxh3_64()).update(f"{file} {digest}\n".encode())
    return {package: digest.hexdigest() for package, digest in digests.items()}


def _distributions(plugins: Plugins) -> list[str]:
    contributing = _contributing(plugins)
    required = {one for name in contributing for one in _requirements(name)}
    of_torch = {name for name in _requirements("torch") if name.startswith(COMPUTES_FOR_TORCH)}
    return sorted({"torch", *contributing, *required, *of_torch})


def _contributing(plugins: Plugins) -> set[str]:
    taking_part = [info for info in plugins.infos if info.status == "ok" and info.distribution]
    return {canonicalize_name(info.distribution) for info in taking_part} | {CORE}


def _requirements(distribution: str) -> frozenset[str]:
    """Names of what a distribution requires in any case, without extras."""
    return _required(distribution)[0]


def _optional(distribution: str) -> frozenset[str]:
    """Names of what a distribution requires as an extra only."""
    return _required(distribution)[1]


@functools.cache
def _required(distribution: str) -> tuple[frozenset[str], frozenset[str]]:
    always, extra = set(), set()
    for line in _header(distribution)[1]:
        name, _, marker = line.partition(";")
        match = _NAME.match(name)
        if match is None:
            continue
        if "extra" in marker:
            extra.add(canonicalize_name(match[0]))
        elif not marker or Marker(marker.strip()).evaluate():
            always.add(canonicalize_name(match[0]))
    return frozenset(always), frozenset(extra - always)


@functools.cache
def _header(distribution: str) -> tuple[str, tuple[str, ...]]:
    """Version and requirements of a distribution, from the top of its metadata: the description below is
    long."""
    try:
        text = importlib.metadata.distribution(distribution).read_text("METADATA")
    except importlib.metadata.PackageNotFoundError:
        return "", ()
    if text is None:  # installed by an old tool, or without a file of its own
        return importlib.metadata.version(distribution), ()
    fields = [line.partition(": ") for line in text.partition("\n\n")[0].splitlines()]
    version = next((value for name, _, value in fields if name == "Version"), "")
    return version, tuple(value for name, _, value in fields if name == "Requires-Dist")


def packages(plugins: Plugins) -> set[str]:
    """The top-level packages and modules whose source is compared, whether they have been imported or not."""
    from_files = {info.name for info in plugins.infos if info.status == "ok" and not info.distribution}
    return distributed_packages(plugins) | from_files | set(_named_by_records(plugins))


def distributed_packages(plugins: Plugins) -> set[str]:
    """Those of the core and of plugins that are installed, whose distributions say what they require."""
    found = {CORE}
    for info in plugins.infos:
        if info.status == "ok" and info.distribution:
            required = _requirements(info.distribution)
            found |= {one.replace("-", "_") for one in required if CORE in _requirements(one)}
            found.add(info.module.partition(":")[0].partition(".")[0])
    return found


def _named_by_records(plugins: Plugins) -> Iterator[str]:
    for kind in CONTRIBUTION_HOOKS.values():
        for contributed in plugins.all(kind).values():
            for value in vars(contributed.record).values():
                if isinstance(value, Ref):
                    yield value.target.partition(":")[0].partition(".")[0]


def _files_of(package: str) -> Iterator[tuple[str, str]]:
    """The source files of a top-level package or module: name from the package on, and path."""
    module = sys.modules.get(package)
    spec = module.__spec__ if module is not None else importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return
    if not spec.submodule_search_locations:
        yield f"{package}.py", spec.origin
        return
    for root in spec.submodule_search_locations:
        for folder, subfolders, names in os.walk(root):
            subfolders[:] = sorted(name for name in subfolders if name != "__pycache__")
            inside = package + folder.removeprefix(root).replace(os.sep, "/")
            for name in sorted(names):
                if os.path.splitext(name)[1] in SOURCE_SUFFIXES:
                    yield f"{inside}/{name}", os.path.join(folder, name)


def digest(path: str) -> str:
    """Of a file's content."""
    try:
        state = FileState.of(os.stat(path))
        before = _digests.get(path)
        if before is None or before[0] != state:
            with open(path, "rb", buffering=0) as file:
                before = _digests[path] = (state, xxhash.xxh3_64(file.read()).hexdigest())
        return before[1]
    except OSError as error:  # removed, or no longer readable, after it was imported
        return error.strerror or "not readable"


_digests: dict[str, tuple[FileState, str]] = {}
"""Of files as they were when they were read: the handshake and what checkpoints keep both ask."""
