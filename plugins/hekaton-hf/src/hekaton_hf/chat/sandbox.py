"""Templates of strangers: what they may do is to put text together, for so long and so much of it.

jinja2's sandbox keeps a template from attributes and calls that lead out of it. It bounds neither time nor
memory, so here every turn of a loop and every macro counts, and what is put together is measured before.
Names and filters are those of transformers (``utils/chat_template_utils.py``): templates render alike.
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MOST_TURNS = 1_000_000
"""Turns of loops, and calls of macros, in one rendering."""
MOST_CHARACTERS = 1 << 24
"""Of one value that is put together, and of what is rendered."""
MOST_SECONDS = 20.0
_MOST_NUMBER = 1_000_000
"""In a call: widths, counts."""
_WIDTH = re.compile(r"\d{5}|\*|[{:][^}]*\{")
"""In a format: a number of five digits, or one that is given elsewhere."""
_LEFT_OUT = ("lipsum", "cycler", "joiner")
_FILTERS_LEFT_OUT = ("random", "pprint", "xmlattr", "urlize", "wordwrap", "filesizeformat", "attr")


class Sandbox(ImmutableSandboxedEnvironment):
    """Where one template is rendered, by one caller at a time."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *, date: datetime.date) -> None:
        """:param date: what templates are told that it is."""
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"],
            optimized=False, finalize=self.measured,
        )  # fmt: skip
        for name in _LEFT_OUT:
            del self.globals[name]
        for name in _FILTERS_LEFT_OUT:
            del self.filters[name]
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": lambda form: date.strftime(str(form)[:100]),
            "dict": _Dict(),
            "namespace": _PlainNamespace,
        }
        self.filters |= {name: self._bounded(call, name) for name, call in self.filters.items()}
        self.filters["tojson"] = self._tojson
        self.begin()

    def begin(self) -> None:
        """Count from 0."""
        self.marked: list[tuple[int, str]] = []
        """Where a text is to stand that is marked as the assistant's, and the text."""
        self.length = 0
        self._turns = 0
        self._end = time.monotonic() + MOST_SECONDS

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed = super()._parse(source, name, filename)
        node: Any
        for node in list(parsed.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
            tick = nodes.ExprStmt(self._own("tick", []))
            tick.set_lineno(node.lineno).set_environment(self)
            node.body.insert(0, tick)
        for parent in [parsed, *parsed.find_all(nodes.Node)]:
            for field, value in parent.iter_fields():
                if isinstance(value, nodes.Concat):
                    setattr(parent, field, self._joining(value))
                elif isinstance(value, list):
                    value[:] = [self._joining(one) if isinstance(one, nodes.Concat) else one for one in value]
        return parsed

    def _joining(self, concat: nodes.Concat) -> nodes.Node:
        """``a ~ b``, which jinja2 compiles to what cannot be intercepted."""
        return self._own("joined", concat.nodes).set_lineno(concat.lineno).set_environment(self)

    @staticmethod
    def _own(name: str, arguments: list[Any]) -> nodes.Call:
        return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)

    def is_safe_callable(self, obj: Any) -> bool:
        return obj in (self.tick, self.joined) or bool(super().is_safe_callable(obj))

    def tick(self) -> None:
        self._turns += 1
        if self._turns > MOST_TURNS:
            raise jinja2.TemplateError(f"it takes more than {MOST_TURNS:,} turns")
        if time.monotonic() > self._end:
            raise jinja2.TemplateError(f"it takes more than {MOST_SECONDS:.0f} seconds")

    def joined(self, *values: Any) -> str:
        return "".join([str(one) for one in self.measured(values)])

    def measured(self, value: Any) -> Any:
        """The value, if it has no more than ``MOST_CHARACTERS`` characters and elements, however deep."""
        _measure(value, MOST_CHARACTERS, 0)
        return value

    def call(self, context: Any, obj: Any, *arguments: Any, **named: Any) -> Any:
        if obj not in (self.tick, self.joined):
            method = getattr(obj, "__wrapped__", obj)  # str.format is wrapped
            self._check(getattr(method, "__self__", None), getattr(method, "__name__", ""), arguments, named)
        return self.measured(super().call(context, obj, *arguments, **named))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            sizes: list[Any] = [len(one) if isinstance(one, _SIZED) else one for one in (left, right)]
            if not all(isinstance(one, int | float) for one in sizes) or abs(sizes[0] * sizes[1]) > 2**60:
                raise jinja2.TemplateError("a product is too large")
            if any(isinstance(one, _SIZED) for one in (left, right)):
                self._check_product(sizes[0], sizes[1])
        elif operator == "**" and not (abs(left) < 2**16 and abs(right) < 64):
            raise jinja2.TemplateError("a power is too large")
        elif operator == "%" and isinstance(left, str) and _WIDTH.search(left):
            raise jinja2.TemplateError("a format has a width that is too large, or given elsewhere")
        self.measured([left, right])
        return super().call_binop(context, operator, left, right)

    def _bounded(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        def bounded(*arguments: Any, **named: Any) -> Any:
            # Where jinja2 passes its own objects first, they have no size.
            self._check(None, name, arguments, named)
            return self.measured(call(*arguments, **named))

        passed = getattr(call, "jinja_pass_arg", None)
        if passed is not None:
            bounded.jinja_pass_arg = passed  # type: ignore[attr-defined]
        return bounded

    def _check(self, owner: Any, name: str, arguments: Any, named: Mapping[str, Any]) -> None:
        """What a call is given, before it makes something large of it."""
        given = [
            one for one in (owner, *arguments, *named.values()) if isinstance(one, (*_SIZED, int, float))
        ]
        self.measured(given)
        numbers = [one for one in given if isinstance(one, int | float)]
        if any(abs(one) > _MOST_NUMBER for one in numbers) and name not in _NUMERIC:
            raise jinja2.TemplateError(f"{name}() is given the number {max(numbers, key=abs):,}")
        texts = [one for one in given if isinstance(one, str)]
        if name in ("format", "format_map") and any(_WIDTH.search(one) for one in texts[:1]):
            raise jinja2.TemplateError("a format has a width that is too large, or given elsewhere")
        if name in ("replace", "join", "translate", "indent", "expandtabs", "center", "ljust", "rjust"):
            sizes = sorted((_measure(one, MOST_CHARACTERS, 0) for one in given), reverse=True)
            self._check_product(*[*sizes, 1, 1][:2])

    @staticmethod
    def _check_product(one: float, other: float) -> None:
        if one * other > MOST_CHARACTERS * 4:
            raise jinja2.TemplateError("it makes more text than a template may")

    def _tojson(
        self, value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
        sort_keys: bool = False,
    ) -> str:  # fmt: skip
        self._check(None, "tojson", [value, indent], {})
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )


