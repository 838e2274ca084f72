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
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import xxhash
from packaging.markers import Marker
from packaging.utils import canonicalize_name

from hekaton.contributions import Ref
from hekaton.data.identity import FileState
from hekaton.plugins import CONTRIBUTION_HOOKS, Plugins

CORE = "hekaton"

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_STDLIB = sysconfig.get_path("stdlib") + os.sep

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


def versions(plugins: Plugins) -> dict[str, str]:
    """Versions of Python, torch, and every distribution that contributes something or is required by one."""
    found = {"Python": platform.python_version()}
    for name in _distributions(plugins):
        version = version_of(name)
        if version:
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
    distributions that it requires and that require hekaton themselves. Of one that is loaded from a file
    also the modules beside it that have been imported.
    """
    found = {}
    for name in sorted({CORE, *_packages(plugins)}):
        for file, path in _files_of(name):
            found[file] = _digest(path)
    for info in plugins.infos:
        if info.status == "ok" and not info.distribution:
            for file, path in _beside(info.name, info.module):
                found[file] = _digest(path)
    return found


def by_package(files: Mapping[str, str]) -> dict[str, str]:
    """One digest for each package, or module that is none."""
    digests: dict[str, xxhash.xxh3_64] = {}
    for file, digest in sorted(files.items()):
        package = file.partition("/")[0].removesuffix(".py")
        digests.setdefault(package, xxhash.xxh3_64()).update(f"{file} {digest}\n".encode())
    return {package: digest.hexdigest() for package, digest in digests.items()}


def _distributions(plugins: Plugins) -> list[str]:
    taking_part = [info for info in plugins.infos if info.status == "ok" and info.distribution]
    contributing = {canonicalize_name(info.distribution) for info in taking_part} | {CORE}
    required = {one for name in contributing for one in _requirements(name)}
    return sorted({"torch", *contributing, *required})


@functools.cache
def _requirements(distribution: str) -> frozenset[str]:
    """Names of what a distribution requires in any case, without extras."""
    found = set()
    for line in _header(distribution)[1]:
        name, _, marker = line.partition(";")
        if marker and ("extra" in marker or not Marker(marker.strip()).evaluate()):
            continue
        match = _NAME.match(name)
        if match:
            found.add(canonicalize_name(match[0]))
    return frozenset(found)


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


def _packages(plugins: Plugins) -> Iterator[str]:
    for info in plugins.infos:
        if info.status != "ok":
            continue
        yield info.module.partition(":")[0].partition(".")[0] if info.distribution else info.name
        for required in _requirements(info.distribution) if info.distribution else ():
            if CORE in _requirements(required):
                yield required.replace("-", "_")
    for kind in CONTRIBUTION_HOOKS.values():
        for contributed in plugins.all(kind).values():
            for field in fields(contributed.record):
                value = getattr(contributed.record, field.name)
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
            subfolders.sort()
            inside = Path(package, os.path.relpath(folder, root)).as_posix()
            for name in sorted(names):
                if name.endswith(".py"):
                    yield f"{inside}/{name}", os.path.join(folder, name)


def _beside(plugin: str, target: str) -> Iterator[tuple[str, str]]:
    module = sys.modules.get(plugin)
    file = getattr(module, "__file__", None)
    if file is None or not target.endswith(".py"):
        return
    root = Path(file).resolve().parent
    installed = [Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()]
    for path in sorted(_loaded_below(root)):
        if not any(one in path.parents and one not in root.parents for one in installed):
            yield path.relative_to(root).as_posix(), str(path)


def _loaded_below(root: Path) -> set[Path]:
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    # Most are of libraries, and resolving a path costs a system call for each of its parts.
    sources = (file for file in files if isinstance(file, str) and file.endswith(".py"))
    own = (_resolved(file) for file in sources if not (_installed(file) or file.startswith(_STDLIB)))
    return {path for path in own if root in path.parents and not _installed(str(path))}


@functools.cache
def _resolved(file: str) -> Path:
    return Path(file).resolve()


def _installed(file: str) -> bool:
    return f"{os.sep}site-packages{os.sep}" in file


def _digest(path: str) -> str:
    try:
        return _digest_of(path, FileState.of(os.stat(path)))
    except OSError as error:  # removed, or no longer readable, after it was imported
        return error.strerror or "not readable"


@functools.lru_cache(maxsize=4096)
def _digest_of(path: str, state: FileState) -> str:
    """Read once a process: the handshake and the identity that checkpoints keep both ask."""
    return xxhash.xxh3_64(Path(path).read_bytes()).hexdigest()
