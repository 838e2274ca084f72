"""Streams: the same tokens as from files at hand, through failures, and errors that name what is wrong."""

from __future__ import annotations

import gzip
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from hekaton.cli import main
from hekaton.data.byte import ByteTokenizer
from hekaton.data.loader import build_loader
from hekaton.data.order import Sequential
from hekaton.data.row_makers import BestFit, InOrder
from hekaton.errors import DataError
from hekaton.testing import check_encoder, check_row_maker
from hekaton_hf.sections import HubStreamSection, StreamDatasetSection
from hekaton_hf.stream import documents, remote
from hekaton_hf.stream.documents import StreamEncoder, build
from hekaton_hf.stream.hub import HubStream

TEXTS = [f"text {number} " + "x" * (number * 7 % 50) for number in range(40)]
TEXTS[5] = ""
TEXTS[17] = "größe 🎉 " * 30


def jsonl(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def parquet(texts):
    out = io.BytesIO()
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), out)
    return out.getvalue()


class Flaky:
    """A file of memory that reads little at once, slowly, and fails in the middle as often as it is told."""

    failures = 0
    seconds = 0.0

    def __init__(self, file):
        self._file = file
        self.tell, self.seek, self.close = file.tell, file.seek, lambda: None

    def read(self, size=-1):
        time.sleep(Flaky.seconds)
        if Flaky.failures and self.tell():
            Flaky.failures -= 1
            raise ConnectionResetError("the peer went away")
        return self._file.read(min(size, 100))


