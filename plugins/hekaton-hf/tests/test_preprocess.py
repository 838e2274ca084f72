"""What ``hekaton preprocess`` does with rows of text files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from hekaton.cli import main
from hekaton.corpus.layout import CorpusManifest

LINES = ['{"text": "hello"}', "not json", '{"text": "third"}', '{"text": 5}']


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_text("\n".join(LINES))
    return tmp_path / "a.jsonl"


def test_bad_rows_are_skipped_and_shown_up_to_a_number_of_them(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["preprocess", str(source), str(tmp_path / "out"), "--tokenizer", "byte"]
    for most in ([], ["--max_bad", "1"]):
        assert main([*words, *most]) == 2
        said = capsys.readouterr().err
        assert "error: 2 rows of the data cannot be read" in said
        assert f"'{source}', line 2: not JSON" in said
        assert "repair the files, or skip these rows: --max_bad 2" in said
        assert not (tmp_path / "out").exists()
    assert main([*words, "--max_bad", "2"]) == 0
    shown = capsys.readouterr()
    assert "skipping 2 rows that cannot be read:" in shown.err
    assert f"'{source}', line 4: 'text' is not text but a number" in shown.err
    # "hello" and "third" in bytes, each between the marks of a document.
    assert "2 documents, 14 tokens of uint16" in shown.out
    assert CorpusManifest.read(tmp_path / "out").documents == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_bad", "2", "--set", "max_bad_rows=1"], "--set and --max_bad give a field twice"),
        (["--set", "text_column=a", "--set", "text_column=b"], "--set and --max_bad give a field twice"),
        (["--max_bad", "1", "--max_bad", "2"], "--max_bad is given more than once"),
        (["--set", "text_column=body"], "--set text_column=NAME with one of: 'text'"),
        (["--set", "nope=1"], "the settings of 'text' have no field 'nope'"),
        (["--max_bad", "1", "--dataset", "python_stdlib"], "'python_stdlib' has no settings"),
    ],
)
def test_options_that_say_nothing_are_errors(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["preprocess", str(source), str(tmp_path / "out"), "--tokenizer", "byte", *options]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_named_twice_is_read_once_and_said(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        str(source),
        f"{tmp_path}/*.jsonl",
        str(tmp_path / "out"),
        "--tokenizer",
        "byte",
        "--max_bad",
        "2",
    ]
    assert main(["preprocess", *words]) == 0
    assert "skipped 1 file that is named twice" in capsys.readouterr().err


def test_it_needs_no_model(tmp_path, monkeypatch):
    """As where the core and this plugin alone are installed."""
    monkeypatch.setenv("HEKATON_DISABLE", "llama3")
    (tmp_path / "a.txt").write_text("some words")
    assert main(["preprocess", str(tmp_path / "a.txt"), str(tmp_path / "out"), "--tokenizer", "byte"]) == 0
