"""How a task asks for text to be generated: checked, as numbers and stop words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import simple_parse_args_string

from hekaton.errors import ConfigError, choices_hint
from hekaton.sampling import Sampling

_OF_DRAWS = ("temperature", "top_k", "top_p")
_KNOWN = ("do_sample", "until", *_OF_DRAWS, "max_gen_toks", "num_beams")
_SAME = ("max_new_tokens", "max_tokens", "max_completion_tokens")
"""Other names of ``max_gen_toks``."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """:param until: texts that end an answer, beside the tokens that do.
    :param most: tokens of an answer.
    """

    until: list[str]
    most: int
    sampling: Sampling


def wanted(arguments: Mapping[str, Any], *, most: int, seed: int = 0) -> Wanted:
    """What ``generation_kwargs`` of a task ask for, with the harness's names for the same thing.

    :param most: tokens of an answer where the task does not say how many.
    :raises ConfigError: for names that are not known, values of another type, or out of range.
    """
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"generation_kwargs = {arguments!r}: a table was expected")
    for name in arguments:
        if name not in (*_KNOWN, *_SAME):
            raise ConfigError(
                f"generation_kwargs.{name} is not known here", hint=choices_hint(str(name), _KNOWN)
            )
    if arguments.get("num_beams", 1) != 1:
        raise ConfigError(
            f"generation_kwargs.num_beams = {arguments['num_beams']}: texts are not searched for with beams",
            hint="--gen_kwargs num_beams=1 takes one",
        )
    try:
        given: dict[str, Any] = dict(normalize_gen_kwargs(dict(arguments), most))
        temperature, top_p = float(given.get("temperature", 1.0)), float(given.get("top_p") or 1.0)
        top_k = int(given.get("top_k") or 0) or None
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"generation_kwargs = {dict(arguments)}: {error}") from error
    until = [one for one in given["until"] if one is not None]
    for one in until:
        if not isinstance(one, str):
            raise ConfigError(f"generation_kwargs.until = {arguments['until']!r}: texts were expected")
    if given["max_gen_toks"] < 1:
        raise ConfigError(f"generation_kwargs.max_gen_toks = {given['max_gen_toks']} must be at least 1")
    if not isinstance(given["do_sample"], bool):
        raise ConfigError(f"generation_kwargs.do_sample = {given['do_sample']!r}: true or false was expected")
    sampling = Sampling(temperature=0.0)
    if given["do_sample"]:
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    return Wanted(until=until, most=given["max_gen_toks"], sampling=sampling)


def given(text: str) -> dict[str, Any]:
    """The arguments of ``--gen_kwargs``: ``NAME=VALUE`` with commas between.

    :raises ConfigError: for what is none, a name that is not known, and one that is given twice.
    """
    names = []
    for part in text.split(","):
        name, equals, value = (one.strip() for one in part.partition("="))
        if not name or not equals or not value:
            raise ConfigError(f"--gen_kwargs {text}: '{part}' is not of the form NAME=VALUE")
        if name not in (*_KNOWN, *_SAME):
            raise ConfigError(f"--gen_kwargs: '{name}' is not known", hint=choices_hint(name, _KNOWN))
        names.append("max_gen_toks" if name in _SAME else name)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"--gen_kwargs {text}: {twice} is given twice", hint="give it once")
    return {
        "max_gen_toks" if name.strip() in _SAME else name.strip(): value
        for name, value in simple_parse_args_string(text).items()
    }


def check_in_effect(arguments: Mapping[str, Any], tasks: Mapping[str, Any]) -> None:
    """:param arguments: of ``--gen_kwargs``, which ``tasks`` have taken over.
    :raises ConfigError: for those that change no text.
    """
    generating = [one for one in tasks.values() if one.get_config("output_type") == "generate_until"]
    if not generating:
        raise ConfigError("--gen_kwargs has no effect: no task generates text", hint="leave it out")
    of_draws = [name for name in _OF_DRAWS if arguments.get(name)]
    draws = any(
        normalize_gen_kwargs(dict(one.get_config("generation_kwargs") or {}))["do_sample"]
        for one in generating
    )
    if of_draws and not draws:
        raise ConfigError(
            f"--gen_kwargs {of_draws[0]}={arguments[of_draws[0]]} has no effect: no task draws its tokens",
            hint="say do_sample=true as well",
        )
