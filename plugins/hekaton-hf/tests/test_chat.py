"""Conversations: forms, templates, targets against transformers and by hand, and what is wrong with files."""

from __future__ import annotations

import gzip
import json
import logging
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers

from hekaton.cli import main
from hekaton.data.byte import ByteTokenizer
from hekaton.data.row_makers import BestFit, InOrder, OnePerRow
from hekaton.errors import DataError
from hekaton.testing import check_encoder, check_row_maker
from hekaton_hf.chat.conversations import ConversationRows
from hekaton_hf.chat.dataset import build as build_chats
from hekaton_hf.chat.encoder import ChatEncoder
from hekaton_hf.chat.sections import ChatDatasetSection
from hekaton_hf.tokenizer import SHIPPED, build

CHATML = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'user' and loop.index0 % 2 != (1 if messages[0].role == 'system' else 0) %}
        {{- raise_exception('Conversation roles must alternate') }}
    {%- endif %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
            {%- if message.reasoning_content is defined %}{{ '<think>' ~ message.reasoning_content ~ '</think>' }}
            {%- endif %}
            {%- if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}
            {{- message.content | default('') | trim }}<|im_end|>
        {%- endgeneration %}
        {{- '\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if tools %}{{ tools | map(attribute='name') | join(', ') }}{% endif %}
"""
CALL = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": [2.5, None, "ü"]}}}]
CHATS = [
    {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]},
    {"messages": [
        {"role": "system", "content": "Be terse."}, {"role": "user", "content": "größe 日本 🎉"},
        {"role": "assistant", "content": " 🎉 "}, {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "def f(x):\n    return x", "reasoning": "hm"},
    ]},
    {"messages": [
        {"role": "user", "content": "add"}, {"role": "assistant", "content": None, "tool_calls": CALL},
        {"role": "tool", "content": "3.5"}, {"role": "assistant", "content": "It is 3.5."},
    ], "tools": [{"name": "add", "parameters": {"a": 1}}, {"name": "sub"}]},
]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A tokenizer with the marks of ChatML."""
    place = tmp_path / "tokenizer"
    shutil.copytree(SHIPPED, place)
    tokenizer = tokenizers.Tokenizer.from_file(str(place / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer.save(str(place / "tokenizer.json"))
    return place


def with_template(folder: Path, template: object) -> Path:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
    return folder


def written(path: Path, rows: list[object]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text(text)
    return path


def section(**settings):
    return ChatDatasetSection(**settings)


def chats(path, **settings):
    found = build_chats(section(**settings), str(path))
    return found.fetch(range(len(found)))


def learned(tokenizer, encoded):
    """The stretches of text that are targets."""
    stretches, before = [], False
    for token, is_target in zip(encoded.ids.tolist(), encoded.targets.tolist(), strict=True):
        if is_target and not before:
            stretches.append([])
        if is_target:
            stretches[-1].append(token)
        before = is_target
    return [tokenizer.decode(ids) for ids in stretches]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".parquet"])
def test_ids_and_targets_are_those_of_transformers(folder, tmp_path, suffix):
    from transformers import PreTrainedTokenizerFast

    with_template(folder, MARKED)
    # In a parquet file all rows have the same columns, and what a message lacks is null.
    rows = CHATS[:2] if suffix == ".parquet" else CHATS
    documents = chats(written(tmp_path / f"chats{suffix}", rows))
    tokenizer = build(None, str(folder))
    encoder = ChatEncoder(tokenizer, section())
    check_encoder(encoder, documents)
    reference = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|begin_of_text|>"
    )
    for row, encoded in zip(rows, encoder.encode([next(encoder.cut(one)) for one in documents]), strict=True):
        expected = reference.apply_chat_template(
            row["messages"], tools=row.get("tools"), chat_template=MARKED, return_dict=True,
            return_assistant_tokens_mask=True,
        )  # fmt: skip
        assert encoded.ids.tolist() == expected["input_ids"]
        assert encoded.targets.astype(int).tolist() == expected["assistant_masks"]
        assert 0 < sum(expected["assistant_masks"]) < len(encoded.ids)


def test_turns_are_found_where_a_template_has_no_marks(folder, tmp_path):
    tokenizer = build(None, str(with_template(folder, CHATML)))
    documents = chats(written(tmp_path / "chats.jsonl", CHATS[:2]))
    encoder = ChatEncoder(tokenizer, section())
    first, second = encoder.encode([next(encoder.cut(one)) for one in documents])
    assert tokenizer.decode(first.ids.tolist()) == (
        "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
    )
    assert learned(tokenizer, first) == ["4<|im_end|>"]
    assert learned(tokenizer, second) == [" 🎉 <|im_end|>", "def f(x):\n    return x<|im_end|>"]
    last = ChatEncoder(tokenizer, section(targets="last_turn"))
    assert last.fingerprint != encoder.fingerprint
    (encoded,) = last.encode([next(last.cut(documents[1]))])
    assert learned(tokenizer, encoded) == ["def f(x):\n    return x<|im_end|>"]
    assert encoded.ids.tolist() == second.ids.tolist()


THINKS = """\
{%- for m in messages %}
    {%- set said = m.content %}
    {%- if m.role == 'assistant' and loop.last %}{% set said = '<think></think>' + said %}{% endif %}
    {{- '<|im_start|>' + m.role + '\\n' + said + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def test_a_turn_that_reads_otherwise_when_it_is_the_last_is_found_by_its_content(folder, tmp_path):
    """As in templates that leave out the reasoning of earlier turns."""
    tokenizer = build(None, str(with_template(folder, [{"name": "default", "template": THINKS}])))
    (document,) = chats(written(tmp_path / "chats.jsonl", [CHATS[1]]))
    encoder = ChatEncoder(tokenizer, section())
    (encoded,) = encoder.encode([next(encoder.cut(document))])
    assert learned(tokenizer, encoded) == [
        " 🎉 <|im_end|>", "<think></think>def f(x):\n    return x<|im_end|>",
    ]  # fmt: skip


def test_the_three_forms_are_the_same_conversation(tmp_path):
    said = [("system", "Be kind."), ("user", "a\nb"), ("assistant", "c")]
    expected = [{"role": role, "content": content} for role, content in said]
    forms = {
        "messages": {"messages": expected},
        "system": {"system": "Be kind.", "messages": expected[1:]},
        "sharegpt": {"conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "a\nb"},
                                       {"from": "gpt", "value": "c", "weight": None}]},
        "alpaca": {"instruction": "a", "input": "b", "output": "c", "system": "Be kind."},
    }  # fmt: skip
    for name, row in forms.items():
        for suffix in (".jsonl", ".parquet"):
            (chat,) = chats(written(tmp_path / f"{name}{suffix}", [row]))
            assert chat.conversation.messages == expected, name
    (chat,) = chats(written(tmp_path / "own.jsonl", [{"dialog": expected}]), messages_column="dialog")
    assert chat.conversation.messages == expected


@pytest.mark.parametrize(
    ("too_long", "most", "text"),
    [("cut_end", 10, "Q:abc\nA:de"), ("cut_end", 8, ""), ("cut_start", 8, "\nA:defg\n"), ("skip", 12, "")],
)
def test_long_conversations_follow_a_policy(tmp_path, too_long, most, text):
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ 'Q:' if m.role == 'user' else 'A:' }}{{ m.content }}\n{% endfor %}"
                        "{% if add_generation_prompt %}A:{% endif %}")  # fmt: skip
    row = {"messages": [{"role": "user", "content": "abc"}, {"role": "assistant", "content": "defg"}]}
    (document,) = chats(written(tmp_path / "chats.jsonl", [row]))
    whole = ChatEncoder(ByteTokenizer(), section(template=str(template)))
    (encoded,) = whole.encode([next(whole.cut(document))])
    assert learned(ByteTokenizer(), encoded) == ["defg\n"]
    cut = ChatEncoder(ByteTokenizer(), section(template=str(template), max_tokens=most, too_long=too_long))
    (encoded,) = cut.encode([next(cut.cut(document))])
    assert ByteTokenizer().decode(encoded.ids.tolist()) == text  # where no target is left it is skipped
    strict = ChatEncoder(ByteTokenizer(), section(template=str(template), max_tokens=8, too_long="error"))
    with pytest.raises(
        DataError, match=r"line 1: the conversation has 13 tokens, and chat_dataset.max_tokens = 8"
    ):
        strict.encode([next(strict.cut(document))])


GOOD = CHATS[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "narrator", "content": "x"}]}, "line 2: message 1 has the role 'narrator'"),
        ({"messages": [{"content": "x"}]}, "line 2: message 1 has no role"),
        ({"messages": [{"role": "user"}]}, "line 2: message 1 (user) has no content"),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "the content of message 1 (user) is not text but a number",
        ),
        ({"messages": "x"}, "'messages' is text that is no JSON"),
        ({"messages": ["x"]}, "message 1 is not an object but text"),
        ({"messages": []}, "line 2: its conversation has no messages"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "message 1 is from 'alien'"),
        ({"instruction": 3}, "'instruction' is not text but a number"),
        ({"instruction": "x", "history": 5}, "'history' is not a list but a number"),
        ({"text": "x"}, "line 2: it has none of the columns 'messages', 'conversations' or 'instruction'"),
    ],
)
def test_rows_that_are_no_conversation_are_named(tmp_path, row, message):
    path = written(tmp_path / "chats.jsonl", [GOOD, row])
    with pytest.raises(DataError) as e:
        chats(path)
    assert message in str(e.value)
    assert "chat_dataset.max_bad_rows = 1" in str(e.value)
    assert len(chats(path, max_bad_rows=1)) == 1


def test_a_row_of_any_kind_is_a_conversation_or_a_value_error():
    draw = random.Random(0)
    names = ["messages", "conversations", "instruction", "output", "history", "system", "tools", "role", "content",
             "from", "value", "tool_calls"]  # fmt: skip

    def anything(depth: int = 0) -> object:
        plain = [None, True, 3, 1.5, "assistant", '[{"role":']
        several = [anything(depth + 1) for _ in range(draw.randrange(3))] if depth < 4 else 0
        named = (
            {draw.choice(names): anything(depth + 1) for _ in range(draw.randrange(4))} if depth < 4 else 0
        )
        return draw.choice([*plain, several, named])

    readers = [ConversationRows(form, "") for form in ("auto", "messages", "sharegpt", "alpaca")]
    read = 0
    for number in range(4000):
        row = {draw.choice(names): anything() for _ in range(draw.randrange(5))}
        try:
            readers[number % 4].document(row)
            read += 1
        except ValueError:
            continue
    assert read > 10


def test_files_without_anything_to_learn_are_errors(folder, tmp_path, caplog):
    caplog.set_level(logging.INFO, "hekaton")
    silent = {"messages": [{"role": "user", "content": "hello?"}]}
    tokenizer = build(None, str(with_template(folder, CHATML)))
    encoder = ChatEncoder(tokenizer, section())
    documents = chats(written(tmp_path / "some.jsonl", [silent, GOOD]))
    encoded = encoder.encode([next(encoder.cut(one)) for one in documents])
    assert [len(one.ids) > 0 for one in encoded] == [False, True]
    assert "skipping 1 conversation without a turn of the assistant" in caplog.text
    path = written(tmp_path / "none.jsonl", [silent, silent])
    with pytest.raises(DataError, match=r"no conversation in '.*none.jsonl' has a turn of the assistant"):
        chats(f"{path},{tmp_path / 'some.jsonl'}")
    with pytest.raises(
        DataError, match=r"(?s)no column 'messages', 'conversations' or 'instruction' in .* there are: 'text'"
    ):
        chats(written(tmp_path / "texts.jsonl", [{"text": "x"}]), max_bad_rows=1)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"a \.txt file has no conversations"):
        chats(tmp_path / "a.txt")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_what_a_template_refuses_is_named_with_its_place(folder, tmp_path, suffix):
    twice = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"},
                          {"role": "assistant", "content": "c"}]}  # fmt: skip
    documents = chats(written(tmp_path / f"chats{suffix}", [GOOD, twice]))
    encoder = ChatEncoder(build(None, str(with_template(folder, MARKED))), section())
    place = "line 2" if suffix == ".jsonl" else "conversation 2"
    with pytest.raises(DataError, match=f"chats{suffix}', {place}: the chat template in .*tokenizer_config.json' "
                       "refuses the conversation: Conversation roles must alternate"):  # fmt: skip
        encoder.encode([next(encoder.cut(one)) for one in documents])


def test_templates_that_are_none_or_missing(folder, tmp_path):
    tokenizer = build(None, str(folder))
    with pytest.raises(DataError, match="needs a chat template, and the tokenizer has none"):
        ChatEncoder(tokenizer, section())
    (tmp_path / "broken.jinja").write_text("\n{% for m in %}")
    with pytest.raises(DataError, match=r"the chat template in '.*broken.jinja' is none: line 2"):
        ChatEncoder(tokenizer, section(template=str(tmp_path / "broken.jinja")))
    with pytest.raises(DataError, match=r"cannot read '.*nothing.jinja': No such file"):
        ChatEncoder(tokenizer, section(template=str(tmp_path / "nothing.jinja")))
    with pytest.raises(DataError, match="cannot read '/dev/zero'"):
        ChatEncoder(tokenizer, section(template="/dev/zero"))


def test_the_first_token_is_no_target():
    """Nothing predicts it, so that a conversation of which only that is learned is skipped."""
    assert np.array_equal(ByteTokenizer().encode_places("aü")[1], [[0, 1], [1, 2], [1, 2]])


def test_rows_are_the_same_however_they_are_read(folder, tmp_path):
    """Alone, together, and resumed at any row, on which every layout rests."""
    rows = [{"messages": [{"role": "user", "content": "q" * (7 * n)}, {"role": "assistant", "content": "a " * n}]}
            for n in (1, 0, 9, 3, 30)]  # fmt: skip
    documents = chats(written(tmp_path / "chats.jsonl", rows))
    encoder = ChatEncoder(build(None, str(with_template(folder, CHATML))), section())
    for maker in (InOrder(16), BestFit(16), OnePerRow(16)):
        check_row_maker(maker, documents, encoder, rows=2, steps=4)


def test_a_row_of_conversations_is_shown(folder, tmp_path, capsys):
    path = written(tmp_path / "chats.jsonl", [CHATS[0]])
    arguments = ["data", "show", "--training.dataset", "chat", "--training.dataset_path", str(path), "--row", "0",
                 "--model.hf_assets_path", str(with_template(folder, CHATML)), "--training.seq_len", "30"]  # fmt: skip
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert "⟦<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n⟧4<|im_end|>⟦\n⟧" in shown
    assert (
        main(["preprocess", str(path), str(tmp_path / "out"), "--tokenizer", "byte", "--dataset", "chat"])
        == 2
    )
    assert "dataset 'chat' has documents for the encoder 'chat': only texts are" in capsys.readouterr().err