@pytest.fixture(autouse=True)
def _memory(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(Flaky, "failures", 0)
    monkeypatch.setattr(Flaky, "seconds", 0.0)
    yield
    MemoryFileSystem.store.clear()


@pytest.fixture
def flaky(monkeypatch):
    opened = MemoryFileSystem._open

    def flaky_open(system, path, mode="rb", **options):
        file = opened(system, path, mode, **options)
        return Flaky(file) if mode == "rb" else file

    monkeypatch.setattr(MemoryFileSystem, "_open", flaky_open)


def put(**files):
    """Files in memory, named as a___b for a.b."""
    for name, content in files.items():
        fsspec.filesystem("memory").pipe(f"/data/{name.replace('___', '.')}", content)


def section(**settings):
    return StreamDatasetSection(**{"shuffle_buffer": 1, **settings})


def loader(found, **settings):
    options = {"seq_len": 37, "global_batch_size": 1, "rows": range(1), "seed": 0, **settings}
    encoder = StreamEncoder(ByteTokenizer())
    return build_loader(
        found, ByteTokenizer(), encoder=encoder, order=Sequential(len(found)), repeat=False, **options
    )


def steps(loader):
    read = []
    while True:
        try:
            read.append({name: value.tolist() for name, value in loader.next_step().items()})
        except StopIteration:
            return read


class Held:
    fingerprint = "held"

    def __len__(self):
        return len(TEXTS)

    def fetch(self, indices):
        return [TEXTS[index] for index in indices]


def expected(**settings):
    """Of the texts one after the other, as documents at hand."""
    options = {
        "seq_len": 37,
        "global_batch_size": 1,
        "rows": range(1),
        "seed": 0,
        "repeat": False,
        **settings,
    }
    return steps(build_loader(Held(), ByteTokenizer(), order=Sequential(len(TEXTS)), **options))


@pytest.mark.parametrize("packing", ["documents", "concat"])
@pytest.mark.parametrize("workers", [0, 1])
def test_rows_are_those_of_the_texts(packing, workers, monkeypatch):
    monkeypatch.setattr(documents, "GROUP", 300)
    put(
        a___jsonl=jsonl(TEXTS[:11]),
        b___jsonl___gz=gzip.compress(jsonl(TEXTS[11:25])),
        c___parquet=parquet(TEXTS[25:]),
    )
    found = build(section(), "memory://data/*")
    assert len(found) == 3
    assert steps(loader(found, packing=packing, num_workers=workers)) == expected(packing=packing)


def test_rows_are_the_same_however_they_are_read(monkeypatch):
    """Alone, together, and resumed at any row, on which every layout rests."""
    monkeypatch.setattr(documents, "GROUP", 100)
    put(a___jsonl=jsonl(TEXTS[:23]), b___jsonl=jsonl(TEXTS[23:]))
    found = build(section(parts_per_file=2, shuffle_buffer=5), "memory://data/*.jsonl")
    parts = found.fetch(range(len(found)))
    encoder = StreamEncoder(ByteTokenizer())
    check_encoder(encoder, parts)
    for maker in (InOrder(29), InOrder(29, packs_documents=False)):
        check_row_maker(maker, parts, encoder, rows=3, steps=20)


def test_stats_are_of_the_texts_and_not_of_the_files(tmp_path, capsys):
    texts = [text for text in TEXTS if text]
    (tmp_path / "a.jsonl").write_bytes(jsonl(texts[:9]))
    (tmp_path / "b.jsonl").write_bytes(jsonl(texts[9:]))
    words = ["data", "stats", "--model.tokenizer", "byte", "--training.dataset", "stream",
             "--training.dataset_path", f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl"]  # fmt: skip
    assert main(words) == 0
    tokens = sum(len(text.encode()) + 2 for text in texts)  # between the marks of a document
    assert f"stream: {len(texts)} documents, {tokens:,} tokens" in capsys.readouterr().out
    assert main([*words, "--documents", "5"]) == 0
    assert "stream: 5 documents" in capsys.readouterr().out


def test_the_buffer_shuffles_within_its_size_and_parts_share_a_file():
    put(a___jsonl=jsonl(map(str, range(100))))
    found = build(section(parts_per_file=3, shuffle_buffer=10), "memory://data/a.jsonl")
    read = [[int(text) for text in part.texts()] for part in found.fetch(range(3))]
    for number, texts in enumerate(read):
        assert sorted(texts) == list(range(number, 100, 3))
        assert texts != sorted(texts)
        for start in range(0, len(texts), 10):
            assert sorted(texts[start : start + 10]) == list(range(number, 100, 3))[start : start + 10]
    other = build(section(parts_per_file=3, shuffle_buffer=11), "memory://data/a.jsonl")
    assert other.fingerprint != found.fingerprint
    put(a___jsonl=jsonl(map(str, range(101))))
    changed = build(section(parts_per_file=3, shuffle_buffer=10), "memory://data/a.jsonl")
    assert changed.fingerprint != found.fingerprint


@pytest.mark.parametrize("name", ["stream", "hub_stream"])
def test_the_order_within_the_buffer_follows_from_seed_and_epoch(name):
    texts = [f"{number:02}" for number in range(20)]
    put(a___jsonl=jsonl(texts))
    found = build(section(shuffle_buffer=10), "memory://data/a.jsonl")
    if name == "hub_stream":
        rows = SimpleNamespace(iter=lambda batch_size: ({"text": [text]} for text in texts))
        shard = SimpleNamespace(num_shards=1, features="", shard=lambda **_: rows)
        found = HubStream(shard, HubStreamSection(shuffle_buffer=10), name="x", identity="", files={})
    ids = [ByteTokenizer().encode_batch([text])[0].tolist() for text in texts]

    def read(seed, steps, after=None):
        """The texts of rows, each of which has one between its marks."""
        options = {"seq_len": 4, "global_batch_size": 1, "rows": range(1), "seed": seed}
        encoder = StreamEncoder(ByteTokenizer())
        loader = build_loader(found, ByteTokenizer(), encoder=encoder, order=Sequential(1), **options)
        if after is not None:
            loader.seek(after)
        rows = [loader.next_step()["tokens"][0, 1:3].tolist() for _ in range(steps)]
        return [ids.index(row) for row in rows], loader.cursor()

    whole, _ = read(1, 60)
    orders = {tuple(read(seed, 20)[0]) for seed in range(3)} | {tuple(whole[20:40]), tuple(whole[40:])}
    assert len(orders) == 5  # of three seeds, and of two more epochs
    for start in range(0, 60, 10):
        assert sorted(whole[start : start + 10]) == list(range(start % 20, start % 20 + 10))
    for done in (7, 20, 33):
        begin, cursor = read(1, done)
        assert begin + read(1, 60 - done, cursor)[0] == whole


def test_failures_are_borne(flaky, caplog):
    put(
        a___jsonl=jsonl(TEXTS[:11]),
        b___jsonl___gz=gzip.compress(jsonl(TEXTS[11:25])),
        c___parquet=parquet(TEXTS[25:]),
    )
    Flaky.failures = 5
    found = build(
        section(attempts=6), "memory://data/a.jsonl,memory://data/b.jsonl.gz,memory://data/c.parquet"
    )
    assert steps(loader(found)) == expected()
    assert Flaky.failures == 0
    assert (
        "reading 'memory://data/a.jsonl' failed: ConnectionResetError: the peer went away; attempt 2 of 6"
        in caplog.text
    )


def test_too_many_failures_are_an_error(flaky):
    put(a___jsonl=jsonl(TEXTS))
    Flaky.failures = 100
    found = build(section(attempts=3), "memory://data/a.jsonl")
    with pytest.raises(DataError, match=r"cannot read 'memory://data/a.jsonl': 3 attempts failed in \d+ s, the last with: "
                       "ConnectionResetError: the peer went away\n  see whether the store can be reached"):  # fmt: skip
        steps(loader(found))
    assert Flaky.failures == 97


@pytest.mark.parametrize(
    ("cause", "mended"),
    [
        (ConnectionRefusedError("nobody listens"), True),
        (SimpleNamespace(status=503), True),
        (SimpleNamespace(status=404), False),
        (None, False),
    ],
)
def test_a_file_that_is_missing_since_the_way_failed_is_asked_for_again(monkeypatch, caplog, cause, mended):
    """The client of ``https`` says of every failure that there is no such file, with the failure as its cause."""
    put(a___jsonl=jsonl(TEXTS))
    info, failures = MemoryFileSystem.info, [2]

    class Answer(Exception):
        status = getattr(cause, "status", None)

    def failing(system, path, **options):
        if failures[0]:
            failures[0] -= 1
            reason = Answer("of a server") if isinstance(cause, SimpleNamespace) else cause
            raise FileNotFoundError(path) from reason
        return info(system, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "info", failing)
    if not mended:
        with pytest.raises(
            DataError, match=r"cannot read 'memory://data/a.jsonl': FileNotFoundError: /data/a"
        ):
            build(section(attempts=3), "memory://data/a.jsonl")
        assert failures == [1]
        return
    assert steps(loader(build(section(attempts=3), "memory://data/a.jsonl"))) == expected()
    assert "attempt 3 of 3 follows" in caplog.text


def test_reading_of_a_shard_of_the_hub_is_repeated_where_it_was(monkeypatch, caplog):
    from hekaton_hf.sections import HubStreamSection
    from hekaton_hf.stream.hub import HubPart

    failures = [2]

    class Shard:
        def iter(self, batch_size):
            for number, text in enumerate(TEXTS):
                if number == 7 and failures[0]:
                    failures[0] -= 1
                    raise ConnectionResetError("the peer went away")
                yield {"text": [text]}

    def part(attempts):
        return HubPart(Shard(), "shard 0 of 'x'", 0, HubStreamSection(shuffle_buffer=1, attempts=attempts))

    assert list(part(3).texts()) == TEXTS
    said = "reading 'shard 0 of x, row 8' failed: ConnectionResetError: the peer went away; attempt 3 of 3"
    assert said in caplog.text
    failures[0] = 2
    with pytest.raises(
        DataError, match=r"(?s)'shard 0 of x, row 8': 2 attempts failed .*hub_stream.attempts"
    ):
        list(part(2).texts())


@pytest.mark.parametrize("url", ["memory://data/a.jsonl", "memory://data/*.jsonl"])
@pytest.mark.parametrize("other", [[*TEXTS[:39], "text 39 " + "y" * 23], TEXTS[:39]])
def test_a_file_that_changes_while_it_is_read_is_an_error(url, other):
    """Otherwise a run would read some of each of two files, and end as if nothing were wrong."""
    content = jsonl(TEXTS)
    put(a___jsonl=content)
    found = build(section(), url)
    (part,) = found.fetch([0])
    assert list(part.texts()) == TEXTS
    texts = part.texts()
    assert next(texts) == TEXTS[0]
    put(a___jsonl=jsonl(other))
    assert (len(jsonl(other)) == len(content)) == (len(other) == 40)
    error = r"'memory://.*data/a.jsonl' changed since the run started: it was \d+ bytes, .* and is \d+ bytes"
    with pytest.raises(DataError, match=error):
        list(texts)
    with pytest.raises(DataError, match=error):
        next(part.texts())


def test_a_stalled_reading_is_named(flaky, caplog):
    put(a___jsonl=jsonl(TEXTS[:1]))
    Flaky.seconds = 0.3
    steps(loader(build(section(stalled_seconds=0.05), "memory://data/a.jsonl")))
    assert "reading 'memory://data/a.jsonl' has been waiting for 0 s" in caplog.text


@pytest.mark.parametrize(
    ("files", "url", "message"),
    [
        ({}, "memory://data/*.jsonl", r"no files match 'memory://data/\*.jsonl'"),
        ({}, "memory://data/a.jsonl", "cannot read 'memory://data/a.jsonl': FileNotFoundError"),
        ({}, "nosuch://a.jsonl", "cannot read 'nosuch://a.jsonl': Protocol not known: nosuch"),
        ({"a___csv": b"x"}, "memory://data/a.csv", "cannot read 'memory://data/a.csv': not a format that streams"),
        ({"a___jsonl": b"x"}, "memory://data", "'memory://data' is a folder"),
        (None, None, "dataset 'stream' needs files to read"),
    ],
)  # fmt: skip
def test_files_that_are_not_there(files, url, message):
    put(**files or {})
    with pytest.raises(DataError, match=message):
        build(section(), url)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a___jsonl", jsonl(["x"]) + b"{", "'memory://data/a.jsonl', line 2: not JSON"),
        ("a___jsonl", jsonl(["x"]) + b'{"txt": 1}', "line 2: there is no 'text', but 'txt'"),
        ("a___jsonl", jsonl(["x", 3]), "line 2: 'text' is not text but a number"),
        ("a___jsonl___gz", gzip.compress(jsonl(TEXTS))[:-20], "cannot read 'memory://data/a.jsonl.gz': "),
        ("a___jsonl___gz", b"no gzip", "cannot read 'memory://data/a.jsonl.gz': "),
        ("a___parquet", b"no parquet", "cannot read 'memory://data/a.parquet': "),
        ("a___parquet", parquet(["x"])[:-6], "cannot read 'memory://data/a.parquet': "),
    ],
)
def test_content_that_cannot_be_read(name, content, message, caplog, monkeypatch):
    put(**{name: content})
    url = f"memory://data/{name.replace('___', '.')}"
    with pytest.raises(DataError) as e:
        steps(loader(build(section(), url)))
    assert message in str(e.value)
    if "line 2" in message:
        monkeypatch.setattr(documents, "_skipped", set())
        assert steps(loader(build(section(max_bad_rows=1), url)))[0]["tokens"][0][:3] == [256, ord("x"), 257]
        assert caplog.text.count(f"skipping '{url}', line 2: ") == 1
        steps(loader(build(section(max_bad_rows=1), url)))
        assert caplog.text.count(f"skipping '{url}', line 2: ") == 1


def test_what_streams_cannot_do_is_said():
    put(a___parquet=parquet(TEXTS))
    with pytest.raises(
        DataError, match=r"no column 'body' in 'memory://data/a.parquet'\n.* is one of: id, text"
    ):
        steps(loader(build(section(text_column="body"), "memory://data/a.parquet")))
    found = build(section(), "memory://data/a.parquet")
    with pytest.raises(
        DataError, match=r"8 rows .* and the stream has 1\n  set stream_dataset.parts_per_file = 8"
    ):
        found.check_rows(8)
    with pytest.raises(DataError, match=r'set training\.packing = "documents" or "concat"'):
        steps(loader(found, maker=BestFit(8)))


def test_a_dataset_by_name(tmp_path):
    pytest.importorskip("datasets", reason="optional")
    from hekaton_hf.sections import HubStreamSection
    from hekaton_hf.stream.hub import build as build_hub

    for number in range(3):
        part = TEXTS[number * 10 : number * 10 + 10] if number < 2 else TEXTS[20:]
        (tmp_path / f"train-{number}.jsonl").write_bytes(jsonl(part))
    found = build_hub(HubStreamSection(shuffle_buffer=1), str(tmp_path))
    assert len(found) == 3
    assert steps(loader(found)) == expected()
    with pytest.raises(
        DataError, match="4 rows of the global batch read parts of their own, and the stream has 3"
    ):
        found.check_rows(4)
    with pytest.raises(DataError, match=r"(?s)no column 'body' in shard 0 of .*is one of: text"):
        steps(loader(build_hub(HubStreamSection(text_column="body"), str(tmp_path))))
    (tmp_path / "train-1.jsonl").write_bytes(jsonl([text.swapcase() for text in TEXTS[10:20]]))
    changed = build_hub(HubStreamSection(shuffle_buffer=1), str(tmp_path))
    assert changed.fingerprint != found.fingerprint
    differing = {
        Path(name).name for name, content in changed.files().items() if found.files()[name] != content
    }
    assert differing == {"train-1.jsonl"}
    with pytest.raises(DataError, match=r"cannot open the dataset '.*nothing'"):
        build_hub(HubStreamSection(), str(tmp_path / "nothing"))


def test_the_commit_of_a_dataset_of_the_hub_counts():
    """Its name is the same on each machine, and what stands behind it may have changed in between."""
    from hekaton_hf.stream.hub import files_of

    class Files(list):
        origin_metadata = (("some/texts", "commit"),)

    def known(commit):
        files = {"train": Files([f"hf://datasets/some/texts@{commit}/a.parquet"]), "test": Files(["hf://b"])}
        return files_of(SimpleNamespace(config=SimpleNamespace(data_files=files)), "train")

    (one,), (other,) = known("1f2e").values(), known("9c8d").values()
    assert one != other
    assert files_of(SimpleNamespace(config=SimpleNamespace(data_files=None)), "train") == {}


def test_files_on_a_disk_differ_by_their_content_though_size_and_times_are_the_same(tmp_path):
    file = tmp_path / "a.jsonl"
    states = []
    for word in ("same", "some"):
        file.write_bytes(jsonl([f"One word of this text is the {word}."]))
        os.utime(file, (10**9, 10**9))
        states.append(build(section(), f"file://{file}").fingerprint)
    assert states[0] != states[1]
