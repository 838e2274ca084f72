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


class StreamDatasetSection(SectionModel):
    """What the texts of dataset ``stream`` are, and how they are read."""

    text_column: str = "text"
    """Column (of parquet files) or key (of JSON objects) that holds a text."""

    parts_per_file: int = Field(default=1, ge=1, le=4096)
    """Each file is read as so many parts, which have its texts in turns. There must be as many parts as rows
    of the global batch, since each row reads parts of its own."""

    shuffle_buffer: int = Field(default=1000, ge=1, le=1_000_000)
    """Texts of a part that are read ahead and shuffled among each other; 1 leaves them in their order."""

    max_bad_rows: int = Field(default=0, ge=0)
    """Rows that cannot be read are skipped and named, up to this number of them in a file."""

    attempts: int = Field(default=6, ge=1, le=100)
    """Of each reading. The second follows after half a second, each later one after twice the time."""

    stalled_seconds: float = Field(default=60.0, gt=0, le=86400)
    """A reading that takes longer is named in the log."""


class HubStreamSection(SectionModel):
    """Which dataset of the Hub ``hub_stream`` reads, and what its texts are."""

    config: str = ""
    """The configuration of the dataset, where it has several."""

    split: str = "train"
    """The split."""

    revision: str | None = None
    """A commit, branch or tag of the dataset; a run that is to be repeated names a commit."""

    text_column: str = "text"
    """Column that holds a text."""

    shuffle_buffer: int = Field(default=1000, ge=1, le=1_000_000)
    """Texts of a shard that are read ahead and shuffled among each other; 1 leaves them in their order."""

    attempts: int = Field(default=6, ge=1, le=100)
    """Of each reading. The second follows after half a second, each later one after twice the time."""

    stalled_seconds: float = Field(default=60.0, gt=0, le=86400)
    """A reading that takes longer is named in the log."""
