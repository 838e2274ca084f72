"""Texts as tokens, and conversations as texts, as transformers has them with the same files."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest

from hekaton.data.byte import build as build_byte
from hekaton_eval.tokens import Tokens
from hekaton_hf.tokenizer import SHIPPED, build

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>\n{{ message.content | trim }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "def main("},
    {"role": "assistant", "content": "self"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The shipped tokenizer, published so that it puts its mark before texts, and with a chat template."""
    shutil.copytree(SHIPPED, tmp_path / "published")
    file = tmp_path / "published" / "tokenizer.json"
    content = json.loads(file.read_text())
    mark = "<|begin_of_text|>"
    number = next(one["id"] for one in content["added_tokens"] if one["content"] == mark)
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": mark, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {mark: {"id": mark, "ids": [number], "tokens": [mark]}},
    }
    file.write_text(json.dumps(content))
    (file.parent / "chat_template.jinja").write_text(TEMPLATE)
    return file.parent


@pytest.mark.slow
@pytest.mark.parametrize("published", [True, False])
def test_tokens_and_chats_are_those_of_transformers(folder, published):
    from transformers import AutoTokenizer

    if not published:
        shutil.copy(SHIPPED / "tokenizer.json", folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoTokenizer.from_pretrained(folder)
    tokenizer = build(None, str(folder))
    ours = Tokens(tokenizer, add_bos_token=None)
    texts = ["def main(self):", "", " a", "<|begin_of_text|>def", tokenizer.render_chat(CHAT, ask=True)]
    for text in texts:
        kept = {"add_special_tokens": False} if text.startswith("<|begin_of_text|>") else {}
        assert ours.encode(text, marks=None) == theirs.encode(text, **kept), text
    assert bool(tokenizer.prefix_ids()) is published
    ids = theirs.encode(texts[0])
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)

    asked = theirs.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert tokenizer.render_chat(CHAT, ask=True) == asked
    continued = theirs.apply_chat_template(CHAT, tokenize=False, continue_final_message=True)
    assert tokenizer.render_chat(CHAT, ask=False) == continued
    assert tokenizer.chat_template() == TEMPLATE


def test_a_tokenizer_that_is_not_published_marks_texts_as_in_training():
    tokens = Tokens(build_byte(None, None), add_bos_token=None)
    assert tokens.encode("ab", marks=None) == [tokens.tokenizer.bos_id, 97, 98]
    assert tokens.encode("ab", marks=False) == [97, 98]
    assert Tokens(build_byte(None, None), add_bos_token=False).encode("ab", marks=None) == [97, 98]
    assert tokens.decode([tokens.tokenizer.bos_id, 97, tokens.eot_token_id]) == "a"
