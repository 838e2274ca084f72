"""What rows hold: other columns of any kind, bytes that are no text, other encodings, rows that are broken."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hekaton.errors import DataError
from hekaton_hf.decoding import UnreadableError
from hekaton_hf.readers import whole_lines
from hekaton_hf.sections import TextDatasetSection
from hekaton_hf.text import build


def read(path: str, **section: object) -> list[str]:
    documents = build(TextDatasetSection.model_validate(section), path)
    return documents.fetch(range(len(documents)))


def refused(path: str, **section: object) -> str:
    with pytest.raises(DataError) as e:
        read(path, **section)
    return str(e.value)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture):  # type: ignore[no-untyped-def]
    caplog.set_level(logging.INFO, logger="hekaton")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


OTHER_COLUMNS = {
    "a null for 10 MB, then text": ['"meta": null'] * 200_000 + ['"meta": "x"'],
    "a key that appears late": ['"a": 1'] * 1000 + ['"late": {"deep": [1]}'],
    "not a number beside more than 64 bits": ['"n": NaN', f'"n": {2**70}', '"n": -Infinity', '"n": 1.5'],
    "an integer of 5,000 digits": [f'"n": {"9" * 5000}'],
    "text that looks like a date": ['"d": "2020-01-01"', '"d": "2020-01-01T00:00:00Z"', '"d": "no date"'],
    "another type in each row": ['"x": 1', '"x": "1"', '"x": [1, "a", null]', '"x": {"y": 1}', '"x": true'],
    "100,000 levels": ['"x": 1', f'"x": {"[" * 300}{"]" * 300}'],
    "the same key twice": ['"text": 7'],
}


@pytest.mark.parametrize("kind", OTHER_COLUMNS)
def test_other_columns_of_json_do_not_matter(here: Path, kind: str) -> None:
    others = OTHER_COLUMNS[kind]
    lines = [f'{{{other}, "text": "document {number}"}}' for number, other in enumerate(others)]
    expected = [f"document {number}" for number in range(len(others))]
    (here / "a.jsonl").write_text("\n".join(lines) + "\n")
    assert read("a.jsonl") == expected
    (here / "b.json").write_text("[" + ",\n".join(lines) + "]")
    assert read("b.json") == expected


def test_text_that_looks_like_a_date_or_a_number_stays_what_it_is(here: Path) -> None:
    texts = ["2020-01-01", "1e5", "null", "NaN", "0001", "2020-01-01T00:00:00+00:00"]
    (here / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    assert read("a.jsonl") == texts


def test_files_without_any_text_among_others(here: Path) -> None:
    (here / "a.jsonl").write_text('{"text": null}\n' * 3)
    pq.write_table(pa.table({"text": pa.array([None, None], pa.null())}), here / "b.parquet")
    (here / "c.jsonl").write_text('{"id": 1}\n{"id": 2, "text": "c"}\n')
    assert read("*") == ["", "", "", "", "", "", "c"]


TEXTS = ["one", None, "größe 日本 🎉", "", "one"]


@pytest.mark.parametrize(
    "kind",
    [
        pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string()), pa.json_(),
    ],
    ids=str,
)  # fmt: skip
def test_every_way_in_which_parquet_keeps_text(here: Path, kind: pa.DataType) -> None:
    if pa.types.is_dictionary(kind):
        values = pa.array(TEXTS, kind.value_type).dictionary_encode().cast(kind)
    elif isinstance(kind, pa.BaseExtensionType):
        values = pa.ExtensionArray.from_storage(kind, pa.array(TEXTS, kind.storage_type))
    else:
        values = pa.array([text and text.encode() for text in TEXTS], pa.binary()).cast(kind)
    other = pa.array([{"text": 1}] * 5)
    pq.write_table(
        pa.table({"id": range(5), "text": values, "other": other}), here / "a.parquet", row_group_size=2
    )
    assert read("a.parquet") == ["one", "", "größe 日本 🎉", "", "one"]


def test_parquet_with_bytes_that_are_not_text(here: Path, said) -> None:  # type: ignore[no-untyped-def]
    values = pa.array([b"good", b"bad \xff\xfe", b"nu\0ll", None], pa.binary())
    pq.write_table(pa.table({"text": values.view(pa.string())}), here / "a.parquet")
    assert read("*") == ["good", "bad \ufffd\ufffd", "nu\ufffdll", ""]
    assert "2 documents with bytes that are not UTF-8, or null characters, which are read as U+FFFD" in said()
    assert f"'{here / 'a.parquet'}', row 2" in said()


def test_bytes_that_are_not_text_are_replaced_counted_and_named(here: Path, said) -> None:  # type: ignore[no-untyped-def]
    (here / "a.jsonl").write_bytes(
        b'{"text": "good \xef\xbf\xbd"}\n{"text": "\xff"}\n{"text": "good", "other": "\xff"}\n\n'
        b'{"text": "\\ud800 half"}\n{"text": "\\u0000"}\n{"text": "\\ud83c\\udf89"}\n{"text": "\xe2\x82"}'
    )
    (here / "b.txt").write_bytes(b"one\ntwo\n\xc0 three\nfour \0\n")
    assert read("a.jsonl") == ["good \ufffd", "\ufffd", "good", "\ufffd half", "\ufffd", "🎉", "\ufffd"]
    assert (
        f"notice: 4 documents with bytes that are not UTF-8, or null characters, which are read as U+FFFD:\n  '{here}/a.jsonl', line 2\n  '{here}/a.jsonl', line 5\n  '{here}/a.jsonl', line 6\n  and 1 more"
        in said()
    )
    assert read("b.txt", txt_documents="line") == ["one", "two", "\ufffd three", "four \ufffd"]
    assert (
        f"2 documents with bytes that are not UTF-8, or null characters, which are read as U+FFFD:\n  '{here}/b.txt', line 3\n  '{here}/b.txt', line 4"
        in said()
    )
    assert read("b.txt") == ["one\ntwo\n\ufffd three\nfour \ufffd\n"]
    assert (
        f"1 document with bytes that are not UTF-8, or null characters, which are read as U+FFFD:\n  '{here}/b.txt', line 3"
        in said()
    )
    assert read("b.txt", txt_documents="paragraph") == ["one\ntwo\n\ufffd three\nfour \ufffd"]


def test_what_was_replaced_is_said_again_when_the_index_is_there(here: Path, said, caplog) -> None:  # type: ignore[no-untyped-def]
    (here / "b.txt").write_bytes(b"\xff")
    read("b.txt")
    first = said()
    caplog.clear()
    read("b.txt")
    assert said() == first
    assert "line 1" in first


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
def test_other_encodings_with_a_byte_order_mark(here: Path, encoding: str, name: str) -> None:
    text = "größe 日本 🎉\nsecond"
    content = text if name == "a.txt" else json.dumps({"text": text}, ensure_ascii=False) + "\n"
    mark = "\ufeff" if encoding.endswith("-be") else ""
    (here / name).write_bytes((mark + content).encode(encoding))
    assert read(name) == [text]
    if name == "a.txt":
        assert read(name, txt_documents="line") == text.split("\n")


def test_broken_utf_16_is_replaced_and_counted(here: Path, said) -> None:  # type: ignore[no-untyped-def]
    (here / "a.txt").write_bytes("\ufeffone\n".encode("utf-16-le") + b"\x00\xd8t\0w\0o\0\n\0t\0h\0r")
    one, two, three = read("a.txt", txt_documents="line")
    assert (one, two.strip("\ufffd"), three.strip("\ufffd")) == ("one", "two", "th")
    assert (two[0], three[-1]) == ("\ufffd", "\ufffd")
    assert (
        f"2 documents with bytes that are not UTF-8, or null characters, which are read as U+FFFD:\n  '{here}/a.txt', line 2\n  '{here}/a.txt', line 3"
        in said()
    )


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.txt.gz"])
def test_utf16_without_a_byte_order_mark_is_an_error(here: Path, name: str) -> None:
    import gzip

    compress = gzip.compress if name.endswith(".gz") else bytes
    (here / name).write_bytes(compress((json.dumps({"text": "a text " * 20}) + "\n").encode("utf-16-le")))
    assert "it is full of null bytes: not text, or UTF-16 without a byte order mark" in refused(name)
    assert f"cannot read '{here / name}'" in refused(name)
    (here / name).write_bytes(compress(("日本語の文章です" * 50).encode("gb18030")))
    assert "it is not UTF-8: " in refused(name)
    assert "recode it" in refused(name)


def test_byte_order_marks_between_joined_files(here: Path) -> None:
    (here / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\xef\xbb\xbf{"text": "two"}\r\n')
    assert read("a.jsonl") == ["one", "two"]


BROKEN = (
    b'{"text": "one"}\n'
    b'{"text": "tw\n'
    b"\0\0\0\0\n"
    b"[1]\n"
    b'"text"\n'
    b'{"text": ["three"]}\n'
    b'{"text": 4}\n'
    b"   \n"
    b'{"text": "five"}\n'
    b'{"text": "six"} {"text": "seven"}\n'
    b'{"text": true}'
)
REASONS = [
    "line 2: not JSON: Unterminated string starting at",
    "line 3: not JSON: Expecting value at character 1",
    "line 4: a JSON object was expected, not a list",
]


def test_broken_rows_are_found_at_the_start(here: Path) -> None:
    (here / "a.jsonl").write_bytes(BROKEN)
    message = refused("a.jsonl")
    assert message.startswith("8 rows of the data cannot be read\n")
    for reason in REASONS:
        assert f"'{here / 'a.jsonl'}', {reason}" in message
    assert "and 5 more" in message
    assert "text_dataset.max_bad_rows = 8" in message
    assert refused("a.jsonl", max_bad_rows=7) == message


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_broken_rows_are_skipped_up_to_a_limit(here: Path, suffix: str, said) -> None:  # type: ignore[no-untyped-def]
    import gzip

    (here / f"a.jsonl{suffix}").write_bytes(gzip.compress(BROKEN) if suffix else BROKEN)
    assert read(f"a.jsonl{suffix}", max_bad_rows=8) == ["one", "five"]
    assert "notice: skipping 8 rows that cannot be read:" in said()
    assert f"'{here / 'a.jsonl'}{suffix}', {REASONS[0]}" in said()


def test_broken_rows_of_a_list(here: Path) -> None:
    (here / "a.json").write_text('[{"text": "one"}, 2, null, {"text": 3}, {"text": "four"}]')
    message = refused("a.json")
    assert "3 rows of the data cannot be read" in message
    assert "row 2: a JSON object was expected, not a number" in message
    assert "row 4: 'text' is not text but a number" in message
    assert read("a.json", max_bad_rows=3) == ["one", "four"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"text": "one"},\n{"text": "tw', "line 2: not JSON: Unterminated string"),
        (
            '[{"text": "one"}\n{"text": "two"}]',
            "line 2: not JSON: a list continues with ',' or ends with ']'",
        ),
        ('[{"text": "one"}', "line 1: not JSON: a list continues with ',' or ends with ']'"),
        ('[{"text": "one"},', "line 1: not JSON: the list has no end"),
        ('[{"text": "one"}] more', "line 1: not JSON: something follows the list"),
        ('{\n"text": "one"\n}\n{\n"text": two\n}', "line 5: not JSON: Expecting value"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_list_that_cannot_be_parsed_further_is_an_error(here: Path, content: str, expected: str) -> None:
    (here / "a.json").write_text(content)
    message = refused("a.json", max_bad_rows=100)
    assert f"cannot read '{here / 'a.json'}': " in message
    assert expected in message


def test_a_row_that_would_fill_the_memory_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compressed text may be a thousand times as long as its file."""
    assert list(whole_lines(iter([b"aaaa", b"a\nbb", b"bbb\n"]), most=5)) == [b"aaaaa\n", b"bbbbb\n"]
    with pytest.raises(UnreadableError, match="it has a line of more than 5 bytes"):
        list(whole_lines(iter([b"a\n", b"bbbb", b"bb"]), most=5))
    monkeypatch.setattr("hekaton_hf.readers.json_rows.MOST_OF_LINE", 1 << 20)
    (here / "a.json").write_text('[\n{"text": "' + ("x" * 99 + "\n") * 40_000 + '"}]')
    assert "it has a value of more than 1,048,576 characters" in refused("a.json")


