"""Generated folders and files, against a plain reading of the same files."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hekaton.errors import DataError
from hekaton_hf import decoding
from hekaton_hf.files import find_files
from hekaton_hf.readers import files as reading
from hekaton_hf.sections import TextDatasetSection
from hekaton_hf.text import build

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "50"))

thorough = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

COMPRESSORS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}
odd_characters = st.sampled_from('\0\n\r\t "\\{}[],:\u2028\ufeff\ufffd\ud800\udfff\x85é日🎉')
texts = st.text(st.one_of(odd_characters, st.characters()), max_size=30)
other_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**200), 2**200), st.floats(), texts, st.just("2020-01-01")
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
rows = st.tuples(
    st.dictionaries(st.sampled_from(["a", "b", "meta"]), other_values, max_size=3),
    st.one_of(
        st.just({}),
        st.one_of(st.none(), texts, texts, texts, other_values).map(lambda value: {"text": value}),
    ),
    st.booleans(),
)
line_ends = st.sampled_from(["\n", "\r\n", "\n\n"])
damages = st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=3)), max_size=3)


def mark_replaced(text: str) -> str:
    return re.sub("[\0\ud800-\udfff]", "\ufffd", text)


@contextlib.contextmanager
def small_blocks(size: int) -> Iterator[Path]:
    """An empty folder, and readers that take a few bytes at a time."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(reading, "BLOCK", size),
        mock.patch.object(decoding, "_PROBED", 4),
    ):
        yield Path(folder)


def damaged(content: bytes, damage: list[tuple[int, bytes]]) -> bytes:
    for place, replacement in damage:
        place %= len(content) + 1
        content = content[:place] + replacement + content[place + len(replacement) :]
    return content


def read(path: Path, **section: object) -> list[str] | str:
    """The documents, or the message of the refusal."""
    try:
        documents = build(TextDatasetSection.model_validate(section), str(path))
    except DataError as e:
        return str(e)
    return documents.fetch(range(len(documents)))


def decoded(content: bytes) -> str:
    """By byte order mark, else UTF-8."""
    if content.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return content.decode("utf-32", "replace")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return content.decode("utf-16", "replace")
    return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace")


def plain_lines(content: bytes) -> tuple[list[str], int]:
    """Documents of JSON lines, and the number of bad rows."""
    documents, bad = [], 0
    for line in decoded(content).split("\n"):
        line = line.removeprefix("\ufeff")
        if not line.strip(" \t\r\n\v\f"):
            continue
        try:
            row = json.loads(line, strict=False, parse_int=str)
            value = row.get("text")
            assert value is None or (isinstance(value, str) and not is_integer(line))
        except (ValueError, AttributeError, AssertionError):
            bad += 1
        else:
            documents.append(mark_replaced(value or ""))
    return documents, bad


def is_integer(line: str) -> bool:
    """Integers were parsed as text, for Python refuses long ones."""
    return isinstance(json.loads(line, strict=False, parse_int=float).get("text"), float)


@thorough
@given(
    st.lists(st.tuples(rows, line_ends), min_size=1, max_size=8),
    st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    damages,
    st.sampled_from(sorted(COMPRESSORS)),
    st.sampled_from([1, 3, 17, 1 << 20]),
)
def test_json_lines(lines, encoding, damage, suffix, block) -> None:  # type: ignore[no-untyped-def]
    content = ""
    for (other, text, ascii_only), end in lines:
        content += json.dumps(other | text, ensure_ascii=ascii_only) + end
    errors = "replace" if encoding in ("utf-16", "utf-32") else "surrogatepass"
    raw = damaged(content.encode(encoding, errors), damage if errors == "surrogatepass" else [])
    expected, bad = plain_lines(raw)
    with small_blocks(block) as folder:
        path = folder / f"a.jsonl{suffix}"
        path.write_bytes(COMPRESSORS[suffix](raw))
        found = read(path, max_bad_rows=1000)
        if isinstance(found, str):
            assert "no column 'text'" in found or "the dataset is empty" in found, found
            assert not any(expected)
        else:
            assert found == expected
            strict = read(path)
            assert (
                strict == expected if not bad else f"{bad} row{'s' * (bad > 1)} of the data cannot" in strict
            )


