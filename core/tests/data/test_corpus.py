"""Corpora of token ids: written, verified, read, and those that other programs wrote."""

from __future__ import annotations

import json
import os
import re
import struct
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from hekaton.cli import data as data_command
from hekaton.cli import main
from hekaton.cli import preprocess as command
from hekaton.corpus import layout
from hekaton.corpus import preprocess as writing
from hekaton.corpus.layout import CorpusManifest, checksum, verify
from hekaton.corpus.preprocess import preprocess
from hekaton.corpus.tokens import RAW_DOCUMENT, build, check
from hekaton.data import contents
from hekaton.data.encoders import IdsEncoder
from hekaton.data.loader import build_loader
from hekaton.errors import DataError
from hekaton.sources import check_tokenizer

TEXTS = ["1 2 3", "", "4", "5 6 7 8", "9 10", " ", "11 12"]
SHARD = {"name": "x", "documents": 1, "tokens": 1, "ids_checksum": "", "ends_checksum": ""}
IDS = [[900, 1, 2, 3], [900, 4], [900, 5, 6, 7, 8], [900, 9, 10], [900, 11, 12]]


def tokens(path, dtype="uint16"):
    return build(SimpleNamespace(dtype=dtype), str(path))


def read(documents):
    return [document.tolist() for document in documents.fetch(range(len(documents)))]


@pytest.fixture
def made(tmp_path, numbers, number_tokenizer):
    folder = tmp_path / "corpus"
    preprocess(numbers(*TEXTS), number_tokenizer(bos_id=900), folder, shard_documents=3)
    return folder


def test_a_corpus_has_the_ids_of_its_documents(made, number_tokenizer):
    manifest = CorpusManifest.read(made)
    assert (manifest.documents, manifest.tokens, manifest.dtype) == (5, 17, "uint16")
    documents = tokens(made)
    assert read(documents) == IDS
    assert documents.fetch([3, 0])[0].tolist() == IDS[3]
    assert verify(made) == []
    assert sorted(file.name for file in made.iterdir()) == [
        "corpus.json", *(f"shard-00000{n}.{end}" for n in range(3) for end in ("bin", "ends"))
    ]  # fmt: skip
    assert (made / "shard-000000.bin").read_bytes() == np.array(IDS[0] + IDS[1], "<u2").tobytes()


def test_rows_of_a_corpus_are_those_of_its_texts(made, numbers, number_tokenizer, in_order):
    tokenizer = number_tokenizer(bos_id=900)
    common = {"seq_len": 4, "global_batch_size": 1, "rows": range(1), "seed": 0}
    texts = build_loader(numbers(*[text for text in TEXTS if text.strip()]), tokenizer, **common)
    corpus = build_loader(tokens(made), tokenizer, encoder=IdsEncoder(1000), **common)
    for _ in range(8):
        expected = texts.next_step()
        assert all(value.equal(expected[name]) for name, value in corpus.next_step().items())


