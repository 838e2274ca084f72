"""An id that the tokenizer lacks, which one of two processes meets after some steps, ends both."""

from __future__ import annotations

import struct

import numpy as np

from hekaton.testing import run_command

DOCUMENTS, LENGTH = 64, 16


def test_both_processes_end_with_file_and_place(tmp_path):
    """Row 1 of two reads documents 1, 3, 5 and so on, one in each step."""
    ids = (np.arange(DOCUMENTS * LENGTH) % 250).astype("<u2")
    wrong = 11 * LENGTH + 3
    ids[wrong] = 60_000
    ids.tofile(tmp_path / "ids.bin")
    lengths, pointers = np.full(DOCUMENTS, LENGTH, "<i4"), np.arange(DOCUMENTS, dtype="<i8") * LENGTH * 2
    head = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, DOCUMENTS, DOCUMENTS + 1)
    (tmp_path / "ids.idx").write_bytes(
        head + lengths.tobytes() + pointers.tobytes() + np.arange(DOCUMENTS + 1, dtype="<i8").tobytes()
    )
    done = run_command(
        "train", "--model.tokenizer", "byte", "--model.overrides",
        '{"dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1}', "--training.mixed_precision_param", "float32",
        "--training.dataset", "tokens", "--training.dataset_path", "ids.bin", "--training.order", "sequential",
        "--training.seq_len", str(LENGTH), "--training.packing", "one_per_row", "--training.local_batch_size", "1", "--training.steps", "9",
        "--lr_scheduler.warmup_steps", "0", "--metrics.log_freq", "1", processes=2, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    place = (
        f"'ids.bin', token {wrong} (document 11): 60,000 is no id of the tokenizer, which has those below 258"
    )
    assert [one.returncode for one in done.ranks] == [2, 2]
    assert place in done.ranks[1].stderr
    assert "step      2 " in done.stderr
    assert "step      7 " not in done.stderr
    assert "Traceback" not in "".join(one.stderr for one in done.ranks)