@thorough
@given(
    st.lists(rows, min_size=1, max_size=6),
    st.sampled_from([None, 1]),
    st.booleans(),
    st.sampled_from([1, 3, 17, 1 << 20]),
)
def test_json_lists_and_objects_over_many_lines(values, indent, as_list, block) -> None:  # type: ignore[no-untyped-def]
    parts = [
        json.dumps(other | text, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        for other, text, ascii_only in values
        if as_list or other | text  # on one line with any indent
    ]
    rows = [json.loads(part.decode("utf-8", "replace"), parse_int=float) for part in parts]
    expected = [
        mark_replaced(row.get("text") or "") for row in rows if isinstance(row.get("text"), str | None)
    ]
    with small_blocks(block) as folder:
        path = folder / "a.json"
        path.write_bytes(b"[" + b", ".join(parts) + b"]\n" if as_list else b"\n".join(parts))
        found = read(path, max_bad_rows=1000)
        if isinstance(found, str):
            assert "no column 'text'" in found or "the dataset is empty" in found, found
            assert not any(expected)
        else:
            assert found == expected


def plain_documents(content: bytes, documents: str) -> list[str]:
    if documents == "file":
        text = decoded(content)
        return [text.replace("\0", "\ufffd")] if text else []
    lines = decoded(content).split("\n")
    if lines[-1] == "":
        lines.pop()
    ends = ["\r" if line.endswith("\r") else "" for line in lines]
    lines = [line.removesuffix("\r") for line in lines]
    # The last line has no end, but for a lone "\r".
    if not decoded(content).endswith("\n") and lines and ends[-1]:
        ends[-1] = ""
    if documents == "line":
        return [line.replace("\0", "\ufffd") for line in lines]
    paragraphs: list[str] = []
    is_new = True
    for number, line in enumerate(lines):
        if line and is_new:
            paragraphs.append(line)
        elif line:
            paragraphs[-1] += ends[number - 1] + "\n" + line
        is_new = not line
    return [paragraph.replace("\0", "\ufffd") for paragraph in paragraphs]


@thorough
@given(
    st.lists(
        st.one_of(texts, st.sampled_from(["\n", "\r\n", "\n\n\n", "\r", "a", "\n\r\n"])),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    damages,
    st.sampled_from(["file", "line", "paragraph"]),
    st.sampled_from(["", ".gz", ".zst"]),
    st.sampled_from([1, 3, 17, 1 << 20]),
)
def test_txt(parts, encoding, damage, documents, suffix, block) -> None:  # type: ignore[no-untyped-def]
    errors = "replace" if encoding in ("utf-16", "utf-32") else "surrogatepass"
    raw = damaged("".join(parts).encode(encoding, errors), damage if errors == "surrogatepass" else [])
    expected = plain_documents(raw, documents)
    with small_blocks(block) as folder:
        path = folder / f"a.txt{suffix}"
        path.write_bytes(COMPRESSORS[suffix](raw))
        found = read(path, txt_documents=documents)
        if isinstance(found, str):
            assert "the dataset is empty: there are no documents" in found
            assert expected == []
        else:
            assert found == expected


@thorough
@given(
    st.lists(
        st.one_of(
            st.none(), st.binary(max_size=8), texts.map(lambda text: text.encode("utf-8", "surrogatepass"))
        ),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from(["string", "large_string", "string_view", "binary", "dictionary"]),
    st.integers(1, 7),
)
def test_parquet(values, kind, rows_of_a_group) -> None:  # type: ignore[no-untyped-def]
    column = pa.array(values, pa.binary())
    if kind == "dictionary":
        column = column.dictionary_encode()
    elif kind != "binary":
        column = column.view(pa.string()).cast(getattr(pa, kind)())
    with small_blocks(1 << 20) as folder:
        path = folder / "a.parquet"
        pq.write_table(
            pa.table({"id": range(len(values)), "text": column}), path, row_group_size=rows_of_a_group
        )
        found = read(path)
        expected = [(value or b"").decode("utf-8", "replace").replace("\0", "\ufffd") for value in values]
        assert found == expected if any(expected) else "the dataset is empty" in found


names = st.one_of(
    st.text(st.sampled_from("ab ._~[]{},:*?\\é"), min_size=1, max_size=4).filter(
        lambda name: name not in (".", "..")
    ),
    st.sampled_from([".ipynb_checkpoints", "__MACOSX", "a::b", "__pycache__", "dataset_info.json"]),
)
suffixes = st.sampled_from([".jsonl", ".ndjson", ".txt", ".md", ".jsonl.gz", "", ".JSONL"])
places = st.lists(names, max_size=2)


@thorough
@given(
    st.lists(st.tuples(places, names, suffixes), max_size=8),
    st.lists(st.tuples(places, names, st.integers(0, 20), st.booleans()), max_size=3),
)
def test_what_is_found_in_a_folder(files, links) -> None:  # type: ignore[no-untyped-def]
    with tempfile.TemporaryDirectory() as base:
        root, outside = Path(base, "root"), Path(base, "outside")
        for folder in (root, outside / "deep"):
            folder.mkdir(parents=True)
        (outside / "deep/o.jsonl").write_text('{"text": "outside"}\n')
        made = [outside / "deep/o.jsonl", outside]
        for place, name, suffix in files:
            with contextlib.suppress(FileExistsError, NotADirectoryError):
                folder = root.joinpath(*place)
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / (name + suffix)).open("x") as stream:
                    stream.write("x")
                made.append(folder / (name + suffix))
        for place, name, target, is_relative in links:
            with contextlib.suppress(FileExistsError, NotADirectoryError):
                folder = root.joinpath(*place)
                folder.mkdir(parents=True, exist_ok=True)
                to = made[target % len(made)]
                (folder / name).symlink_to(os.path.relpath(to, folder) if is_relative else to)
        expected: list[str] = []
        seen = set()
        walked = sorted(os.walk(root, followlinks=True), key=lambda entry: Path(entry[0]).parts)
        every = [Path(folder, name) for folder, _, inside in walked for name in inside]
        for file in sorted(every, key=lambda file: file.parts):
            below = file.relative_to(root).parts
            hidden = any(part.startswith(".") for part in below) or any(
                part.startswith("__") for part in below[:-1]
            )
            name = file.name.lower().removesuffix(".gz")
            known = Path(name).suffix in (".jsonl", ".ndjson", ".txt", ".json")
            if hidden or not known or file.name == "dataset_info.json" or os.path.realpath(file) in seen:
                continue
            seen.add(os.path.realpath(file))
            expected.append(str(file))
        with contextlib.nullcontext() if expected else pytest.raises(DataError):
            assert [str(file.path) for file in find_files(str(root)).files] == expected
        for path in expected:  # each by its own name, however odd
            (alone,) = find_files(path).files
            assert (str(alone.path), alone.named) == (path, True)
        if len(expected) > 1:
            both = find_files(f"{expected[1]},{expected[0]}").files
            assert [str(file.path) for file in both] == [expected[1], expected[0]]


def test_the_plain_reading_itself() -> None:
    """What the reference makes of lines that can be checked by eye."""
    assert plain_lines(b'{"text": "a"}\n\n{"text": 1}\n[]\n{"text": null}\n{"text": "\xff\\u0000"}') == (
        ["a", "", "\ufffd\ufffd"],
        2,
    )
    assert plain_documents(b"a\r\nb\n\nc\n", "paragraph") == ["a\r\nb", "c"]
    assert plain_documents(b"a\r\nb\n\nc\n", "line") == ["a", "b", "", "c"]
