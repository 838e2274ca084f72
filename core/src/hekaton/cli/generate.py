"""``hekaton generate``: texts that a trained model continues."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from hekaton.cli import plugin_flags, trained_model
from hekaton.cli.arguments import MOST_SEED, VerbParser, as_path, check_numbers
from hekaton.errors import ConfigError, choices_hint

if TYPE_CHECKING:
    from hekaton.data import TextTokenizer
    from hekaton.generation import Token
    from hekaton.loaded_model import LoadedModel

USAGE = f"""\
usage: hekaton generate --checkpoint PATH --prompt TEXT [options]
       hekaton generate --hf PATH --prompt TEXT [options]

Continue texts with a trained model, on one device, and print them as they come.

{trained_model.SOURCES}
  --prompt TEXT             the text to be continued; may be given several times
  --prompt_file FILE        a prompt in each line; - for standard input
  --max_new_tokens N        tokens of each continuation, at most; 128 by default
  --temperature T           logits are divided by it; 1 by default, 0 takes the most likely token
  --top_k K                 draw among the K most likely tokens
  --top_p P                 draw among the most likely tokens whose probabilities sum to P
  --seed N                  of the draws; 0 by default
  --batch_size N            prompts that are continued together; 8 by default. It changes no text
  --json                    a line of JSON for each prompt: prompt, text, ids, end (token or length)

{trained_model.OPTIONS}