def test_a_list_in_one_line_is_read_row_by_row(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the line is: it is never in memory as a whole."""
    monkeypatch.setattr("hekaton_hf.readers.json_rows.MOST_OF_JSON", 1000)
    monkeypatch.setattr("hekaton_hf.decoding.BLOCK", 100)
    texts = [f"größe {number}" for number in range(400)]
    (here / "a.json").write_text("  \n " + json.dumps([{"text": text} for text in texts]))
    assert read("a.json") == texts


def test_objects_over_many_lines(here: Path) -> None:
    rows = [{"text": "one", "n": [1, 2]}, {"text": "two"}]
    (here / "a.json").write_text("\n".join(json.dumps(row, indent=2) for row in rows))
    (here / "b.json").write_text(json.dumps(rows, indent=2))
    (here / "c.json").write_text("\n \n" + "\n".join(map(json.dumps, rows)))
    assert read("*.json") == ["one", "two"] * 3


def test_json_that_is_nested_too_deeply_is_a_bad_row_however_deep_the_caller_is(here: Path) -> None:
    deepest = 0
    for depth in (500, 900, 950, 980, 990, 100_000):
        nested = "[" * depth + "]" * depth
        (here / "a.jsonl").write_text(f'{{"text": "shallow"}}\n{{"x": {nested}, "text": "deep"}}\n')
        documents = build(TextDatasetSection(max_bad_rows=1), "a.jsonl")
        if len(documents) == 2:
            deepest = depth

            def fetched(frames: int) -> list[str]:
                return fetched(frames - 1) if frames else documents.fetch([1])  # noqa: B023

            assert fetched(850) == ["deep"]
    assert 500 <= deepest < 100_000
    assert "nested too deeply" in refused("a.jsonl")


def test_a_document_that_is_longer_than_what_a_system_reads_at_once(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hekaton_hf.open_files._MOST_AT_ONCE", 5)
    text = "größe 日本 🎉 " * 10
    (here / "a.txt").write_text(text)
    (here / "b.jsonl").write_text(json.dumps({"text": text}))
    assert read("*") == [text, text]


def test_a_document_of_more_than_2_gib_is_an_error(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (here / "a.txt").open("wb") as stream:
        stream.write(b"It was a dark and stormy night.\n" * 40_000)
        stream.truncate((1 << 31) + 1)  # a hole: nothing more is written
    message = refused("a.txt")
    assert f"cannot read '{here / 'a.txt'}': it has a document of more than 2,147,483,648 bytes" in message
    assert 'split it, or set text_dataset.txt_documents = "line" or "paragraph"' in message
    monkeypatch.setattr("hekaton_hf.readers.txt.MOST_OF_TEXT", 1000)
    (here / "b.txt.gz").write_bytes(gzip.compress(b"a line\n" * 200))
    assert "it has a document of more than 1,000 bytes, since a file is one" in refused("b.txt.gz")
    (here / "c.txt").write_text(("a line\n" * 100 + "\n") * 3)
    assert len(read("c.txt", txt_documents="paragraph")) == 3
    (here / "c.txt").write_text("a line\n" * 200)
    message = refused("c.txt", txt_documents="paragraph")
    assert "it has a document of more than 1,000 bytes, since a paragraph is one" in message
