"""C4 from local copies; what is said where there is none."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from hekaton.errors import DataError
from hekaton_hf.c4 import build_test, build_train, build_validation


def write(path: Path, *texts: str) -> None:
    lines = "".join(json.dumps({"text": text, "url": "x"}) + "\n" for text in texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(lines.encode()) if path.suffix == ".gz" else lines.encode())


def test_a_copy_of_the_repository_has_its_splits(here: Path) -> None:
    write(here / "c4/en/c4-train.00001-of-00002.json.gz", "c")
    write(here / "c4/en/c4-train.00000-of-00002.json.gz", "a", "b")
    write(here / "c4/en/c4-validation.00000-of-00001.json.gz", "d")
    for path in ("c4", "c4/en"):
        train, validation = build_train(None, path), build_validation(None, path)
        assert train.fetch(range(len(train))) == ["a", "b", "c"]
        assert validation.fetch(range(len(validation))) == ["d"]


def test_files_that_are_named_are_read(here: Path) -> None:
    write(here / "mine.jsonl", "a")
    assert build_train(None, "*.jsonl").fetch([0]) == ["a"]


def test_the_test_folder_is_read(here: Path) -> None:
    write(here / "tests/assets/c4_test/data.json", "a", "b")
    write(here / "elsewhere/data.json", "c")
    assert build_test(None, None).fetch([0, 1]) == ["a", "b"]
    assert build_test(None, "elsewhere").fetch([0]) == ["c"]


def test_a_missing_test_folder_is_an_error(here: Path) -> None:
    with pytest.raises(DataError, match="there is no folder 'tests/assets/c4_test'") as e:
        build_test(None, None)
    assert "set dataset_path" in e.value.hint


@pytest.mark.parametrize(("build", "name"), [(build_train, "c4"), (build_validation, "c4_validation")])
@pytest.mark.parametrize("how", ["no network", "HF_HUB_OFFLINE"])
def test_a_download_offline_is_an_error(monkeypatch: pytest.MonkeyPatch, build, name: str, how: str) -> None:  # type: ignore[no-untyped-def]
    if how == "HF_HUB_OFFLINE":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    began = time.monotonic()
    with pytest.raises(DataError, match=rf"cannot get dataset '{name}' \(allenai/c4, en, ") as e:
        build(None, None)
    assert "set dataset_path to read a local copy" in e.value.hint
    assert time.monotonic() - began < 5


def test_a_hub_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firewall that drops everything: one request with a time limit, and no second one."""
    asked = []

    def dataset_info(self: object, *arguments: object, timeout: float) -> None:
        asked.append(timeout)
        raise huggingface_hub.errors.HTTPError("timed out")

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    with pytest.raises(DataError, match="timed out"):
        build_train(None, None)
    assert asked == [10.0]


class Hub:
    """What of the client is asked for the files, without a server."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.asked: list[tuple[str, str]] = []
        for name in ("dataset_info", "hf_hub_download", "snapshot_download"):
            owner = huggingface_hub.HfApi if name == "dataset_info" else huggingface_hub
            method = getattr(self, name)
            monkeypatch.setattr(
                owner,
                name,
                (lambda _, *a, **k: self.dataset_info(*a, **k)) if name == "dataset_info" else method,
            )
        self.is_there = True

    def dataset_info(self, repo: str, *, timeout: float) -> SimpleNamespace:
        if not self.is_there:
            raise huggingface_hub.errors.HTTPError("no route to host")
        names = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.gz")]
        return SimpleNamespace(sha="abc", siblings=[SimpleNamespace(rfilename=name) for name in names])

    def hf_hub_download(self, repo: str, name: str, *, repo_type: str, revision: str) -> str:
        assert (repo, repo_type) == ("allenai/c4", "dataset")
        self.asked.append((name, revision))
        return str(self.folder / name)

    def snapshot_download(
        self, repo: str, *, repo_type: str, allow_patterns: str, local_files_only: bool
    ) -> str:
        assert (repo, repo_type, local_files_only) == ("allenai/c4", "dataset", True)
        return str(self.folder)


def test_the_files_that_are_asked_of_the_hub(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(here / "hub", monkeypatch)
    write(here / "hub/en/c4-train.00001-of-00002.json.gz", "two")
    write(here / "hub/en/c4-train.00000-of-00002.json.gz", "one")
    write(here / "hub/en/c4-validation.00000-of-00001.json.gz", "three")
    write(here / "hub/en.noblocklist/c4-train.00000-of-00001.json.gz", "never")
    train, validation = build_train(None, None), build_validation(None, None)
    assert hub.asked == [
        ("en/c4-train.00000-of-00002.json.gz", "abc"),
        ("en/c4-train.00001-of-00002.json.gz", "abc"),
        ("en/c4-validation.00000-of-00001.json.gz", "abc"),
    ]
    assert train.fetch(range(len(train))) == ["one", "two"]
    assert validation.fetch(range(len(validation))) == ["three"]
    assert train.fingerprint != validation.fingerprint
    hub.is_there = False  # what was downloaded is read without a network
    assert build_train(None, None).fingerprint == train.fingerprint
    (here / "hub/en/c4-train.00001-of-00002.json.gz").unlink()
    with pytest.raises(DataError, match="no route to host"):  # and never a part of it
        build_train(None, None)