A text ends at a token that the model was trained to end texts with, after --max_new_tokens, or at the length
that the model was trained for. Ids that the tokenizer does not have are never drawn. What a prompt is
continued with depends on the prompt and the seed, not on the prompts beside it."""

_LIMITS = {
    "max_new_tokens": (1, 2**20), "batch_size": (1, 2**16), "top_k": (1, 2**31), "seed": (0, MOST_SEED),
}  # fmt: skip
_CONTEXT = 8
"""Tokens before a new one that it is decoded with."""


def run(arguments: list[str]) -> int:
    """Run ``hekaton generate ARGUMENTS``."""
    flags, words = plugin_flags(arguments)
    if not words or set(words) & {"-h", "--help"}:
        print(USAGE)
        return 0
    given = _parsed(words)
    prompts = _prompts(given)
    plugins = flags.discover()
    plugins.check()

    from hekaton.sampling import Sampling

    if given.temperature == 0 and (given.top_k is not None or given.top_p != 1):
        print("notice: --top_k and --top_p have no effect: --temperature 0 draws nothing", file=sys.stderr)
    drawn = {name: getattr(given, name) for name in ("temperature", "top_k", "top_p", "seed")}
    Sampling(**drawn)  # what is wrong with it is said before a model is loaded
    loaded = trained_model.load(plugins, **trained_model.said(given))
    _generate(loaded, prompts, given, drawn)
    return 0


def _parsed(words: list[str]) -> argparse.Namespace:
    parser = VerbParser("generate")
    trained_model.add_arguments(parser)
    parser.add_argument("--prompt", action="append", default=[])
    parser.add_argument("--prompt_file")
    for name, kind, default in (
        ("max_new_tokens", int, 128), ("temperature", float, 1.0), ("top_k", int, None),
        ("top_p", float, 1.0), ("seed", int, 0), ("batch_size", int, 8),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=default)
    parser.add_argument("--json", action="store_true")
    given, unknown = parser.parse_known_args(words)
    for word in unknown:
        if word.startswith("-"):
            options = re.findall(r"--\w+", parser.format_usage())
            raise ConfigError(
                f"hekaton generate: unknown option {word}", hint=choices_hint(word.partition("=")[0], options)
            )
        raise ConfigError(f"hekaton generate: unexpected '{word}'", hint="--prompt takes one text: quote it")
    check_numbers(given, _LIMITS)
    return given


_MAX_PROMPTS = 2**26
"""Characters of a file of prompts: a device that has no end is noticed before it fills the memory."""


def _prompts(given: argparse.Namespace) -> list[str]:
    prompts = list(given.prompt)
    if given.prompt_file is not None:
        try:
            if given.prompt_file == "-":
                text = sys.stdin.read(_MAX_PROMPTS + 1)
            else:  # a pipe will do, as of <(...) in a shell, so its size is not asked for
                with as_path(given.prompt_file).open(encoding="utf-8") as file:
                    text = file.read(_MAX_PROMPTS + 1)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ConfigError(f"cannot read the prompts in '{given.prompt_file}': {reason}") from error
        if len(text) > _MAX_PROMPTS:
            raise ConfigError(
                f"the prompts in '{given.prompt_file}' have more than {_MAX_PROMPTS:,} characters",
                hint="give them in several calls",
            )
        prompts += [line for line in text.splitlines() if line]
    for number, prompt in enumerate(prompts, 1):
        try:
            prompt.encode()
        except UnicodeEncodeError as error:  # bytes of a command line that are no UTF-8
            raise ConfigError(f"prompt {number}: character {error.start + 1} is not valid Unicode") from error
    if not prompts:
        raise ConfigError("there is no prompt", hint="give --prompt TEXT, or --prompt_file FILE with a line")
    return prompts


def _generate(
    loaded: LoadedModel, prompts: Sequence[str], given: argparse.Namespace, drawn: dict[str, Any]
) -> None:
    ids = [loaded.encode(prompt) for prompt in prompts]
    tokens = loaded.stream(ids, max_new_tokens=given.max_new_tokens, batch_size=given.batch_size, **drawn)
    print(f"{loaded.source}: {loaded}", file=sys.stderr)
    positions = loaded.facts.positions
    if positions is not None and max(map(len, ids)) + given.max_new_tokens > positions:
        print(f"notice: texts end at {positions:,} tokens, for which the model was trained", file=sys.stderr)
    began, count = time.perf_counter(), 0
    for number, of_prompt in groupby(in_order(tokens), key=lambda token: token.prompt):
        show = _show_json if given.json else _show_text
        count += show(loaded, prompts, number, ids[number], of_prompt)
    seconds = time.perf_counter() - began
    print(f"{count:,} tokens in {seconds:.1f} s, {count / seconds:,.1f} tokens/s", file=sys.stderr)


def in_order(tokens: Iterable[Token]) -> Iterator[Token]:
    """The same tokens, those of a prompt after all those of the prompt before it."""
    waiting: defaultdict[int, deque[Token]] = defaultdict(deque)
    current = 0
    for token in tokens:
        waiting[token.prompt].append(token)
        while waiting[current]:
            yield (first := waiting[current].popleft())
            current += first.last


class TextStream:
    """The text of tokens as they come.

    Tokens are decoded with some of those before them, since what a token stands for may depend on these, and
    held back while they end within a character.
    """

    def __init__(self, tokenizer: TextTokenizer, before: Sequence[int]) -> None:
        """:param before: the ids that the text continues."""
        self._decode = tokenizer.decode
        self._ids = list(before[-_CONTEXT:])
        self._start, self._told = 0, len(self._ids)

    def add(self, token: int) -> str:
        """The text that is complete with one more token."""
        self._ids.append(token)
        return (
            ""
            if self._decode(self._ids[self._start :]).endswith("\N{REPLACEMENT CHARACTER}")
            else self.rest()
        )

    def rest(self) -> str:
        """The text of the tokens that were held back."""
        told = self._decode(self._ids[self._start : self._told])
        text = self._decode(self._ids[self._start :])[len(told) :]
        self._start, self._told = self._told, len(self._ids)
        return text


def _show_text(
    loaded: LoadedModel, prompts: Sequence[str], number: int, ids: Sequence[int], tokens: Iterable[Token]
) -> int:
    if len(prompts) > 1:
        print(f"== prompt {number + 1} of {len(prompts)}")
    _write(prompts[number])
    text = TextStream(loaded.tokenizer, ids)
    count = 0
    for token in tokens:
        count += 1
        if not (token.last and token.id in loaded.ends):
            _write(text.add(token.id))
    _write(text.rest())
    print(flush=True)
    return count


def _show_json(
    loaded: LoadedModel, prompts: Sequence[str], number: int, ids: Sequence[int], tokens: Iterable[Token]
) -> int:
    new = [token.id for token in tokens]
    ended = new[-1] in loaded.ends
    text = loaded.tokenizer.decode(new[:-1] if ended else new)
    line = {"prompt": prompts[number], "text": text, "ids": new, "end": "token" if ended else "length"}
    print(json.dumps(line), flush=True)
    return len(new)


def _write(text: str) -> None:
    """Print text, on a terminal without the control characters by which it could write elsewhere."""
    if sys.stdout.isatty():
        text = "".join(
            letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}"
            for letter in text
        )
    print(text, end="", flush=True)
