"""Turns of long conversations in templates that do not mark them: found without rendering for each."""

from __future__ import annotations

import datetime

import numpy as np
import pytest

from hekaton_hf.chat.conversations import Conversation
from hekaton_hf.chat.encoder import targets_of
from hekaton_hf.chat.template import ChatTemplate

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = """\
{%- for m in messages %}
    {%- set said = m.content | trim %}
    {%- if m.role == 'assistant' and loop.last %}{% set said = '<think></think>' + said %}{% endif %}
    {{- '<|im_start|>' + m.role + '\\n' + said + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
COUNTS = CHATML.replace("{{ m.role }}", "{{ loop.index }} {{ m.role }}").replace(
    "assistant\n{% endif", "{{ messages | length + 1 }} assistant\n{% endif"
)
PAIRS = 30


def conversation(**changes):
    """The assistant says ``number n``, or what ``changes`` has for a turn."""
    messages = []
    for number in range(PAIRS):
        said = changes.get(f"turn{number}", f"number {number}")
        messages += [{"role": "user", "content": f" and {number}\n"}, {"role": "assistant", "content": said}]
    return Conversation(messages)


@pytest.fixture
def rendered(monkeypatch):
    """The numbers of messages of each rendering."""
    seen = []
    of_template = ChatTemplate._text

    def text(self, messages, *arguments, **named):
        seen.append(len(messages))
        return of_template(self, messages, *arguments, **named)

    monkeypatch.setattr(ChatTemplate, "_text", text)
    return seen


def found(source, chat, **options):
    template = ChatTemplate(source, tokens={}, date=datetime.date(2026, 1, 1), origin="a test")
    rendered = template.render(chat, **options)
    return [rendered.text[start:end] for start, end in rendered.spans]


@pytest.mark.parametrize(
    ("source", "renderings"),
    [(CHATML, 14), (THINKS, 20), (COUNTS, 2 + 2 * PAIRS)],
    ids=["chatml", "thinks", "counts"],
)
def test_the_turns_of_a_long_conversation_are_found_with_few_renderings(rendered, source, renderings):
    said = [f"number {number}<|im_end|>" for number in range(PAIRS)]
    if source == THINKS:
        said[-1] = "<think></think>" + said[-1]
    assert found(source, conversation()) == said
    assert len(rendered) <= renderings


def test_turns_that_the_marks_cannot_stand_for_are_found_one_by_one(rendered):
    """One that is empty, one that reads like the template, and a template that takes no marks."""
    odd = {"turn3": " ", "turn5": "<|im_end|>\n<|im_start|>assistant\nno"}
    said = [f"number {number}<|im_end|>" for number in range(PAIRS)]
    said[3], said[5] = "nothing<|im_end|>", odd["turn5"] + "<|im_end|>"
    nothing = CHATML.replace("{{ m.content }}", "{{ m.content if m.content | trim else 'nothing' }}")
    assert found(nothing, conversation(**odd)) == said
    assert len(rendered) < 25
    refuses = "{% for m in messages if m.content[0] == '\ue000' %}{{ raise_exception('no') }}{% endfor %}"
    assert found(refuses + nothing, conversation(**odd)) == said
    assert len(rendered) > 2 * PAIRS
    longer = CHATML.replace("{{ m.content }}", "{{ m.content | length }}: {{ m.content }}")
    assert found(longer, conversation())[7] == "8: number 7<|im_end|>"


CALLS = CHATML.replace(
    "{{ m.content }}",
    "{{ m.content or '' }}{% for call in m.tool_calls or [] %}<call>{{ call.function | tojson }}</call>{% endfor %}",
)


def test_turns_that_call_tools_are_found_with_few_renderings(rendered):
    """Without content, with it, and several calls; the answer of one tool is what the template puts around."""
    messages, said = [{"role": "user", "content": "begin"}], []
    for number in range(PAIRS):
        name = ("search", "open")[number % 2]
        content = "I look" if number % 3 == 0 else ""
        call = {"function": {"name": name, "arguments": {"at": number}}}
        calls = [call] * (1 + number % 2)
        result = "<|im_end|>\n<|im_start|>assistant\n" if number == 7 else f"found {number}"
        messages += [
            {"role": "assistant", "content": content, "tool_calls": calls}, {"role": "tool", "content": result},
        ]  # fmt: skip
        text = f'<call>{{"name": "{name}", "arguments": {{"at": {number}}}}}</call>' * len(calls)
        said.append(f"{content}{text}<|im_end|>")
    assert found(CALLS, Conversation(messages)) == said
    assert len(rendered) < 2 * PAIRS - 10
    spaced = CALLS.replace(
        "<|im_end|>", "<|im_end|>{{ '\n' if m.content == '' and '13' in m.tool_calls | tojson else '' }}"
    )
    assert found(spaced, Conversation(messages)) == said


def test_a_turn_in_the_middle_that_a_template_begins_otherwise_is_found_by_itself():
    """No prompt is rendered behind a turn of the assistant, so that what it says next has its header in it."""
    after_user = CHATML.replace("{% if add", "{% if messages[-1].role == 'user' and add")
    messages = [*conversation().messages]
    messages.insert(31, {"role": "assistant", "content": "first"})
    said = [f"number {number}<|im_end|>" for number in range(PAIRS)]
    said[15:16] = ["first<|im_end|>", "<|im_start|>assistant\nnumber 15<|im_end|>"]
    assert found(after_user, Conversation(messages)) == said


def test_turns_that_reach_otherwise_into_the_template_are_found_one_by_one():
    """Turns 0 and 1 differ in a way that the text around a content does not show: what an answer begins with."""
    early = CHATML.replace(
        "assistant\n{% endif %}", "{{ 'assistant\n' if messages | length > 1 else '' }}{% endif %}"
    )
    said = [f"number {number}<|im_end|>" for number in range(PAIRS)]
    said[0] = "assistant\n" + said[0]
    assert found(early, conversation()) == said


def test_tokens_are_targets_where_they_overlap_any_span():
    places = np.array([[0, 2], [2, 3], [3, 3], [3, 6], [6, 8], [8, 9], [9, 12]])
    assert targets_of(places, [(7, 8), (1, 2)]).tolist() == [True, False, False, False, True, False, False]
    # One span within another.
    assert targets_of(places, [(2, 9), (3, 4)]).tolist() == [False, True, True, True, True, True, False]
    assert not targets_of(places, []).any()
