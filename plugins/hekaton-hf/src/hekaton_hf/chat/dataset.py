"""Dataset ``chat``: the conversations of local files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hekaton.errors import DataError
from hekaton_hf.chat.conversations import Conversation, ConversationRows
from hekaton_hf.chat.sections import ChatDatasetSection
from hekaton_hf.checks import files_of_text
from hekaton_hf.decoding import parse_object
from hekaton_hf.files import format_of, shown
from hekaton_hf.index import Index, Settings, index_files
from hekaton_hf.reports import check_and_say, identity
from hekaton_hf.text import Texts

_STORED = ConversationRows("messages", "")


@dataclass(frozen=True)
class Chat:
    """A conversation of a file.

    :param conversation: ``None`` where the assistant says nothing.
    :param size: of its text, in characters.
    :param where: says its file and line.
    """

    conversation: Conversation | None
    size: int
    where: Callable[[], str]


class Chats(Texts):
    """The conversations of indexed files."""

    def __init__(self, indices: Sequence[Index], *, rows: ConversationRows, fingerprint: str) -> None:
        super().__init__(indices, column="", fingerprint=fingerprint)
        self._rows = rows

    def fetch(self, indices: Sequence[int]) -> list[Chat]:  # type: ignore[override]
        """:raises DataError: when a file changed since the run started, or cannot be read any more."""
        return [self._chat(*self._found(group, number)) for group, number in self._places(indices)]

    def _chat(self, raw: bytes | bytearray, path: str | None, start: int, group: int, number: int) -> Chat:
        def where() -> str:
            return self._where(path, start, group, number)

        if path is None:
            if not raw:
                return Chat(None, 1, where)
            conversation, _ = _STORED.read(parse_object(raw, _STORED.decoder))
            return Chat(conversation, len(raw), where)
        try:
            row = parse_object(raw, self._rows.decoder)
            conversation, _ = self._rows.read(row)
        except ValueError as e:  # it was read when the file was indexed
            raise DataError(
                f"{where()} was read differently when the run started: {e}",
                hint="the disk or the memory may be failing",
            ) from e
        speaks = self._rows.document(row)[0]
        return Chat(conversation if speaks else None, len(raw), where)

    def _where(self, path: str | None, start: int, group: int, number: int) -> str:
        if path is not None:
            with open(path, "rb") as stream:
                lines, left = 1, start
                while left and (block := stream.read(min(left, 1 << 20))):
                    lines += block.count(b"\n")
                    left -= len(block)
            return f"'{shown(path)}', line {lines:,}"
        for file, report in zip(self._indices[group].files, self._indices[group].reports, strict=True):
            if number < report.documents:
                return f"'{shown(file.path)}', conversation {number + 1:,}"
            number -= report.documents
        raise AssertionError("a document is of a file")


def build(section: ChatDatasetSection, path: str | None) -> Chats:
    """The conversations of the files that ``path`` means; see :func:`hekaton_hf.files.find_files`.

    :raises DataError: when there are none, or a file cannot be read, has none, or none with a turn of the
        assistant.
    """
    found = files_of_text(path, dataset="chat")
    texts = [file.path for file in found.files if format_of(file.path) == "txt"]
    if texts:
        raise DataError(
            f"cannot read '{shown(texts[0])}': a .txt file has no conversations",
            hint="dataset 'chat' reads .jsonl, .json and .parquet",
        )
    rows = ConversationRows(section.form, section.messages_column)
    settings = Settings(rows.wanted, "file", rows)
    indices = index_files(found.files, settings)
    check_and_say(found, indices, settings, max_bad_rows=section.max_bad_rows, of_chats=True)
    return Chats(indices, rows=rows, fingerprint=identity(indices, settings))
