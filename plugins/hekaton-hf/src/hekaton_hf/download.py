"""``hekaton download``: a tokenizer, a configuration or weights from the Hugging Face Hub.

huggingface_hub by itself starts a file anew when a download was stopped. Here what has come stays beside the
file's place, is resumed by the next download, and the whole is compared with the checksum in the Hub's
listing.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hekaton.cli import plugin_flags
from hekaton.cli.arguments import VerbParser, as_path
from hekaton.errors import ConfigError, HekatonError, choices_hint

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

USAGE = """\
usage: hekaton download REPO --assets KIND[,KIND...] [--revision NAME] [--local_dir FOLDER] [--hf_token TOKEN]
       hekaton download REPO --all [...]
       hekaton download --repo_id REPO [...]

Download files of a model repository (meta-llama/Llama-3.1-8B) from the Hugging Face Hub. The same command
resumes a download that was stopped; files that are complete are kept.

  --assets KIND,...    what to download:
                         tokenizer    tokenizer.json and its configuration, tokenizer.model, vocabularies
                         config       config.json, generation_config.json
                         safetensors  the weights, and their index
                         index        only the index: which tensor is in which file
  --additional_patterns PATTERN ...
                       files of these names too, in whatever folder of the repository
  --all                every file of the repository
  --revision NAME      branch, tag or commit (main)
  --local_dir FOLDER   where the folder is made that is named after the repository (assets/hf)
  --hf_token TOKEN     for repositories that need one; when not given, the environment variable HF_TOKEN
                       or what `hf auth login` has stored

The flags are those of torchtitan's scripts/download_hf_assets.py, with dashes or underscores.
HF_ENDPOINT names another server than https://huggingface.co."""

KINDS = {
    "tokenizer": (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
    ),
    "config": ("config.json", "generation_config.json"),
    "safetensors": ("*.safetensors", "model.safetensors.index.json"),
    "index": ("model.safetensors.index.json",),
}
"""Kind -> patterns of file names, in whatever folder of the repository; as torchtitan names them."""

ALL = "all"
_LOGIN = "give a token of an account that may: --hf_token, HF_TOKEN or `hf auth login`"
_PIECE = 1 << 20


