"""``hekaton checkpoint ls | verify | show``: what people read of good, damaged and strange folders."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.disk.folders import Folder
from hekaton.checkpoint.runs.inspection import find_steps, verify
from hekaton.cli import main

Parts = Callable[[float], dict[str, dict[str, torch.Tensor]]]
Printed = Callable[..., tuple[int, str]]


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """Run ``hekaton checkpoint WORDS``: its exit status, and what it printed on both streams."""

    def run(*words: object) -> tuple[int, str]:
        capsys.readouterr()
        status = main(["checkpoint", *map(str, words)])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


@pytest.fixture
def saved(manager: Callable[..., CheckpointManager], parts: Parts, folder: Path) -> Path:
    """Steps 9, 10 (its loss was not finite) and 20."""
    saver = manager(
        describe={
            "config": {"training": {"steps": 30, "dataset": "c4"}},
            "model": "llama3",
            "flavor": "8B",
            "layout": {"dp_shard": 4, "tp": 1},
        }
    )
    saver.save(9, parts(9.0), {})
    saver.save(10, parts(10.0), {}, good=False)
    saver.save(20, parts(20.0), {})
    return folder


def foreign(folder: Path, **others: object) -> Path:
    """A folder that torch.distributed.checkpoint itself wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({"norm.weight": torch.ones(4), **others}, checkpoint_id=folder)
    return folder


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_ls_names_every_step_with_what_it_is_of(saved: Path, where: Folder, printed: Printed) -> None:
    (saved / "step-9" / "__0_0.distcp").unlink()
    (saved / "step-30").mkdir()
    status, text = printed("ls", where)
    assert status == 0
    heading, *lines = text.splitlines()
    size = sum(file.stat().st_size for file in (saved / "step-20").iterdir() if file.suffix != ".json")
    assert heading.split("  ")[0] == "step"
    assert [line.split()[0] for line in lines] == ["step-9", "step-10", "step-20", "step-30"]
    assert lines[0].endswith("not whole: __0_0.distcp is missing")
    assert lines[1].endswith("not good: its loss or its weights were not finite")
    assert f"  {size / 1e3:.1f} kB  " in lines[2]
    assert lines[2].endswith("  1          dp_shard 4  llama3 8B  good")
    assert lines[3].endswith("not whole: saving it was interrupted")


def test_ls_marks_a_step_that_holds_only_the_model(
    folder: Path, manager: Callable[..., CheckpointManager], parts: Parts, printed: Printed
) -> None:
    manager().save(1, {"model": parts(1.0)["model"]}, {})
    assert printed("ls", folder)[1].endswith("good, the model alone\n")


@pytest.mark.parametrize("place", ["", "..", "step-20"])
def test_a_dump_folder_a_checkpoint_folder_and_a_step_are_all_understood(
    place: str, saved: Path, where: Folder, printed: Printed
) -> None:
    status, text = printed("ls", {"": where, "..": where.parent}.get(place, where / place), "--json")
    assert status == 0
    assert [step["step"] for step in json.loads(text)] == ([20] if place == "step-20" else [9, 10, 20])


def test_ls_as_json(saved: Path, where: Folder, printed: Printed) -> None:
    (saved / "step-9" / "manifest.json").write_text("{")
    first, second, third = json.loads(printed("ls", where, "--json")[1])
    assert first["status"] == "not whole"
    assert first["reason"].startswith("manifest.json cannot be read")
    assert first["bytes"] is None
    assert second["status"] == "not good"
    written = json.loads((saved / "step-20" / "manifest.json").read_text())
    assert third == {
        "step": 20,
        "folder": str(where / "step-20"),
        "status": "good",
        "reason": None,
        "bytes": sum(file["size"] for file in written["files"].values()),
        "saved_at": written["saved_at"],
        "processes": 1,
        "layout": {"dp_shard": 4, "tp": 1},
        "model": "llama3",
        "flavor": "8B",
    }


def test_verify_finds_nothing_wrong_with_whole_steps(saved: Path, where: Folder, printed: Printed) -> None:
    status, text = printed("verify", where)
    assert status == 0
    assert [line.split(", ")[0] for line in text.splitlines()] == [
        "step-9: good",
        "step-10: not good: its loss or its weights were not finite",
        "step-20: good",
    ]


def test_verify_names_everything_that_is_wrong_and_fails(
    saved: Path, where: Folder, printed: Printed
) -> None:
    flip_a_bit(saved / "step-9" / "__0_0.distcp")
    flip_a_bit(saved / "step-20" / "__0_0.distcp")
    os.truncate(saved / "step-20" / ".metadata", 100)
    assert printed("ls", where)[1].count("not whole") == 1, "ls does not read tensors"
    status, text = printed("verify", where)
    assert status == 1
    assert "step-9: not whole: __0_0.distcp was changed or damaged: its checksum differs\n" in text
    assert "step-10: not good" in text
    (rest,) = text.split("step-20: ")[1:]
    first, second, third = rest.splitlines()
    assert first == "not whole: "
    assert ".metadata has 100 bytes instead of" in second
    assert third == "  __0_0.distcp was changed or damaged: its checksum differs"
    assert printed("verify", where / "step-10")[0] == 0
    assert printed("verify", where / "step-9")[0] == 1


