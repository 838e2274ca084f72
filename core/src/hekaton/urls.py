"""Files and folders behind a URL (``s3://``, ``memory://``, ...), through fsspec.

No torch, and fsspec only once there is a URL.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from hekaton.errors import ConfigError, choices_hint

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem  # type: ignore[import-untyped]

_EXTRAS = {"s3": "s3", "s3a": "s3"}


def is_url(location: str) -> bool:
    return "://" in location


def check_url(url: str) -> None:
    """:raises ConfigError: when no file system is known for the URL, or its package is not installed."""
    import fsspec
    from fsspec.utils import get_protocol  # type: ignore[import-untyped]

    protocol = get_protocol(url)
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError:
        raise ConfigError(
            f"'{url}': fsspec knows no file system '{protocol}'",
            hint=choices_hint(protocol, fsspec.available_protocols()),
        ) from None
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        raise ConfigError(
            f"'{url}': the package for {protocol}:// is not installed",
            hint=f"pip install 'hekaton[{extra}]'" if extra else str(error),
        ) from error


@dataclass(frozen=True)
class UrlPath:
    """A file or folder behind a URL, with as much of :class:`pathlib.Path` as checkpoints need.

    What the store refuses is an :class:`OSError`, whichever errors its own package has.
    """

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> UrlPath:
        return UrlPath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> UrlPath:
        return UrlPath(self.url.rpartition("/")[0])

    def open(self, mode: str = "rb") -> IO[bytes]:
        with self._store() as (store, path):
            return store.open(path, mode)  # type: ignore[no-any-return]

    def write_whole(self, data: bytes) -> None:
        """Write a file that has all of its content or is not there: a plain ``file://`` has no such write."""
        with self._store() as (store, path):
            temporary = f"{path}.{secrets.token_hex(4)}.tmp"
            try:
                store.pipe_file(temporary, data)
                store.mv(temporary, path)
            except BaseException:
                with contextlib.suppress(OSError):  # it may not be there
                    store.rm_file(temporary)
                raise

    def size(self) -> int:
        with self._store() as (store, path):
            return int(store.info(path)["size"] or 0)

    def file_size(self) -> int:
        """:raises OSError: when it is not a regular file."""
        with self._store() as (store, path):
            info = store.info(path)
        if info["type"] != "file":
            raise OSError(errno.EINVAL, "it is not a regular file", self.url)
        return int(info["size"] or 0)

    def is_dir(self) -> bool:
        # By info: fsspec's own isdir and exists take any error for absence.
        with self._store() as (store, path):
            return bool(store.info(path)["type"] == "directory")

    def is_symlink(self) -> bool:
        """Whether it is a link on a disk: stores have none."""
        with self._store() as (store, path):
            return bool(store.info(path).get("islink"))

    def iterdir(self) -> Iterator[UrlPath]:
        return (self / name for name, _ in self._entries())

    def files(self) -> dict[str, int]:
        """The files of a folder, and their sizes in bytes."""
        return {name: int(entry["size"]) for name, entry in self._entries() if entry["type"] == "file"}

    def _entries(self) -> list[tuple[str, dict[str, Any]]]:
        with self._store() as (store, path):
            entries = store.ls(path, detail=True)
        return [(entry["name"].rstrip("/").rpartition("/")[2], entry) for entry in entries]

    def mkdir(self, parents: bool = True, exist_ok: bool = False) -> None:
        with self._store() as (store, path):
            store.makedirs(path, exist_ok=exist_ok)

    def unlink(self, missing_ok: bool = False) -> None:
        with self._store() as (store, path):
            try:
                store.rm_file(path)
            except FileNotFoundError:
                if not missing_ok:
                    raise

    def remove_tree(self) -> None:
        with self._store() as (store, path), contextlib.suppress(FileNotFoundError):
            store.rm(path, recursive=True)

    def copy_files(self, target: UrlPath, *, last: str) -> None:
        """Copy the files of a folder within the store, the one named ``last`` after all others."""
        names = self.files()
        with self._store() as (store, path), target._store() as (_, target_path):
            store.makedirs(target_path, exist_ok=True)
            for name in sorted(names, key=lambda name: (name == last, name)):
                store.cp_file(f"{path}/{name}", f"{target_path}/{name}")

    @contextlib.contextmanager
    def _store(self) -> Iterator[tuple[AbstractFileSystem, Any]]:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        try:
            store, path = url_to_fs(self.url)
            store.invalidate_cache()  # other processes write there too
            yield store, path
        except OSError:
            raise
        except Exception as error:  # each backend has errors of its own
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
