"""Workers of ``hekaton preprocess``: a process that dies, and one that writes into the same folder."""

from __future__ import annotations

import fcntl
import os
import signal
import time

import pytest

from hekaton.corpus.preprocess import PLAN, preprocess
from hekaton.errors import DataError

TEXTS = ["1 2", "3", "4 5", "6"]


class Slow:
    """A tokenizer of which each process takes a step of its own before it encodes."""

    vocab_size, bos_id, eos_id, fingerprint = 10, None, None, "slow"

    def __init__(self, number_tokenizer, step):
        self._tokenizer, self._step = number_tokenizer(), step

    def encode_batch(self, texts):
        self._step()
        return self._tokenizer.encode_batch(texts)

    def decode(self, ids):
        return ""


def test_a_worker_that_dies_is_an_error_and_the_same_call_resumes(tmp_path, numbers, number_tokenizer):
    first = os.getpid()

    def die():
        if os.getpid() != first:
            os.kill(os.getpid(), signal.SIGKILL)

    texts, folder = numbers(*TEXTS), tmp_path / "corpus"
    with pytest.raises(DataError, match="a worker died"):
        preprocess(texts, Slow(number_tokenizer, die), folder, shard_documents=1, workers=2)
    made = preprocess(texts, Slow(number_tokenizer, lambda: None), folder, shard_documents=1, workers=2)
    assert (made.documents, made.tokens) == (4, 6)


def test_workers_end_with_the_process_that_started_them(tmp_path, numbers, number_tokenizer):
    pids = tmp_path / "pids"

    def wait():
        with pids.open("a") as out:
            out.write(f"{os.getpid()}\n")
        time.sleep(60)

    parent = os.fork()
    if not parent:
        try:
            texts, tokenizer = numbers(*TEXTS), Slow(number_tokenizer, wait)
            preprocess(texts, tokenizer, tmp_path / "corpus", shard_documents=1, workers=2)
        finally:
            os._exit(1)
    workers = _until(
        lambda: pids.exists() and len(pids.read_text().split()) == 2 and pids.read_text().split()
    )
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert _until(lambda: not any(_runs(int(pid)) for pid in workers))


def test_one_process_writes_into_a_folder(tmp_path, numbers, number_tokenizer):
    (tmp_path / "corpus").mkdir()
    with (tmp_path / "corpus" / PLAN).open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is writing a corpus into"):
            preprocess(numbers(*TEXTS), number_tokenizer(), tmp_path / "corpus")
    preprocess(numbers(*TEXTS), number_tokenizer(), tmp_path / "corpus")


def test_workers_without_a_shard_and_progress_are_said(tmp_path, numbers, number_tokenizer, caplog):
    with caplog.at_level("INFO", "hekaton"):
        preprocess(numbers(*TEXTS), number_tokenizer(), tmp_path / "corpus", workers=4)
    assert "notice: 3 workers have nothing to do, since the shards are 1" in caplog.text
    assert caplog.text.count("4 of 4 documents: ") == 1
    assert "tokens/s, 0:00:00 left" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO", "hekaton"):
        preprocess(numbers(*TEXTS), number_tokenizer(), tmp_path / "b", shard_documents=1, workers=2)
    assert caplog.text.count("4 of 4 documents: ") == 1


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(found):
    """What it finds in the end, within 20 s."""
    until = time.monotonic() + 20
    while not (result := found()):
        assert time.monotonic() < until
        time.sleep(0.02)
    return result