def test_an_interrupted_call_is_taken_up(tmp_path, numbers, number_tokenizer, monkeypatch):
    folder = tmp_path / "corpus"
    tokenizer, shard = number_tokenizer(bos_id=900), writing._shard

    def fail_at_the_last(number):
        if number == 2:
            raise KeyboardInterrupt
        return shard(number)

    monkeypatch.setattr(writing, "_shard", fail_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        preprocess(numbers(*TEXTS), tokenizer, folder, shard_documents=3)
    with pytest.raises(DataError, match="no tokenised files in"):
        (tmp_path / "nothing").mkdir()
        tokens(tmp_path / "nothing")
    damaged = folder / "shard-000001.bin"
    damaged.write_bytes(damaged.read_bytes()[:-2] + b"xx")
    made = []
    monkeypatch.setattr(writing, "_shard", lambda number: made.append(number) or shard(number))
    with pytest.raises(DataError, match="left unfinished"):
        preprocess(numbers(*TEXTS), tokenizer, folder, shard_documents=4)
    preprocess(numbers(*TEXTS), tokenizer, folder, shard_documents=3, workers=1)
    assert made == [1, 2]
    assert read(tokens(folder)) == IDS
    with pytest.raises(DataError, match="there is a corpus in"):
        preprocess(numbers(*TEXTS), tokenizer, folder, shard_documents=3)


def test_several_workers_write_the_same(made, tmp_path, numbers, number_tokenizer):
    preprocess(numbers(*TEXTS), number_tokenizer(bos_id=900), tmp_path / "b", shard_documents=3, workers=2)
    for file in made.iterdir():
        assert (tmp_path / "b" / file.name).read_bytes() == file.read_bytes()


def test_large_vocabularies_have_wide_ids(tmp_path, numbers, number_tokenizer):
    preprocess(numbers("70000 1"), number_tokenizer(vocab_size=70_001), tmp_path / "c")
    assert read(tokens(tmp_path / "c")) == [[70_000, 1]]
    assert CorpusManifest.read(tmp_path / "c").dtype == "uint32"


def test_documents_without_tokens_alone_are_an_error(tmp_path, numbers, number_tokenizer):
    with pytest.raises(DataError, match="none of its 2 documents has a token"):
        preprocess(numbers("", " "), number_tokenizer(), tmp_path / "c")


def test_damage_is_named(made, capsys):
    ids, ends = made / "shard-000001.bin", made / "shard-000002.ends"
    whole = ids.read_bytes()
    ids.write_bytes(whole[:-2] + b"xx")
    assert data_command.run(["verify", str(made)]) == 1
    assert capsys.readouterr().out == f"wrong: '{ids}' has another checksum than when the corpus was made\n"
    ids.write_bytes(whole[:-2])
    with pytest.raises(DataError, match=re.escape(f"'{ids}' has 14 bytes, and 16 when the corpus was made")):
        tokens(made)
    assert verify(made) == [f"'{ids}' has 14 bytes, and 16 when the corpus was made"]
    ids.write_bytes(whole)
    assert data_command.run(["verify", str(made)]) == 0
    assert capsys.readouterr().out == f"{made} is whole: 5 documents, 17 tokens\n"
    wrong = np.array([2**40], "<i8").tobytes()
    ends.write_bytes(wrong)
    with pytest.raises(DataError, match=re.escape(f"'{ends}' has another checksum than when the corpus")):
        tokens(made)
    manifest = CorpusManifest.read(made)
    forged = replace(manifest.shards[2], ends_checksum=checksum(ends))
    forged_manifest = replace(manifest, shards=(*manifest.shards[:2], forged))
    (made / "corpus.json").write_text(forged_manifest.to_json())
    with pytest.raises(DataError, match="lies from id 0 to 1,099,511,627,776 of 3"):
        read(tokens(made))
    ends.unlink()
    with pytest.raises(DataError, match="No such file"):
        tokens(made)


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"version": 1}', '{"version": 2}', "[" * 100_000, {"dtype": "object"}, {"vocab_size": "1"},
     {"tokenizer": 1}, {"shards": {}}, {"shards": [{**SHARD, "name": "../x"}]},
     {"shards": [{**SHARD, "tokens": -1}]}, {"shards": [SHARD, SHARD]}],
)  # fmt: skip
def test_what_is_no_manifest_is_an_error(tmp_path, content):
    if isinstance(content, dict):
        whole = {"version": 2, "dtype": "uint16", "tokenizer": "", "vocab_size": 1, "shards": []}
        content = json.dumps({**whole, **content, "checksum": layout._checksum_of({**whole, **content})})
    (tmp_path / "corpus.json").write_text(content)
    with pytest.raises(DataError, match="is not the manifest of a corpus") as e:
        tokens(tmp_path)
    assert "checksum" not in str(e.value).replace("'checksum'", "")


@pytest.mark.parametrize(
    "edit",
    [lambda content: {**content, "vocab_size": 901}, lambda content: {**content, "tokenizer": "another"},
     lambda content: {**content, "shards": content["shards"][:2]}, lambda content: {**content, "checksum": ""},
     lambda content: {**content, "more": 1}],
)  # fmt: skip
def test_an_edited_manifest_is_refused(made, edit, capsys):
    manifest = made / "corpus.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content))  # in other white space it says the same
    assert read(tokens(made)) == IDS
    manifest.write_text(json.dumps(edit(content)))
    message = f"'{manifest}' is not the manifest of a corpus: its content does not have its checksum"
    with pytest.raises(DataError, match=re.escape(message)):
        tokens(made)
    assert main(["data", "verify", str(made)]) == 2
    assert message in capsys.readouterr().err


def test_another_tokenizer_is_refused(made, number_tokenizer):
    documents = tokens(made)
    check_tokenizer(documents, number_tokenizer())
    with pytest.raises(DataError, match="made with another tokenizer than the run's"):
        check_tokenizer(documents, number_tokenizer(fingerprint="another"))
    with pytest.raises(DataError, match="900 is no id of the tokenizer, which has those below 500"):
        IdsEncoder(500).encode(list(IdsEncoder().cut(documents.fetch([0])[0])))


def megatron(folder, sequences, *, code=8, dtype="<u2", version=1):
    """As megatron/core/datasets/indexed_dataset.py writes it."""
    ids, index = folder / "data.bin", folder / "data.idx"
    ids.write_bytes(b"".join(np.array(sequence, dtype).tobytes() for sequence in sequences))
    lengths = [len(sequence) for sequence in sequences]
    pointers = np.cumsum([0, *lengths[:-1]]) * np.dtype(dtype).itemsize
    index.write_bytes(
        b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", version, code, len(lengths), len(lengths) + 1)
        + np.array(lengths, "<i4").tobytes() + np.array(pointers, "<i8").tobytes()
        + np.arange(len(lengths) + 1, dtype="<i8").tobytes()
    )  # fmt: skip
    return ids, index


