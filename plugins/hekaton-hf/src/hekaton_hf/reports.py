"""What is said of files that were read, and what about them is an error."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from hekaton.data.identity import fingerprint
from hekaton.errors import DataError
from hekaton_hf.files import DataFile, FoundFiles, format_of, shown
from hekaton_hf.index import VERSION, Index, Settings
from hekaton_hf.recorder import FileReport, Odd

log = logging.getLogger("hekaton")

Reported = list[tuple[DataFile, FileReport]]

_NAMED = 5
"""Files and rows that a message names."""


def identity(indices: Sequence[Index], settings: Settings) -> str:
    """Of the content of all files in their order. What they are called may change."""
    parts = [VERSION, *settings.parts]
    for file, report in _reported(indices):
        if report.documents:
            parts += [format_of(file.path) or "", report.content]
    return fingerprint(*parts)


def check_and_say(
    found: FoundFiles,
    indices: Sequence[Index],
    settings: Settings,
    *,
    max_bad_rows: int,
    of_chats: bool = False,
) -> None:
    """Log how many files and documents there are, what was skipped, and what was replaced.

    :param of_chats: whether documents are conversations: those without a turn of the assistant are empty.
    :raises DataError: when a file has not the column, more rows than ``max_bad_rows`` are bad, or there is no
        document or none with text.
    """
    reported = _reported(indices)
    section = "chat_dataset" if of_chats else "text_dataset"
    _check_columns(reported, settings.column, of_chats=of_chats)
    bad = _summed(reported, "bad")
    if bad.count > max_bad_rows:
        raise DataError(
            f"{_number(bad.count, 'row')} of the data cannot be read",
            hint="\n".join(
                [
                    *_listed(bad),
                    f"repair the files, or skip these rows: {section}.max_bad_rows = {bad.count}",
                ]
            ),
        )
    documents = sum(report.documents for _, report in reported)
    empty = sum(report.empty for _, report in reported)
    if not documents:
        raise DataError(f"the dataset is empty: there are no documents in {_names(found.files)}")
    silent = [file for file, report in reported if report.documents and report.empty == report.documents]
    if of_chats and silent:
        raise DataError(
            f"no conversation in {_names(silent)} has a turn of the assistant: there is nothing to learn",
            hint="leave the file out, or say how its rows have their conversation: chat_dataset.form",
        )
    if empty == documents:
        raise DataError(
            f"the dataset is empty: none of the documents in {_names(found.files)} has text in column "
            f"'{settings.column}'"
        )
    _say(found, reported, f"chat: {_number(documents, 'conversation')}" if of_chats else
         f"text: {_number(documents, 'document')}")  # fmt: skip
    if empty and of_chats:
        log.info("notice: skipping %s without a turn of the assistant", _number(empty, "conversation"))
    elif empty:
        log.info("notice: %s without text in column '%s'", _number(empty, "document"), settings.column)
    if bad.count:
        log.info(
            "notice: skipping %s that cannot be read:\n  %s",
            _number(bad.count, "row"),
            "\n  ".join(_listed(bad)),
        )
    replaced = _summed(reported, "replaced")
    if replaced.count:
        log.info(
            "notice: %s with bytes that are not UTF-8, or null characters, which are read as U+FFFD:\n  %s",
            _number(replaced.count, "document"), "\n  ".join(_listed(replaced)),
        )  # fmt: skip


def _reported(indices: Sequence[Index]) -> Reported:
    return [pair for index in indices for pair in zip(index.files, index.reports, strict=True)]


def _check_columns(reported: Reported, column: str, *, of_chats: bool) -> None:
    lacking = [
        (file, report)
        for file, report in reported
        if (report.documents or (of_chats and report.keys)) and not report.has_column
    ]
    if lacking:
        keys = dict.fromkeys(key for _, report in lacking for key in report.keys)
        if of_chats:
            raise DataError(
                f"no column {column} in {_names([file for file, _ in lacking])}",
                hint=f"set chat_dataset.messages_column and form; there are: {', '.join(map(repr, keys))}",
            )
        raise DataError(
            f"no column '{column}' in {_names([file for file, _ in lacking])}",
            hint=f"set text_dataset.text_column to one of: {', '.join(map(repr, keys))}",
        )


def _summed(reported: Reported, kind: str) -> Odd:
    """Of all files, with the file named in the examples."""
    summed = Odd()
    for file, report in reported:
        odd: Odd = getattr(report, kind)
        summed.count += odd.count
        summed.examples += [f"'{shown(file.path)}', {example}" for example in odd.examples]
    return summed


def _listed(odd: Odd) -> list[str]:
    listed = odd.examples[:_NAMED]
    return listed if odd.count == len(listed) else [*listed, f"and {odd.count - len(listed):,} more"]


def _say(found: FoundFiles, reported: Reported, documents: str) -> None:
    read = [report for _, report in reported if report.rows]
    skipped = found.skipped.copy()
    skipped["description of a dataset"] += sum(report.is_description for _, report in reported)
    skipped["without a document"] += sum(not (report.rows or report.is_description) for _, report in reported)
    said = [f"{count:,} {_plural(reason, count)}" for reason, count in skipped.items() if count]
    log.info(
        "%s in %s, %.2f GB%s",
        documents, _number(len(read), "file"), sum(report.size for report in read) / 1e9,
        f"; skipped {', '.join(said)}" if said else "",
    )  # fmt: skip


_PLURALS = {
    "file that is named twice": "files that are named twice",
    "link to a file that is read already": "links to files that are read already",
    "description of a dataset": "descriptions of a dataset",
    "special file": "special files",
}
"""Of reasons that files are skipped for; the others are the same for one and for many."""


def _plural(reason: str, count: int) -> str:
    return reason if count == 1 else _PLURALS.get(reason, reason)


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _names(files: Iterable[DataFile]) -> str:
    first, *more = files
    return f"'{shown(first.path)}'" + (f" and {len(more)} more" if more else "")
