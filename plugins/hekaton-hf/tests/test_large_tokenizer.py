"""A large table is once on a machine: in no process that only knows the tokenizer, and in one that encodes."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from hekaton.data import CountsBytes, KnownFiles, KnowsPlaces, PieceTokenizer
from hekaton.data.stdlib import build as build_stdlib
from hekaton.errors import DataError
from hekaton.testing import check_tokenizer
from hekaton_hf import large_tokenizer, serving
from hekaton_hf.large_tokenizer import LargeTokenizer, is_shared
from hekaton_hf.tokenizer import HFTokenizer, build

pytestmark = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="served on Linux only")

ODD = [
    "",
    "größe 日本 🎉",
    "half \ud800 a pair",
    "two halves \ud83d\ude00",
    "<|end|> in a text",
    "\t\r\n  \n",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    bpe.train_from_iterator(build_stdlib(None, None).fetch([3]), trainer)
    bpe.add_special_tokens(["<|end|>"])
    bpe.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is one of two on its machine, and any table is large."""
    monkeypatch.setattr(large_tokenizer, "LARGE", 1)
    monkeypatch.setattr(serving, "STAYS", 0.2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")


@pytest.fixture
def servers(folder: Path) -> Iterator[Callable[[], list[int]]]:
    """The processes that serve this tokenizer; none is left behind."""

    def of_this_one() -> list[int]:
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if "hekaton_hf.serving" in words and str(folder / "tokenizer.json") in words:
                found.append(int(path.parent.name))
        return found

    yield of_this_one
    for process in of_this_one():
        os.kill(process, signal.SIGKILL)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_it_answers_as_the_tokenizer_itself(folder, servers, monkeypatch, one_of_two):
    with monkeypatch.context() as alone:
        alone.setenv("LOCAL_WORLD_SIZE", "1")
        own = build(None, str(folder))
    assert isinstance(own, HFTokenizer)
    served = build(None, str(folder))
    assert isinstance(served, LargeTokenizer)
    assert not servers()  # nothing was encoded yet: a run on ids has no table anywhere
    assert served.vocab_size == own.vocab_size
    assert (served.bos_id, served.eos_id) == (own.bos_id, own.eos_id)
    assert served.fingerprint == own.fingerprint
    assert served.files() == own.files()
    for kind in (KnownFiles, CountsBytes, KnowsPlaces, PieceTokenizer):
        assert isinstance(served, kind)
    check_tokenizer(served, [text for text in ODD if text.isprintable()])
    texts = [*ODD, *build_stdlib(None, None).fetch([5, 6])]
    assert [ids.tolist() for ids in served.encode_batch(texts)] == [
        ids.tolist() for ids in own.encode_batch(texts)
    ]
    assert served.encode_batch([]) == []
    piece = {"before": "x = ", "after": "urn y"}
    assert np.array_equal(served.encode_piece("return ret", **piece), own.encode_piece("return ret", **piece))
    for mine, expected in zip(served.encode_places(ODD[1]), own.encode_places(ODD[1]), strict=True):
        assert np.array_equal(mine, expected)
        assert mine.dtype == expected.dtype
    assert np.array_equal(served.byte_lengths(), own.byte_lengths())
    # One server for this process, another, and one that is forked from it.
    other = build(None, str(folder))
    assert len(other.encode_batch(["a"])) == 1
    forked = os.fork()
    mine = texts if forked else texts[::-1]  # both ask at once, and each has its own answers
    expected = [ids.tolist() for ids in own.encode_batch(mine)]
    right = all([ids.tolist() for ids in served.encode_batch(mine)] == expected for _ in range(30))
    if not forked:
        os._exit(0 if right else 1)
    assert right
    assert os.waitpid(forked, 0)[1] == 0
    assert len(servers()) == 1
    del served, other
    until(lambda: not servers())


def test_without_the_server_it_encodes_itself(folder, servers, monkeypatch, one_of_two, caplog):
    caplog.set_level(logging.INFO, "hekaton")
    served = build(None, str(folder))
    expected = [ids.tolist() for ids in served.encode_batch(ODD)]
    (server,) = servers()
    os.kill(server, signal.SIGKILL)
    until(lambda: not servers())
    assert [ids.tolist() for ids in served.encode_batch(ODD)] == expected
    assert len(servers()) == 1  # another one was started
    monkeypatch.setattr("sys.executable", "/there/is/none")
    os.kill(*servers(), signal.SIGKILL)
    until(lambda: not servers())
    assert [ids.tolist() for ids in served.encode_batch(ODD)] == expected
    assert not servers()
    assert "notice: this process encodes for itself: no process of this machine encodes" in caplog.text


def test_a_file_that_changed_meanwhile_is_an_error(folder, servers, one_of_two):
    served = build(None, str(folder))
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<|end|>", "<|eot|>"))
    with pytest.raises(DataError, match=r"the tokenizer '.*' has changed since the run started"):
        served.encode_batch(["a"])


def test_small_tables_and_single_processes_have_their_own(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert isinstance(build(None, None), HFTokenizer)
    assert is_shared(large_tokenizer.LARGE)
    assert not is_shared(large_tokenizer.LARGE - 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert not is_shared(large_tokenizer.LARGE)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert not is_shared(large_tokenizer.LARGE)
