"""What a chat template of a stranger can do: nothing but put text together, and of that no more than bounded."""

from __future__ import annotations

import datetime
import os
import resource
import time

import pytest

from hekaton.errors import DataError
from hekaton_hf.chat import sandbox
from hekaton_hf.chat.conversations import Conversation
from hekaton_hf.chat.template import ChatTemplate, RefusedError

TALK = Conversation([{"role": "user", "content": "a" * 1000}, {"role": "assistant", "content": "b"}])
DAY = datetime.date(2024, 7, 26)


def rendered(source: str) -> str:
    template = ChatTemplate(
        "{% generation %}" + source + "{% endgeneration %}", tokens={}, date=DAY, origin="x"
    )
    return template.render(TALK).text


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__base__ }}",
        "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
        "{{ self.__init__.__globals__ }}",
        "{{ ''|attr('__class__') }}",
        "{{ (messages|map(attribute='__class__')|list)[0].__name__ }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
        "{{ '{0.__globals__}'.format_map({'0': raise_exception}) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace(__init__=1) }}",
        "{{ dict.__init__ }}{{ dict.fromkeys.__globals__.x }}",
        "{{ strftime_now.__globals__.os }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    ],
)
def test_nothing_leads_out_of_it(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    try:
        text = rendered(source)
    except (RefusedError, DataError):  # when it is rendered, or when it is read
        text = ""
    assert "class" not in text
    assert "root" not in text
    assert "globals" not in text
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == before


BOMBS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops over text": "{% for a in messages[0].content %}{% for b in messages[0].content %}"
    "{% for c in messages[0].content %}{% endfor %}{% endfor %}{% endfor %}",
    "range": "{{ range(10**12)|list }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "doubling by joining": "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}"
    "{% endfor %}{{ ns.s }}",
    "doubling by adding": "{% set ns = namespace(s='a') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}"
    "{% endfor %}{{ ns.s }}",
    "doubling by lists": "{% set ns = namespace(s=['a']) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}"
    "{% endfor %}{{ ns.s }}",
    "lists as JSON": "{% set ns = namespace(s=['a']) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}"
    "{% endfor %}{{ ns.s|tojson }}",
    "lists as text": "{% set ns = namespace(s=['a']) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}"
    "{% endfor %}{{ ns.s|string|length }}",
    "times": "{{ 'a' * 10**9 }}",
    "constant times": "{{ 'a' * 1000000000 }}",
    "times of lists": "{{ ([0] * 100000) * 100000 }}",
    "power": "{{ 10**10**10 }}",
    "numbers": "{% set ns = namespace(n=2) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "shift": "{{ 2**63 * 2**63 }}",
    "percent": "{{ '%1000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (1000000000, 1) }}",
    "format filter": "{{ '%1000000000d'|format(1) }}",
    "format": "{{ '{:1000000000}'.format(1) }}",
    "format nested": "{{ '{:{}}'.format(1, '1000000000') }}",
    "center": "{{ 'a'|center(1000000000) }}",
    "ljust": "{{ 'a'.ljust(1000000000) }}",
    "zfill": "{{ 'a'.zfill(1000000000) }}",
    "tabs": "{{ ('\\t' * 100000).expandtabs(1000000) }}",
    "replace": "{% set s = messages[0].content * 10 %}{{ s.replace('a', s).replace('a', s) }}",
    "replace filter": "{% set s = messages[0].content * 10 %}{{ s|replace('a', s)|replace('a', s) }}",
    "join": "{% set s = messages[0].content * 100 %}{{ s.join(s) }}",
    "join filter": "{% set s = messages[0].content * 100 %}{{ s|join(s) }}",
    "indent": "{% set s = '\\n' * 100000 %}{{ s|indent(messages[0].content, blank=true) }}",
    "batch": "{{ [1]|batch(1000000000, 1)|list }}",
    "output": "{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}",
    "translate": "{{ ('a' * 10000).translate({97: messages[0].content * 10}) }}",
}


@pytest.mark.parametrize("source", list(BOMBS.values()), ids=list(BOMBS))
def test_time_and_memory_are_bounded(source, monkeypatch):
    monkeypatch.setattr(sandbox, "MOST_TURNS", 10_000)
    monkeypatch.setattr(sandbox, "MOST_CHARACTERS", 1 << 20)
    monkeypatch.setattr("hekaton_hf.chat.template.MOST_CHARACTERS", 1 << 20)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RefusedError):
        rendered(source)
    assert time.process_time() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_a_rendering_ends_after_some_time(monkeypatch):
    monkeypatch.setattr(sandbox, "MOST_SECONDS", -1.0)
    with pytest.raises(RefusedError, match="it takes more than -1 seconds"):
        rendered("{% for a in messages %}{% endfor %}")


def test_what_templates_use_works():
    assert rendered("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"
    source = (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% if loop.last %}"
        "{% continue %}{% endif %}{{ m.role ~ ns.n ~ '!' }}{% endfor %}{{ ns.n }}"
        "{{ messages | map(attribute='role') | join(',') }}{{ {'a': 1, 'b': '<ü>'} | tojson }}"
        "{{ 'a-b'.split('-')[::-1] | join }}{{ '%02d' | format(7) }}{{ ' x ' | trim | upper }}"
        "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice('z') }}{{ 2 * 3 + 4 }}{{ 'ab' * 2 }}"
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ [3, 1] | sort | first }}"
    )
    assert rendered(source) == 'user1!2user,assistant{"a": 1, "b": "<ü>"}ba07Xzz10abab11'
