"""How a task asks for text to be generated: checked, as numbers and stop words."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from hekaton.errors import ConfigError
from hekaton.sampling import Sampling

log = logging.getLogger("hekaton")

_KNOWN = ("do_sample", "until", "temperature", "top_k", "top_p", "max_gen_toks")


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
    :raises ConfigError: for values of another type, or out of range.
    """
    if not isinstance(arguments, Mapping):
        raise ConfigError(f"generation_kwargs = {arguments!r}: a table was expected")
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
    unknown = sorted(str(name) for name in given.keys() - set(_KNOWN))
    if unknown:
        log.warning("tasks say %s for generation, which has no effect here", ", ".join(unknown))
    return Wanted(until=until, most=given["max_gen_toks"], sampling=sampling)