def test_verify_counts_every_byte_that_it_reads(
    folder: Path, where: Folder, manager: Callable[..., CheckpointManager]
) -> None:
    manager().save(1, {"model": {"large": torch.ones(1 << 20)}}, {})
    (step,) = find_steps(str(where))
    read: list[int] = []
    assert verify(step, read.append) == []
    files = [file for file in (folder / "step-1").iterdir() if file.name != "manifest.json"]
    assert sum(read) == sum(file.stat().st_size for file in files)
    assert max(read) < 1 << 22, "piece by piece"


def test_show_prints_layout_versions_parts_and_configuration(
    saved: Path, where: Folder, printed: Printed
) -> None:
    (saved / "step-30").mkdir()
    status, text = printed("show", where)
    assert status == 0
    heads, held, config = text.split("\n\n", 2)
    shown = dict(line.split(maxsplit=1) for line in heads.splitlines())
    assert shown["folder"] == str(where / "step-20")
    assert shown["model"] == "llama3 8B"
    assert shown["layout"] == "dp_shard 4"
    assert f"torch {torch.__version__}" in shown["versions"]
    assert [line.split() for line in held.splitlines()] == [
        ["part", "tensors", "bytes"],
        ["model", "2", str((32 + 4) * 4)],
        ["optimizer", "1", "4"],
    ]
    assert tomllib.loads(config) == {"training": {"steps": 30, "dataset": "c4"}}


def test_show_lists_tensors_where_asked(saved: Path, where: Folder, printed: Printed) -> None:
    _, text = printed("show", where / "step-9", "--tensors")
    assert "layers.0.wq.weight                 (8, 4)  float32" in text
    described = json.loads(printed("show", where / "step-9", "--tensors", "--json")[1])
    assert described["tensors"]["layers.0.wq.weight"] == {
        "shape": [8, 4], "dtype": "float32", "part": "model",
    }  # fmt: skip
    assert described["config"]["training"]["steps"] == 30
    assert "tensors" not in json.loads(printed("show", where, "--json")[1])


def test_a_folder_that_torch_wrote_is_shown_as_unverifiable(tmp_path: Path, printed: Printed) -> None:
    folder = foreign(tmp_path / "by_torch", step=torch.tensor(3), notes={"a": {1, 2}})
    why = "not whole: it has no manifest.json: another tool wrote it, or saving was interrupted"
    status, text = printed("verify", folder)
    assert (status, text) == (1, f"by_torch: {why}\n")
    assert printed("ls", folder)[1].endswith(f"{why}\n")
    status, text = printed("show", folder, "--tensors")
    assert status == 0
    assert "all   2        24\n" in text
    assert "notes" not in text
    assert "norm.weight  (4,)   float32\n" in text


class Payload:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize("verb", ["ls", "verify", "show"])
def test_no_verb_runs_what_a_folder_brings(verb: str, tmp_path: Path, printed: Printed) -> None:
    folder = foreign(tmp_path / "step-1")
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "proof")))
    status, text = printed(verb, folder)
    assert not (tmp_path / "proof").exists()
    if verb == "show":
        assert status == 2
        assert ".metadata asks for posix.system, which no tensor needs: refused" in text


def test_names_from_a_file_cannot_write_to_the_terminal(
    folder: Path, manager: Callable[..., CheckpointManager], printed: Printed
) -> None:
    manager(describe={"model": "\x1b[2Jllama3"}).save(1, {"model": {"\x1b[1m": torch.ones(1)}}, {})
    for words in (["ls"], ["show", "--tensors"]):
        _, text = printed(words[0], folder, *words[1:])
        assert "\x1b" not in text
        assert "�[2Jllama3" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ls", "nowhere"], "there is no 'nowhere'"),
        (["show", "step-5"], "there is no 'step-5'"),
        (["verify", "."], "no checkpoint in '.'"),
        (["ls", "s4://bucket/run"], "'s4://bucket/run': fsspec knows no file system 's4'"),
        (["ls", "memory://nowhere"], "there is no 'memory://nowhere'"),
        (["list", "."], "unknown verb 'checkpoint list'"),
        (["ls", ".", "--tensors"], "unknown option --tensors of hekaton checkpoint ls"),
        (["verify"], "hekaton checkpoint verify takes one PATH"),
        (["verify", "a", "b"], "hekaton checkpoint verify takes one PATH"),
    ],
)
def test_wrong_arguments_are_refused(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, printed: Printed
) -> None:
    monkeypatch.chdir(tmp_path)
    status, text = printed(*words)
    assert status == 2
    assert text.startswith(f"error: {message}\n  ")


def test_listing_and_verifying_need_no_torch(saved: Path) -> None:
    code = (
        "import sys; from hekaton.cli import main; "
        f"print(main(['checkpoint', 'ls', {str(saved)!r}]), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
