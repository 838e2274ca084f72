"""Local files as documents, and what can be wrong with them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hekaton.cli import main
from hekaton.data import Documents
from hekaton.data.loader import build_loader
from hekaton.errors import DataError
from hekaton.testing import run_processes
from hekaton_hf.files import COMPRESSED
from hekaton_hf.sections import TextDatasetSection
from hekaton_hf.text import build
from hekaton_hf.tokenizer import build as build_tokenizer

TEXTS = ["one", "two\n\nlines ", "", "größe 日本 🎉", "five"]


def jsonl(path: Path, texts: list[str | None], key: str = "text", **more: object) -> Path:
    lines = [json.dumps({key: text, **more}) + "\n" for text in texts]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(lines), encoding="utf-8")
    return path


COMPRESSORS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


def read(path: str | Path | None, **section: object) -> list[str]:
    documents = build(TextDatasetSection.model_validate(section), None if path is None else str(path))
    assert isinstance(documents, Documents)
    return documents.fetch(range(len(documents)))


def test_json_lines_are_read(here: Path) -> None:
    assert read(jsonl(here / "a.jsonl", TEXTS, n=1)) == TEXTS


def test_a_json_list_is_read(here: Path) -> None:
    (here / "a.json").write_text(json.dumps([{"text": text} for text in TEXTS]))
    assert read("a.json") == TEXTS


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_compressed_files_of_several_parts(here: Path, name: str, suffix: str) -> None:
    """As ``cat a.gz b.gz`` makes them."""
    compress = COMPRESSORS[suffix]
    plain = jsonl(here / "x", TEXTS).read_bytes()
    if name == "a.txt":
        plain = "\n".join(TEXTS).encode()
    (here / (name + suffix)).write_bytes(compress(plain[:20]) + compress(plain[20:]))
    expected = TEXTS if name == "a.jsonl" else "\n".join(TEXTS).split("\n")
    assert read(name + suffix, txt_documents="line") == expected


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_parquet_is_read(here: Path, kind: pa.DataType) -> None:
    table = pa.table({"id": range(5), "text": pa.array(TEXTS, kind)})
    pq.write_table(table, here / "a.parquet", row_group_size=2)
    assert read("a.parquet") == TEXTS


def test_what_a_document_is_in_a_txt_file(here: Path) -> None:
    (here / "a.txt").write_text("one\ntwo\n\nthree\n")
    (here / "b.txt").write_bytes(b"four\r\n\r\n\r\n five \r\nsix")
    assert read("*.txt") == ["one\ntwo\n\nthree\n", "four\r\n\r\n\r\n five \r\nsix"]
    assert read("a.txt", txt_documents="line") == ["one", "two", "", "three"]
    assert read("b.txt", txt_documents="line") == ["four", "", "", " five ", "six"]
    assert read("*.txt", txt_documents="paragraph") == ["one\ntwo", "three", "four", " five \r\nsix"]


def test_another_column_is_read(here: Path) -> None:
    assert read(jsonl(here / "a.jsonl", TEXTS, key="content"), text_column="content") == TEXTS


def test_nulls_are_empty_documents(here: Path) -> None:
    assert read(jsonl(here / "a.jsonl", ["one", None])) == ["one", ""]


def test_documents_are_fetched_in_any_order(here: Path) -> None:
    jsonl(here / "a.jsonl", TEXTS[:2])
    (here / "b.txt").write_text("text")
    jsonl(here / "c.jsonl", TEXTS[2:])
    documents = build(TextDatasetSection(), "*")
    assert len(documents) == 6
    assert documents.fetch([5, 0, 2, 5, 3, 1]) == [TEXTS[4], TEXTS[0], "text", TEXTS[4], TEXTS[2], TEXTS[1]]


def test_files_with_different_keys_are_read(here: Path) -> None:
    jsonl(here / "a.jsonl", ["one"], meta={"source": 1})
    jsonl(here / "b.jsonl", ["two"], url="x")
    assert read("*.jsonl") == ["one", "two"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("data", "a b c d"),  # a folder, all below it, by name
        ("data/**/*.jsonl", "a b c d"),
        ("data/?.jsonl", "a b"),
        ("data/b.jsonl, data/a.jsonl", "b a"),
        ("data/{b,a}.jsonl", "b a"),
        ("data/{more/{c,d},a}.jsonl", "c d a"),
        ("data/a.jsonl,data/*.jsonl", "a b"),  # each file once
        ("odd [1], {x}.jsonl", "odd"),
    ],
)
def test_paths_and_patterns_are_resolved(here: Path, path: str, expected: str) -> None:
    for name in ("b", "a", "more/d", "more/c"):
        jsonl(here / "data" / f"{name}.jsonl", [name[-1]])
    (here / "data" / "README.md").write_text("no document")
    jsonl(here / "odd [1], {x}.jsonl", ["odd"])
    assert " ".join(read(path)) == expected


def test_ids_in_batches_are_those_of_the_tokenizer(here: Path) -> None:
    """From files to batches: one row's tokens, decoded, are the documents between their marks."""
    documents = build(TextDatasetSection(), str(jsonl(here / "a.jsonl", TEXTS)))
    tokenizer = build_tokenizer(None, None)
    loader = build_loader(
        documents, tokenizer, seq_len=16, global_batch_size=1, rows=range(1), seed=0, repeat=False,
        packing="concat", num_workers=1,
    )  # fmt: skip
    tokens = []
    while True:
        try:
            step = loader.next_step()
        except StopIteration:
            break
        real = int((step["labels"] >= 0).sum())
        tokens += (tokens == [] and step["tokens"][0, :1].tolist()) or []
        tokens += step["labels"][0, :real].tolist()
    loader.close()
    assert tokens[0] == tokenizer.bos_id
    assert tokens[-1] == tokenizer.eos_id
    read = tokenizer.decode(tokens[1:-1]).split("<|end_of_text|><|begin_of_text|>")
    assert sorted(read) == sorted(text for text in TEXTS if text)


