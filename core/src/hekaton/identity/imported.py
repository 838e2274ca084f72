"""What plugins and the user's own code have imported from elsewhere than packages that contribute something:
a file beside a plugin, a folder on ``PYTHONPATH``, a library that nobody says is required.

A module that lies in no folder of installed libraries is compared by its source; of an installed one that
such a module imports, the version of its distribution is. What a process imports may depend on its rank: one
that has not imported a module compares what it would import.
"""

from __future__ import annotations

import ast
import functools
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from pathlib import Path
from types import ModuleType

import xxhash
from packaging.utils import canonicalize_name

from hekaton.data.identity import FileState
from hekaton.identity import code
from hekaton.plugins import Plugins

_STDLIB = sysconfig.get_path("stdlib") + os.sep
_SITE, _DIST = f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}"
_SUFFIXES = (".py", ".pyc")
_looked_at: dict[str, tuple[ModuleType, bool]] = {}
"""Modules, and whether they are one's own: a process has thousands, and looks through them several times."""


def imported(plugins: Plugins) -> dict[str, str]:
    """Digests of sources, versions of distributions, and whether a module that is imported can be found."""
    everything = _own_modules()
    own = _without(code.distributed_packages(plugins), everything)
    packages = code.packages(plugins)
    of_own = {*packages, *map(_top, own.values())}
    versions = {canonicalize_name(name) for name in code.versions(plugins)}
    sources = _digests(_without(packages, everything))
    modules = {}
    imports = [_imports(module) for module in own.values()]
    at_once = {name for always, _ in imports for name in always}
    later = {name for _, later in imports for name in later}
    for name in sorted((at_once | later) - sys.stdlib_module_names):
        distribution = "" if name in of_own else _distribution_of(name)
        if distribution:
            counts = canonicalize_name(distribution) not in versions and not code.is_notice(distribution)
            if counts and (name in at_once or name in sys.modules):
                # Where functions import it, one machine may have it and need it, and another one not.
                kind = "module" if name in at_once else "version of"
                modules[f"{kind} {name}"] = f"{distribution} {code.version_of(distribution)}"
            continue
        spec = _spec_of(name)
        modules[f"module {name}"] = "not there" if spec is None else "there"
        if name not in of_own:
            parts = {
                one: module
                for one, module in list(sys.modules.items())
                if one.partition(".")[0] == name and _source_of(module) is not None
            }
            sources |= _digests(parts) if parts or spec is None else _digest_of_file(spec)
    return {f"source of {file}": digest for file, digest in sources.items()} | modules


def imported_source(plugins: Plugins) -> dict[str, str]:
    """Digest of each module of one's own that has been imported, by its path from the package on; without
    those that :func:`hekaton.identity.code.source` has."""
    return _digests(_without(code.packages(plugins), _own_modules()))


def _digests(modules: Mapping[str, ModuleType]) -> dict[str, str]:
    return {_file_name(module): _digest(module) for module in modules.values()}


def _own_modules() -> dict[str, ModuleType]:
    """Modules that have a source, in no folder of installed libraries."""
    own = {}
    for name, module in sys.modules.copy().items():
        before = _looked_at.get(name)
        if before is None or before[0] is not module:
            before = _looked_at[name] = (module, _is_own(module))
        if before[1]:
            own[name] = module
    return own


def _is_own(module: ModuleType) -> bool:
    file = _source_of(module)
    if file is None or _is_installed(file):
        return False
    whole = getattr(sys.modules.get(_top(module)), "__file__", None)
    # A namespace package has no file of its own: it is in as many folders as have something of it.
    return not (whole and _is_installed(whole))


def _without(packages: Iterable[str], modules: Mapping[str, ModuleType]) -> dict[str, ModuleType]:
    """The modules that are in none of some top-level packages; a namespace package is shared by several."""
    whole = {name for name in packages if getattr(sys.modules.get(name), "__file__", None)}
    return {name: module for name, module in modules.items() if _top(module) not in whole}