_SIZED = (str, list, tuple, dict)
_NUMERIC = ("abs", "int", "float", "round", "string", "tojson", "default", "d", "get", "append", "dict")
"""What may be given any number, since it makes nothing of that size of it."""


def _measure(value: Any, most: int, size: int) -> int:
    """``size`` and the characters and elements of a value.

    :raises TemplateError: when that is more than ``most``; no more of it is looked at.
    """
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            size += len(one)
        elif isinstance(one, list | tuple):
            size += len(one)
            waiting += one
        elif isinstance(one, dict):
            size += len(one)
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, int) and one.bit_length() > 4096:
            size = most + 1
        if size > most:
            raise jinja2.TemplateError(f"it makes a value of more than {most:,} characters")
    return size


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(str(message)[:1000])


class _Dict:
    """``dict`` without what hangs on the class."""

    def __call__(self, *arguments: Any, **named: Any) -> dict[Any, Any]:
        return dict(*arguments, **named)


class _PlainNamespace(Namespace):
    """``namespace`` without names that begin with an underscore."""

    def __init__(*arguments: Any, **named: Any) -> None:
        self, given = arguments[0], dict(*arguments[1:], **named)
        if any(str(name).startswith("_") for name in given):
            raise jinja2.TemplateError("names of a namespace may not begin with an underscore")
        Namespace.__init__(self, given)

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise jinja2.TemplateError("names of a namespace may not begin with an underscore")
        Namespace.__setitem__(self, name, value)


class Generation(Extension):
    """``{% generation %}``: what the assistant says, as transformers' templates mark it."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        text = caller()
        sandbox = self.environment
        assert isinstance(sandbox, Sandbox)
        sandbox.marked.append((sandbox.length, text))
        return text