def test_workers_after_the_tokenizer_had_threads(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The threads are not there after a fork: a worker must neither wait for them nor warn."""
    monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
    tokenizer = build_tokenizer(None, None)
    tokenizer.encode_batch(TEXTS * 100)
    documents = build(TextDatasetSection(), str(jsonl(here / "a.jsonl", TEXTS)))
    for value in (None, "true"):
        if value is not None:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", value)
        loader = build_loader(
            documents, tokenizer, seq_len=64, global_batch_size=4, rows=range(4), seed=0, num_workers=2
        )
        assert loader.next_step()["tokens"].shape == (4, 64)
        loader.close()
        assert os.environ.get("TOKENIZERS_PARALLELISM") == value
    assert capfd.readouterr().err == ""


def test_processes_that_open_the_same_files_at_once(here: Path) -> None:
    jsonl(here / "a.jsonl", TEXTS * 1000)
    ranks = run_processes(
        Path(__file__).with_name("text_on_processes.py"), "build_and_tell", processes=3, path="a.jsonl"
    )
    assert {rank.stderr for rank in ranks} == {""}  # and no progress bars
    (said,) = {rank.stdout for rank in ranks}
    assert said.startswith("5000 five ")


def test_the_fingerprint_changes_with_the_files(here: Path) -> None:
    def fingerprint(path: str, **section: str) -> str:
        return build(TextDatasetSection.model_validate(section), path).fingerprint

    for folder in ("1", "2"):
        jsonl(here / folder / "a.jsonl", ["one"], key="text")
        jsonl(here / folder / "b" / "c.jsonl", ["two"], key="text")
    first = fingerprint("1")
    assert fingerprint("2") == first
    assert fingerprint("1/b/c.jsonl,1/a.jsonl") != first
    jsonl(here / "2" / "a.jsonl", ["longer"])
    assert fingerprint("2") != first
    (here / "x.txt").write_text("x\ny")
    assert fingerprint("x.txt") != fingerprint("x.txt", txt_documents="line")


def refused(path: str | None, **section: object) -> str:
    with pytest.raises(DataError) as e:
        read(path, **section)
    return str(e.value)


def test_a_missing_path_is_an_error() -> None:
    assert "dataset 'text' needs files to read" in refused(None)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("nothing/*.jsonl", "there is no 'nothing' in '{here}'"),
        ("data/nothing.jsonl", "there is no 'nothing.jsonl' in '{here}/data'"),
        ("data/b*.jsonl", "nothing in '{here}/data' is of the form 'b*.jsonl'"),
        ("d*/b/*.jsonl", "nothing in '{here}' is of the form 'd*/b/*.jsonl'"),
        ("data/a.jsonl,nothing.txt", "there is no 'nothing.txt' in '{here}'"),
        ("empty", "'{here}/empty' is an empty folder"),
    ],
)
def test_a_path_that_matches_nothing_is_an_error(here: Path, path: str, hint: str) -> None:
    jsonl(here / "data" / "a.jsonl", TEXTS)
    (here / "empty").mkdir()
    assert refused(path) == f"no files match '{path.split(',')[-1]}'\n  {hint.format(here=here)}"


def test_an_unknown_format_is_an_error(here: Path) -> None:
    (here / "a.csv").write_text("text\nx\n")
    (here / "a.parquet.gz").write_text("")
    said = refused("*")
    assert "cannot read 'a.csv' and 1 more: not a format that dataset 'text' knows" in said
    assert ".jsonl, .ndjson, .json, .txt, .parquet" in said


def test_a_missing_column_is_an_error(here: Path) -> None:
    path = jsonl(here / "a.jsonl", TEXTS, key="content", id=3)
    said = refused(str(path))
    assert f"no column 'text' in '{path}'" in said
    assert "set text_dataset.text_column to one of: 'content', 'id'" in said


def test_a_column_that_is_not_text_is_an_error(here: Path) -> None:
    path = jsonl(here / "a.jsonl", TEXTS, id=3)
    said = refused(str(path), text_column="id")
    assert "5 rows of the data cannot be read" in said
    assert f"'{path}', line 1: 'id' is not text but a number" in said
    pq.write_table(pa.table({"id": [1, 2]}), here / "b.parquet")
    said = refused("b.parquet", text_column="id")
    assert said == f"cannot read '{here / 'b.parquet'}': column 'id' is not text but int64"


@pytest.mark.parametrize("name", ["b.parquet", "b.jsonl.gz", "b.jsonl.bz2", "b.jsonl.xz", "b.jsonl.zst"])
@pytest.mark.parametrize("beside", [False, True])
def test_a_broken_file_is_named(here: Path, name: str, beside: bool) -> None:
    (here / name).write_text('{"text": "one"}\n{"text": ')
    if beside:
        jsonl(here / "a.jsonl", TEXTS)
        jsonl(here / "c.jsonl", TEXTS)
    assert f"cannot read '{here / name}': " in refused("*")


@pytest.mark.parametrize("name", ["b.jsonl.gz", "b.jsonl.bz2", "b.jsonl.xz", "b.jsonl.zst"])
def test_a_truncated_compressed_file_is_an_error(here: Path, name: str) -> None:
    lines = b"".join(json.dumps({"text": f"{i}" * 50}).encode() + b"\n" for i in range(1000))
    whole = COMPRESSORS[Path(name).suffix](lines)
    (here / name).write_bytes(whole[: len(whole) // 2])
    assert f"cannot read '{here / name}': " in refused(name, max_bad_rows=10_000)


@pytest.mark.parametrize("ending", COMPRESSED)
def test_a_compressed_file_of_no_bytes_is_cut_short(here: Path, ending: str) -> None:
    jsonl(here / "a.jsonl", TEXTS)
    (here / f"b.jsonl{ending}").touch()
    assert f"cannot read '{here}/b.jsonl{ending}': Compressed file ended before the end" in refused("*")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.json"])
def test_empty_files_are_an_error(here: Path, name: str) -> None:
    (here / name).touch()
    assert refused(name) == f"the dataset is empty: there are no documents in '{here / name}'"


def test_an_empty_parquet_file_is_an_error(here: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), here / "a.parquet")
    (here / "b.txt").touch()
    assert (
        refused("*") == f"the dataset is empty: there are no documents in '{here / 'a.parquet'}' and 1 more"
    )


def test_documents_without_text_are_an_error(here: Path) -> None:
    jsonl(here / "a.jsonl", ["", None])
    file = here / "a.jsonl"
    said = f"the dataset is empty: none of the documents in '{file}' has text in column 'text'"
    assert refused("*") == said


def test_an_empty_source_of_a_mixture_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonl(here / "a.jsonl", [""])
    (here / "b.jsonl").touch()
    for file in ("a", "b"):
        Path("run.toml").write_text(
            '[training]\ndataset = "mixture"\n[[mixture.sources]]\ndataset = "python_stdlib_validation"\n'
            f'[[mixture.sources]]\nname = "web"\ndataset = "text"\ndataset_path = "{here / file}.jsonl"\n'
        )
        assert main(["data", "show", "run.toml", "--model.tokenizer", "byte"]) == 2
        assert "error: source 'web': the dataset is empty: " in capsys.readouterr().err


def test_an_empty_file_among_others_is_accepted(here: Path) -> None:
    (here / "a.jsonl").touch()
    (here / "b.jsonl.gz").write_bytes(gzip.compress(b""))
    jsonl(here / "c.jsonl", TEXTS)
    assert read("*") == TEXTS
