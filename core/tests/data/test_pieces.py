"""Where long texts are cut."""

from __future__ import annotations

import pytest

from hekaton.data.byte import build
from hekaton.data.encoders import TextEncoder
from hekaton.data.pieces import UnreadText
from hekaton.errors import DataError


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hekaton.data.pieces.PIECE", 10)


def cuts(text: str) -> list[tuple[str, bool, bool]]:
    unread = UnreadText(text)
    pieces = [unread.cut()]
    while not pieces[-1].is_last:
        pieces.append(unread.cut())
    return [(piece.text, piece.is_first, piece.is_last) for piece in pieces]


def test_a_text_that_fits_is_whole() -> None:
    assert cuts("a b\nc d\nef") == [("a b\nc d\nef", True, True)]
    assert cuts("") == [("", True, True)]


def test_a_text_is_cut_after_the_last_line_that_ends_in_the_second_half() -> None:
    assert cuts("ab\ncde\nf hijkl\nm") == [("ab\ncde\n", True, False), ("f hijkl\nm", False, True)]


def test_a_text_without_such_a_line_is_cut_after_a_space() -> None:
    assert cuts("a\nbc ef hi kl") == [("a\nbc ef ", True, False), ("hi kl", False, True)]


def test_a_text_without_spaces_is_cut_where_the_piece_is_full() -> None:
    assert cuts("a\nb cdefghijklm") == [("a\nb cdefgh", True, False), ("ijklm", False, True)]


def test_a_document_that_is_no_text_is_an_error_with_the_cure() -> None:
    encoder = TextEncoder(build(None, None))
    for document, kind in (({"text": "a"}, "dict"), (b"a", "bytes"), (None, "NoneType")):
        with pytest.raises(DataError, match=f"of type {kind}, and the encoder 'text' takes texts") as error:
            list(encoder.cut(document))  # type: ignore[arg-type]
        assert "fetch()" in error.value.hint
