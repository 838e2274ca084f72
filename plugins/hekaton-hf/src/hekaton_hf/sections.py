"""The configuration sections of this plugin."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hekaton.config import SectionModel


class HFTokenizerSection(SectionModel):
    """How the tokenizer ``hf`` encodes."""

    backend: Literal["auto", "gigatoken", "tokenizers"] = "auto"
    """What encodes: ``auto`` takes gigatoken where it is installed and gives the ids of tokenizers, on the
    first documents of each process, and tokenizers otherwise."""


class TextDatasetSection(SectionModel):
    """What the documents of dataset ``text`` are."""

    text_column: str = "text"
    """Column (of parquet files) or key (of JSON objects) that holds a document's text."""

    txt_documents: Literal["file", "line", "paragraph"] = "file"
    """What one document is in a .txt file: all of it, a line, or a paragraph, which an empty line ends."""

    max_bad_rows: int = Field(default=0, ge=0)
    """Rows that cannot be read (a line that is no JSON object, a text that is a number) are skipped, counted
    and named, up to this number of them in all files; one more ends the run before its first step."""