def _source_of(module: object) -> str | None:
    """The file that a module was made from, where there is one."""
    file = module.__dict__.get("__file__") if isinstance(module, ModuleType) else None
    return file if isinstance(file, str) and file.startswith(os.sep) and file.endswith(_SUFFIXES) else None


def _is_installed(file: str) -> bool:
    return _SITE in file or file.startswith(_STDLIB) or _DIST in file


def _spec_name(module: ModuleType) -> str:
    """The name that a module was found under, which of ``python -m`` is not ``__main__``."""
    return module.__name__ if module.__spec__ is None else module.__spec__.name


def _top(module: ModuleType) -> str:
    return _spec_name(module).partition(".")[0]


def _file_name(module: ModuleType) -> str:
    """Its path from the package on; of a script the name of its file."""
    file = Path(str(module.__file__))
    parts = _spec_name(module).split(".")
    if parts == ["__main__"]:
        return file.name
    return "/".join(
        [*parts, file.name] if file.stem == "__init__" else [*parts[:-1], parts[-1] + file.suffix]
    )


def _digest(module: ModuleType) -> str:
    file = str(module.__file__)
    read = getattr(module.__loader__, "get_data", None)
    if os.path.exists(file) or read is None:
        return code.digest(file)
    try:
        return xxhash.xxh3_64(read(file)).hexdigest()  # in an archive
    except OSError as error:
        return error.strerror or "not readable"


def _digest_of_file(spec: ModuleSpec) -> dict[str, str]:
    """Of a module that has not been imported."""
    if spec.origin is None or not spec.origin.endswith(_SUFFIXES):
        return {}
    module = module_from_spec(spec)
    return {_file_name(module): _digest(module)}


def _imports(module: ModuleType) -> tuple[frozenset[str], frozenset[str]]:
    """Top-level names that a module imports when it is imported, or tries to, and those that it may later."""
    file = str(module.__file__)
    try:
        return _imports_in(file, FileState.of(os.stat(file)))
    except (
        OSError,
        SyntaxError,
        ValueError,
        RecursionError,
    ):  # in an archive, removed, not a source, too deep
        return frozenset(), frozenset()


@functools.lru_cache(maxsize=4096)
def _imports_in(file: str, state: FileState) -> tuple[frozenset[str], frozenset[str]]:
    tree = ast.parse(Path(file).read_bytes())
    always = frozenset(_names(_run_by(tree.body, functions=False)))
    return always, frozenset(_names(_run_by(tree.body, functions=True))) - always


def _run_by(body: Iterable[ast.AST], *, functions: bool) -> Iterator[ast.AST]:
    """The statements that are run when a module is imported, and in its functions too."""
    waiting = list(body)
    while waiting:  # a recursion would end where Python's parser does not
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not functions:
            continue
        yield node
        if isinstance(node, ast.If) and _is_for_type_checkers(node.test):
            waiting += node.orelse
        else:
            inner = (ast.stmt, ast.ExceptHandler, ast.match_case)
            waiting += (child for child in ast.iter_child_nodes(node) if isinstance(child, inner))


def _is_for_type_checkers(test: ast.expr) -> bool:
    return any(
        "TYPE_CHECKING" in (getattr(one, "id", ""), getattr(one, "attr", "")) for one in ast.walk(test)
    )


def _names(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@functools.cache
def _distribution_of(name: str) -> str:
    """The distribution that a top-level module was installed with; empty where there is none."""
    if code.version_of(name):
        return name
    spec = _spec_of(name)
    if spec is None or spec.origin is None or not _is_installed(spec.origin):
        return ""
    file = Path(spec.origin)
    written = Path(name, file.name) if spec.submodule_search_locations else Path(file.name)
    # `importlib.metadata.packages_distributions()` reads ten times as long.
    for record in file.parents[len(written.parts) - 1].glob("*.dist-info/RECORD"):
        if f"\n{written.as_posix()},".encode() in b"\n" + record.read_bytes():
            return record.parent.name.partition("-")[0]
    return ""


def _spec_of(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except (ImportError, ValueError):  # also of a module that was made without one
        return None
