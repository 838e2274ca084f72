"""Steps of a run that somebody forged, with checksums that agree: refused in words, and nothing is trained."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import xxhash

from hekaton.checkpoint.disk.items import values_in
from hekaton.checkpoint.disk.manifest import MANIFEST, FileRecord, Manifest
from hekaton.cli import main

RUN = """
[model]
name = "llama3"
flavor = "debugmodel"
tokenizer = "byte"
overrides = {dim = 16, n_layers = 2, n_heads = 2, n_kv_heads = 1, hidden_dim = 32, vocab_size = 300}
[training]
seq_len = 16
local_batch_size = 2
mixed_precision_param = "float32"
[lr_scheduler]
warmup_steps = 0
total_steps = 10
[checkpoint]
enable = true
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    (folder / "run.toml").write_text(RUN)
    status, said = train(folder, steps=1)
    assert status == 0, said
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


def train(folder: Path, *flags: str, steps: int = 2) -> tuple[int, str]:
    words = ["--job.dump_folder", str(folder), "--training.steps", str(steps), *flags]
    with contextlib.redirect_stderr(io.StringIO()) as console:
        status = main(["train", str(folder / "run.toml"), *words])
    return status, console.getvalue()


def forge_cursor(step: Path, cursor: list[list[int]]) -> None:
    """Write other values over the stored cursor, and make the manifest agree."""
    manifest = Manifest.from_json((step / MANIFEST).read_bytes())
    assert manifest.tensors is not None
    (chunk,) = manifest.tensors["data_loader.cursor"].chunks
    file = step / chunk.file
    with file.open("r+b") as stream:
        stream.seek(values_in(stream, chunk.start, chunk.length).start)
        stream.write(np.array(cursor, np.int64).tobytes())
    content = file.read_bytes()
    record = FileRecord(len(content), f"xxh3_128:{xxhash.xxh3_128_hexdigest(content)}")
    files = {**manifest.files, chunk.file: record}
    (step / MANIFEST).write_text(dataclasses.replace(manifest, files=files).to_json())


@pytest.mark.parametrize("cursor", [[[-1, 0], [0, 0]], [[0, 0], [0, -5]], [[2**62, 0], [0, 0]]])
def test_a_position_that_no_row_can_come_to_is_refused(run: Path, cursor: list[list[int]]) -> None:
    forge_cursor(run / "checkpoint" / "step-1", cursor)
    status, said = train(run)
    assert status == 2
    assert "'data_loader.cursor' is not the position of rows" in said
    assert "Traceback" not in said
    status, said = train(run, "--checkpoint.exclude_from_loading", "data_loader")
    assert status == 0, said


def test_a_position_beyond_the_end_of_a_document_is_refused(run: Path) -> None:
    forge_cursor(run / "checkpoint" / "step-1", [[0, 2**62], [0, 0]])
    status, said = train(run)
    assert status == 2
    assert "beyond the end of its document" in said


@pytest.mark.parametrize("name", ["optimizer", "lr_scheduler", "data_loader"])
def test_tensors_without_what_belongs_to_them_are_no_state_to_resume_from(run: Path, name: str) -> None:
    """Above all the cursor: without what it is a cursor of, it would be sought in other data."""
    step = run / "checkpoint" / "step-1"
    manifest = Manifest.from_json((step / MANIFEST).read_bytes())
    info = {key: value for key, value in manifest.info.items() if key != name}
    (step / MANIFEST).write_text(dataclasses.replace(manifest, info=info).to_json())
    status, said = train(run)
    assert status == 2
    assert f"it holds no {name}, which no run can resume from" in said


def test_a_part_that_no_run_has_is_named(run: Path) -> None:
    step = run / "checkpoint" / "step-1"
    manifest = Manifest.from_json((step / MANIFEST).read_bytes())
    (step / MANIFEST).write_text(dataclasses.replace(manifest, parts=(*manifest.parts, "soul")).to_json())
    status, said = train(run)
    assert status == 2
    assert "it holds 'soul', which is no part of this run's state" in said
    assert "Traceback" not in said


def test_a_name_of_a_file_that_cannot_be_encoded_is_refused(run: Path) -> None:
    step = run / "checkpoint" / "step-1"
    manifest = Manifest.from_json((step / MANIFEST).read_bytes())
    files = {**manifest.files, "\ud800": FileRecord(1, "xxh3_128:00")}
    (step / MANIFEST).write_text(dataclasses.replace(manifest, files=files).to_json())
    status, said = train(run)
    assert status == 2
    assert r"manifest.json names '\ud800', which is not a file of the step" in said