class DownloadError(HekatonError):
    """Something cannot be downloaded."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at one commit.

    ``checksum`` is hexadecimal: the SHA-256 of the content where ``is_lfs``, git's SHA-1 of it as a blob
    elsewhere.
    """

    name: str
    size: int
    checksum: str
    is_lfs: bool

    def is_at(self, path: Path) -> bool:
        """Whether the file at ``path`` is this one; reads it through if it has the size."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        digest = hashlib.sha256() if self.is_lfs else hashlib.sha1(b"blob %d\0" % self.size)
        with path.open("rb") as stream:
            while piece := stream.read(_PIECE):
                digest.update(piece)
        return digest.hexdigest() == self.checksum


def run(arguments: list[str]) -> int:
    """Run ``hekaton download ARGUMENTS``.

    :raises HekatonError: when a file cannot be had, or there is none of what was asked for.
    """
    _, words = plugin_flags(arguments)
    if not words or set(words) & {"-h", "--help"}:
        print(USAGE)
        return 0
    options = _parser().parse_args([_with_underscores(word) for word in words])
    if (
        options.repo is None and options.repo_id is None
    ):  # `--assets KIND REPO`: argparse takes both for kinds
        options.repo = next((word for word in options.assets if "/" in word), None)
        options.assets = [word for word in options.assets if word != options.repo]
    if (options.repo is None) == (options.repo_id is None):
        raise ConfigError("name one repository: OWNER/NAME, or --repo_id OWNER/NAME", hint=_usage())
    options.repo = options.repo or options.repo_id
    kinds = [kind for word in options.assets for kind in word.split(",") if kind]
    for kind in kinds:
        if kind not in KINDS:
            raise ConfigError(f"unknown kind of files '{kind}'", hint=choices_hint(kind, KINDS))
    patterns = {pattern: (pattern,) for pattern in options.additional_patterns}
    wanted = {kind: KINDS[kind] for kind in kinds} | patterns
    if options.all == bool(wanted):
        raise ConfigError("choose what to download: --assets or --all", hint=_usage())
    with _explained(options.repo, options.revision):
        files, folder = _download(options, wanted or {ALL: ("*",)})
    total = sum(file.size for file in files)
    print(f"{len(files)} file{'s' if len(files) > 1 else ''}, {_size(total)}, in {folder}:")
    for file in files:
        print(f"  {file.name}  {_size(file.size)}")
    print(f'in the TOML file of a run:\n  [model]\n  hf_assets_path = "{folder.as_posix()}"')
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = VerbParser("download", hint=_usage())
    parser.add_argument("repo", metavar="REPO", nargs="?")
    parser.add_argument("--repo_id")
    parser.add_argument("--assets", nargs="+", default=[])
    parser.add_argument("--additional_patterns", nargs="+", default=[])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--revision")
    parser.add_argument("--local_dir", type=as_path, default=Path("assets", "hf"))
    parser.add_argument("--hf_token")
    return parser


def _usage() -> str:
    return USAGE.split("\n\n")[0]


def _with_underscores(word: str) -> str:
    flag, equals, value = word.partition("=")
    return flag.replace("-", "_").replace("__", "--", 1) + equals + value if word.startswith("--") else word


def _download(
    options: argparse.Namespace, wanted: Mapping[str, Sequence[str]]
) -> tuple[list[RemoteFile], Path]:
    """Bring files to the disk.

    :param wanted: kind of files -> patterns of their names.
    :returns: the files, and the folder that they are in.
    """
    from huggingface_hub import HfApi, get_token

    token = options.hf_token or get_token() or ""
    if not token.isascii() or not token.isprintable() or " " in token:
        # The HTTP library would say so with the token in its words.
        raise ConfigError("the token for the Hub has characters that no token has", hint=_LOGIN)
    info = HfApi(token=options.hf_token).model_info(
        options.repo, revision=options.revision, files_metadata=True
    )
    files = _chosen([_remote(file) for file in info.siblings or []], wanted, options.repo)
    folder = options.local_dir / options.repo.rpartition("/")[2]
    _check_space(files, folder)
    for file in files:
        _fetch(file, folder / file.name, options.repo, info.sha or "main", options.hf_token)
    return files, folder


def _remote(file: RepoSibling) -> RemoteFile:
    checksum = file.lfs.sha256 if file.lfs else file.blob_id
    if file.size is None or not checksum:
        raise DownloadError(f"the server lists '{file.rfilename}' without size and checksum")
    return RemoteFile(file.rfilename, file.size, checksum, is_lfs=file.lfs is not None)


def _chosen(files: Sequence[RemoteFile], wanted: Mapping[str, Sequence[str]], repo: str) -> list[RemoteFile]:
    chosen: dict[str, RemoteFile] = {}
    for kind, patterns in wanted.items():
        of_kind = {
            file.name: file
            for file in files
            if any(fnmatchcase(PurePosixPath(file.name).name, pattern) for pattern in patterns)
        }
        if not of_kind:
            print(f"notice: {repo} has no files of the kind '{kind}'", file=sys.stderr)
        chosen |= of_kind
    if not chosen:
        names = ", ".join(file.name for file in files[:8]) + (", ..." if len(files) > 8 else "")
        raise DownloadError(
            f"'{repo}' has no file of the kind {' or '.join(wanted)}", hint=f"it has: {names or 'no files'}"
        )
    for name in chosen:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DownloadError(
                f"'{repo}' lists a file '{name}', which would lie outside the folder: refused"
            )
    return list(chosen.values())


def _check_space(files: Sequence[RemoteFile], folder: Path) -> None:
    missing = sum(file.size - _there(file, folder / file.name) for file in files)
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if missing > free:
        raise DownloadError(
            f"{_size(missing)} remain to be downloaded, and the disk of '{folder}' has {_size(free)} free"
        )


def _there(file: RemoteFile, path: Path) -> int:
    """Bytes of a file that need not be downloaded any more."""
    for candidate in (path, _partial(file, path)):
        if candidate.is_file():
            return min(candidate.stat().st_size, file.size)
    return 0


def _partial(file: RemoteFile, path: Path) -> Path:
    """Where the first part of a file waits for the rest; named after its checksum, for the rest must fit."""
    return path.with_name(f"{path.name}.{file.checksum[:12]}.incomplete")


def _fetch(file: RemoteFile, path: Path, repo: str, commit: str, token: str | None) -> None:
    """Download one file, from where an earlier attempt ended."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if file.is_at(path):
        return
    url = hf_hub_url(repo, file.name, revision=commit)
    location = get_hf_file_metadata(url, token=token).location
    headers = build_hf_headers(token=token)
    if urlsplit(location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # the location is signed, and the token not for others' eyes
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(file, path)
    if partial.is_file() and partial.stat().st_size > file.size:  # two downloads wrote to it
        partial.unlink()
    with partial.open("ab") as stream:
        http_get(
            location,
            stream,
            resume_size=stream.tell(),
            headers=headers,
            expected_size=file.size,
            displayed_filename=file.name,
        )
    if not file.is_at(partial):
        partial.unlink()
        raise DownloadError(
            f"the download of '{file.name}' is damaged: its checksum differs from the one that the Hub lists",
            hint="it was removed: repeat the command",
        )
    partial.replace(path)


@contextlib.contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises into one error that says what to do; none of them names the token."""
    from huggingface_hub import constants, errors

    endpoint = constants.ENDPOINT
    goes_on = "what was downloaded is kept: the same command resumes the download"
    try:
        yield
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"'{repo}' is gated: it may be read once its owner has agreed",
            hint=f"ask on {endpoint}/{repo}, then {_LOGIN}",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise DownloadError(
            f"there is no model '{repo}' on {endpoint}, or it is private", hint=f"if it is private, {_LOGIN}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise DownloadError(f"'{repo}' has no revision '{revision}'") from error
    except errors.OfflineModeIsEnabled as error:
        raise DownloadError(
            "nothing can be downloaded while HF_HUB_OFFLINE is set", hint="unset HF_HUB_OFFLINE"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise DownloadError(f"{endpoint} refuses access to '{repo}' ({status})", hint=_LOGIN) from error
        raise DownloadError(f"{endpoint} failed for '{repo}' ({status})", hint=goes_on) from error
    except errors.HTTPError as error:  # of the HTTP library, which one is up to the version
        reason = str(error) or type(error).__name__
        raise DownloadError(f"cannot reach {endpoint}: {reason}", hint=goes_on) from error
    except errors.HFValidationError as error:
        raise ConfigError(f"'{repo}' is not the name of a repository", hint="it is OWNER/NAME") from error
    except OSError as error:
        if error.errno is None:  # huggingface_hub's own, of an answer that makes no sense
            raise DownloadError(f"{endpoint}: {error}", hint=goes_on) from error
        where = f" '{error.filename}'" if error.filename else ""
        raise DownloadError(f"cannot write{where}: {error.strerror}", hint=goes_on) from error


def _size(size: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size / 1e3:.1f} kB"
