"""Conversations with values that a template or a file of the cache could not take."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hekaton.errors import DataError
from hekaton_hf.chat.conversations import Conversation
from hekaton_hf.chat.dataset import build
from hekaton_hf.chat.sections import ChatDatasetSection
from hekaton_hf.chat.template import ChatTemplate, RefusedError

SAID = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def conversations(path, **settings):
    found = build(ChatDatasetSection(**settings), str(path))
    return [chat.conversation for chat in found.fetch(range(len(found)))]


def in_parquet(path, rows):
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), path)
    return path


def test_parquet_gives_a_call_no_arguments_of_other_calls(tmp_path):
    """All calls of a column have the same names there; what one of them lacks is null."""
    calls = [
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        for arguments in ({"a": 1, "several": [2.5, None]}, {"b": {"c": "x"}})
    ]
    rows = [{"messages": [SAID[0], *calls], "tools": [{"name": "f"}, {"name": "g", "strict": True}]}]
    (read,) = conversations(in_parquet(tmp_path / "calls.parquet", rows))
    assert read == Conversation(rows[0]["messages"], rows[0]["tools"])


def test_values_of_parquet_that_json_has_no_form_for(tmp_path):
    at, price = datetime.datetime(2024, 2, 3), decimal.Decimal("1.50")
    rows = [{"messages": [{**one, "at": at, "price": price, "raw": b"x\xff"} for one in SAID]}]
    (read,) = conversations(in_parquet(tmp_path / "odd.parquet", rows))
    odd = {"at": "2024-02-03 00:00:00", "price": "1.50", "raw": "x\ufffd"}
    assert read.messages == [{**one, **odd} for one in SAID]

    as_map = pa.array([[list(one.items()) for one in SAID]], pa.list_(pa.map_(pa.string(), pa.binary())))
    (read,) = conversations(in_parquet(tmp_path / "map.parquet", pa.table({"messages": as_map})))
    assert read.messages == SAID


def test_a_row_of_parquet_that_is_no_text_is_a_bad_row(tmp_path):
    raw = pa.array([b"a", b"b", b"a\xff", b"b"])
    contents = pa.Array.from_buffers(pa.string(), 4, raw.buffers())
    messages = pa.StructArray.from_arrays(
        [pa.array(["user", "assistant"] * 2), contents], ["role", "content"]
    )
    rows = pa.table({"messages": pa.ListArray.from_arrays(pa.array([0, 2, 4], pa.int32()), messages)})
    path = in_parquet(tmp_path / "bytes.parquet", rows)
    with pytest.raises(DataError, match=r"row 2: it cannot be read: 'utf-8' codec can't decode byte 0xff"):
        conversations(path)
    assert [one.messages for one in conversations(path, max_bad_rows=1)] == [SAID]


def test_half_a_character_in_tools_is_replaced(tmp_path):
    path = tmp_path / "tools.jsonl.gz"
    row = {"messages": SAID, "tools": json.dumps([{"name": "f\ud800\0"}])}
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    (read,) = conversations(path)
    assert read.tools == [{"name": "f\ufffd\ufffd"}]


@pytest.mark.parametrize("place", ["messages", "tools"])
def test_what_is_nested_too_deeply_is_a_bad_row(tmp_path, place):
    deep = [{"x": json.loads("[" * 800 + "]" * 800)}]
    row = (
        {"messages": [SAID[0], {**SAID[1], **deep[0]}]}
        if place == "messages"
        else {"messages": SAID, "tools": deep}
    )
    path = tmp_path / "deep.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(DataError, match="line 1: its conversation or tools are nested more than 100 deep"):
        conversations(path)


@pytest.mark.parametrize(
    "template",
    [
        "{% set said %}{% generation %}{{ m }}{% endgeneration %}{% endset %}x{{ said }}",
        "{% macro say() %}x: {% generation %}{{ m }}{% endgeneration %}{% endmacro %}{{ say() }}",
        "{% filter upper %}{% generation %}{{ m }}{% endgeneration %}{% endfilter %}",
    ],
)
def test_marks_around_text_that_stands_elsewhere_are_refused(template):
    """transformers marks the tokens that stand where the text would have stood."""
    source = "{% set m = messages[1].content %}" + template
    made = ChatTemplate(source, tokens={}, date=datetime.date(2024, 7, 26), origin="here")
    with pytest.raises(RefusedError, match="marks text that is put out later"):
        made.render(Conversation(SAID))