@pytest.mark.parametrize(("code", "dtype"), [(8, "<u2"), (4, "<i4")])
def test_files_of_megatron(tmp_path, code, dtype):
    ids, index = megatron(tmp_path, IDS, code=code, dtype=dtype)
    for path in (ids, index, tmp_path):
        assert read(tokens(path)) == IDS
    assert set(tokens(ids).files()) == {"data.bin", "data.idx"}
    sound, second = index.read_bytes(), 34 + 4 * len(IDS) + 8
    index.write_bytes(sound[:second] + bytes([sound[second] + 1]) + sound[second + 1 :])
    with pytest.raises(DataError, match=r"document 1 of .* lies from id -1"):  # it begins within an id
        tokens(ids).fetch([1])
    index.write_bytes(sound)
    ids.write_bytes(ids.read_bytes()[:-4])
    with pytest.raises(DataError, match="and its index says"):
        tokens(ids)
    index.write_bytes(index.read_bytes()[:-8])
    with pytest.raises(DataError, match="and its counts say"):
        tokens(ids)
    megatron(tmp_path, IDS, code=6)
    with pytest.raises(DataError, match="of version 1 with type 6"):
        tokens(ids)
    index.write_bytes(b"pickle")
    with pytest.raises(DataError, match="is no index of Megatron-LM"):
        tokens(ids)


MANY = 300_000
"""Ids that take more than the 64 KiB of a file that are looked at each time."""


