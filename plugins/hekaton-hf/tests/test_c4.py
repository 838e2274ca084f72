"""C4 from local copies; what is said where there is none."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
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


def test_any_files(here: Path) -> None:
    write(here / "mine.jsonl", "a")
    assert build_train(None, "*.jsonl").fetch([0]) == ["a"]


def test_the_test_folder(here: Path) -> None:
    write(here / "tests/assets/c4_test/data.json", "a", "b")
    write(here / "elsewhere/data.json", "c")
    assert build_test(None, None).fetch([0, 1]) == ["a", "b"]
    assert build_test(None, "elsewhere").fetch([0]) == ["c"]


def test_no_test_folder(here: Path) -> None:
    with pytest.raises(DataError, match="there is no folder 'tests/assets/c4_test'") as e:
        build_test(None, None)
    assert "set dataset_path" in e.value.hint


@pytest.mark.parametrize(("build", "name"), [(build_train, "c4"), (build_validation, "c4_validation")])
def test_offline(monkeypatch: pytest.MonkeyPatch, build, name: str) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True, raising=False)
    with pytest.raises(DataError, match=rf"cannot get dataset '{name}' \(allenai/c4, en, ") as e:
        build(None, None)
    assert "set dataset_path to read a local copy" in e.value.hint


def test_the_splits_that_are_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*arguments: str, **options: str) -> datasets.Dataset:
        asked.append((*arguments, options["split"]))
        return datasets.Dataset.from_dict({"url": ["x"], "text": [options["split"]]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    train, validation = build_train(None, None), build_validation(None, None)
    assert asked == [("allenai/c4", "en", "train"), ("allenai/c4", "en", "validation")]
    assert (train.fetch([0]), validation.fetch([0])) == (["train"], ["validation"])
    assert train.fingerprint != validation.fingerprint