def written(kind, folder, numbers, number_tokenizer):
    """A dataset of ``MANY`` ids, and the file that they are in."""
    if kind == "corpus":
        texts = numbers(*[" ".join(["7"] * 1000)] * (MANY // 1000))
        preprocess(texts, number_tokenizer(), folder / "corpus", shard_documents=len(texts))
        return folder / "corpus", folder / "corpus" / "shard-000000.bin"
    if kind == "megatron":
        ids, _ = megatron(folder, [[7] * 1000] * (MANY // 1000))
        return ids, ids
    ids = np.full(MANY, 7, np.uint16)
    if kind == "npy":
        np.save(folder / "ids.npy", ids)
        return folder / "ids.npy", folder / "ids.npy"
    (folder / "ids.raw").write_bytes(ids.tobytes())
    return folder / "ids.raw", folder / "ids.raw"


def edit(file, content=None):
    """Another content of the same size, under the same modification time, as ``cp -p`` leaves it."""
    before = file.stat()
    if content is None:
        content = bytearray(file.read_bytes())
        content[10_000] ^= 1  # between two pieces of the sample
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("kind", ["corpus", "megatron", "npy", "raw"])
def test_ids_are_known_by_their_content(tmp_path, monkeypatch, numbers, number_tokenizer, kind):
    place, file = written(kind, tmp_path, numbers, number_tokenizer)
    hashed = []
    hash_all = contents._hash_all
    monkeypatch.setattr(contents, "_hash_all", lambda *one: hashed.append(one[0]) or hash_all(*one))
    documents = tokens(place)
    assert tokens(place).fingerprint == documents.fingerprint
    assert hashed == [file], "one pass over a file, and not at each start"
    whole = file.read_bytes()
    (tmp_path / "copy").write_bytes(whole)
    (tmp_path / "copy").replace(file)
    assert documents.fetch([0])[0][:3].tolist() == [7, 7, 7], "an equal copy is no change"

    edit(file)
    of_views = partial(documents.views, np.array([[0, 0, 3]]), documents.dtype)
    for read_some in (lambda: documents.fetch([0]), of_views):
        with pytest.raises(DataError, match=re.escape(f"'{file}' changed since the run started")):
            read_some()
    if kind == "corpus":
        with pytest.raises(DataError, match=re.escape(f"'{file}' has another checksum than when the corpus")):
            tokens(place)
    else:
        assert tokens(place).fingerprint != documents.fingerprint
    edit(file, whole)
    assert tokens(place).fingerprint == documents.fingerprint
    assert documents.fetch([0])[0][:3].tolist() == [7, 7, 7]
    file.write_bytes(whole[:5000])  # reading the mapped rest would end the process
    with pytest.raises(DataError, match="changed since the run started"):
        documents.fetch([0])


def test_a_cache_that_cannot_be_written_or_believed_changes_nothing(
    tmp_path, monkeypatch, numbers, number_tokenizer
):
    place, _ = written("raw", tmp_path, numbers, number_tokenizer)
    expected = tokens(place).fingerprint
    (kept,) = [file for file in (contents.cache_folder() / "contents").iterdir() if file.suffix != ".lock"]
    for forged in ("", "no hash", "0" * 40):
        kept.write_text(forged)
        assert tokens(place).fingerprint == expected
    monkeypatch.setenv("HEKATON_CACHE", "/dev/null/cache")
    assert tokens(place).fingerprint == expected


def test_a_folder_of_ids_is_read_without_what_is_no_file_of_ids(made, tmp_path, caplog):
    folder = tmp_path / "ids"
    folder.mkdir()
    np.save(folder / "a.npy", np.array([1, 2, 3]))
    (folder / "._a.npy").write_bytes(b"of a Mac")
    (folder / "readme.txt").write_text("ids")
    (folder / "more").mkdir()
    assert read(tokens(folder)) == [[1, 2, 3]]
    assert f"{folder}: not read as ids: more, readme.txt" in caplog.text
    os.mkfifo(folder / "b.npy")
    with pytest.raises(DataError, match=r"b\.npy' is no regular file"):
        tokens(folder)
    (made / "corpus.json").unlink()
    for place in (made, made / "shard-000000.bin"):
        with pytest.raises(DataError, match=r"is a shard of a corpus whose corpus\.json is not there"):
            tokens(place)


def test_npy_and_raw_files(tmp_path):
    ids = np.arange(RAW_DOCUMENT + 3, dtype=np.uint32)
    np.save(tmp_path / "ids.npy", ids)
    documents = tokens(tmp_path / "ids.npy")
    assert [len(one) for one in documents.fetch([0, 1])] == [RAW_DOCUMENT, 3]
    assert documents.fetch([1])[0].tolist() == ids[-3:].tolist()
    (tmp_path / "raw.bin").write_bytes(ids.tobytes())
    assert tokens(tmp_path / "raw.bin", "uint32").fetch([1])[0].tolist() == ids[-3:].tolist()
    (tmp_path / "raw.bin").write_bytes(b"123")
    with pytest.raises(DataError, match="has 3 bytes, which are no uint16"):
        tokens(tmp_path / "raw.bin")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="is no file of ids"):
        tokens(tmp_path / "objects.npy")
    header = (tmp_path / "ids.npy").read_bytes()[:128]
    for content in (b"", header.replace(b"'<u4'", b"'<u4(")):
        (tmp_path / "damaged.npy").write_bytes(content)
        with pytest.raises(DataError, match=r"damaged\.npy' is no file of ids"):
            tokens(tmp_path / "damaged.npy")
    for path in ("a\0b", "a" * 300):
        for ask in (build, check):
            with pytest.raises(DataError, match="cannot read 'a"):
                ask(SimpleNamespace(dtype="uint16"), path)


def test_stats_and_show(tmp_path, capsys):
    assert command.run([str(tmp_path / "corpus"), "--tokenizer", "byte", "--dataset", "python_stdlib_validation",
                        "--shard_documents", "20"]) == 0  # fmt: skip
    said = capsys.readouterr().out
    manifest = json.loads((tmp_path / "corpus" / "corpus.json").read_text())
    count = sum(shard["tokens"] for shard in manifest["shards"])
    assert f"{count:,} tokens of uint16" in said
    flags = ["--model.tokenizer", "byte", "--training.dataset", "tokens", "--training.dataset_path",
             str(tmp_path / "corpus"), "--training.seq_len", "64"]  # fmt: skip
    assert data_command.run(["stats", *flags]) == 0
    said = capsys.readouterr().out
    assert f", {count:,} tokens, " in said
    histogram = re.findall(r"to [\d,]+ +([\d,]+)  ?█*$", said, re.MULTILINE)
    documents = sum(shard["documents"] for shard in manifest["shards"])
    assert sum(int(number.replace(",", "")) for number in histogram) == documents
    assert data_command.run(["show", *flags, "--row", "1", "--step", "2"]) == 0
    said = capsys.readouterr().out
    assert "── step 2, row 1: 64 targets" in said
    text = tmp_path / "odd.bin"
    text.write_bytes(np.array([256, *b"a\x1b[2J\r", 257] * 20, "<u2").tobytes())
    assert data_command.run(["show", *flags[:-4], "--training.dataset_path", str(text), "--row", "0"]) == 0
    shown = capsys.readouterr().out
    assert "] a\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}" in shown
    assert "\x1b" not in shown
    padded = ["--training.packing", "one_per_row", "--training.seq_len", "200", "--row", "0"]
    assert data_command.run(["show", *flags[:-4], "--training.dataset_path", str(text), *padded]) == 0
    assert capsys.readouterr().out.endswith("\n[40 of padding]\n")
