"""What is known of a model beside its weights and its configuration: how long its texts were, how they end.

A run's checkpoints keep it, and it follows the weights from a folder of Hugging Face through runs to an
export.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hekaton.config.base import shortened
from hekaton.errors import CheckpointError

POSITIONS = "max_position_embeddings"
BOS, EOS, PAD = "bos_token_id", "eos_token_id", "pad_token_id"
TOKEN_IDS = (BOS, EOS, PAD)

_MOST_KEYS, _LONGEST_TEXT, _LARGEST = 64, 200, 2**31


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The ids with which a text begins and ends. ``None``, or no id: there is no such token.

    :param eos_ids: any of them ends a text; the tokenizer's own is first where only one is known.
    """

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def then(self, later: SpecialTokens) -> SpecialTokens:
        """These, replaced by what a tokenizer says that is used since.

        A tokenizer names one end and often no padding: where its end is one of these, it is the same
        tokenizer and the others stay.
        """
        if later.eos_ids and set(later.eos_ids) <= set(self.eos_ids) and later.bos_id in (None, self.bos_id):
            pad_id = self.pad_id if later.pad_id is None else later.pad_id
            return SpecialTokens(bos_id=later.bos_id, eos_ids=self.eos_ids, pad_id=pad_id)
        return later

    def for_config(self) -> dict[str, Any]:
        """As ``config.json`` has them; what there is not is ``None``, since a key left out has a default."""
        eos: Any = list(self.eos_ids) if len(self.eos_ids) > 1 else next(iter(self.eos_ids), None)
        return {BOS: self.bos_id, EOS: eos, PAD: self.pad_id}


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is known of a model beside its weights and its configuration.

    :param positions: tokens of the longest sequence that it was made for, ``None`` where nobody says.
    :param tokens: ``None`` where nobody says.
    :param generation: further content of its ``generation_config.json``.
    """

    positions: int | None = None
    tokens: SpecialTokens | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)

    def then(self, later: ModelFacts) -> ModelFacts:
        """These facts after more training: the longer positions, and the tokenizer that came last."""
        lengths = [positions for positions in (self.positions, later.positions) if positions is not None]
        tokens = self.tokens
        if later.tokens is not None:
            tokens = later.tokens if tokens is None else tokens.then(later.tokens)
        return ModelFacts(
            positions=max(lengths, default=None),
            tokens=tokens,
            generation=later.generation or self.generation,
        )

    def to_json(self) -> dict[str, Any]:
        """For a manifest; :func:`facts_of` reads it."""
        content: dict[str, Any] = {"generation": dict(self.generation)}
        if self.positions is not None:
            content[POSITIONS] = self.positions
        return content | (self.tokens.for_config() if self.tokens is not None else {})


def facts_of(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> ModelFacts:
    """The facts in the content of a ``config.json`` and a ``generation_config.json``, or of a manifest.

    What is not of the right type and size says nothing: nobody vouches for these files.
    """
    said = generation if generation is not None else config.get("generation")
    said = said if isinstance(said, Mapping) else {}
    tokens = None
    if any(key in config for key in TOKEN_IDS):
        # transformers stops at those of the generation's configuration.
        ends = _ids(said.get(EOS)) or _ids(config.get(EOS))
        tokens = SpecialTokens(bos_id=_id(config.get(BOS)), eos_ids=ends, pad_id=_id(config.get(PAD)))
    positions = _id(config.get(POSITIONS))
    return ModelFacts(positions=positions or None, tokens=tokens, generation=_plain(said))


def check_facts(config: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> None:
    """Check what :func:`facts_of` reads of the files of a published model.

    :raises CheckpointError: for positions that are no whole number, and ids of tokens that are none. ``null``
        says that there is none, and so do -1 in place of an id and 0 in place of positions, as in many files.
    """
    _check(config.get(POSITIONS), f"{POSITIONS} = ", least=0, what="a whole number")
    for content, file in ((config, ""), (generation or {}, "generation_config.json: ")):
        for key in TOKEN_IDS:
            value = content.get(key)
            listed = value if key == EOS and isinstance(value, list) else [value]
            for one in listed:
                _check(one, f"{file}{key} = ", least=-1, what="the id of a token")


def _check(value: Any, name: str, *, least: int, what: str) -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (is_whole and least <= value < _LARGEST):
        raise CheckpointError(f"{name}{shortened(repr(value))}: {what} was expected")


def facts_of_step(describe: Mapping[str, Any]) -> ModelFacts:
    """The facts in the manifest of a step.

    :param describe: of the manifest; see :class:`hekaton.checkpoint.CheckpointManager`.
    """
    facts = describe.get("facts")
    if isinstance(facts, Mapping):
        return facts_of(facts)
    config = describe.get("config")
    training = config.get("training") if isinstance(config, Mapping) else None
    positions = _id(training.get("seq_len")) if isinstance(training, Mapping) else None
    return ModelFacts(positions=positions or None)


def _id(value: Any) -> int | None:
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST
    return value if fits else None


def _ids(value: Any) -> tuple[int, ...]:
    listed = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    found = [_id(one) for one in listed[:_MOST_KEYS]]
    return tuple(dict.fromkeys(one for one in found if one is not None))


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    """The short, single values of a ``generation_config.json``, less what is another's to say."""
    kept = {}
    for key, value in list(content.items())[:_MOST_KEYS]:
        short = isinstance(value, str) and len(value) <= _LONGEST_TEXT
        number = isinstance(value, int | float) and abs(value) < _LARGEST and math.isfinite(value)
        if key not in (*TOKEN_IDS, "transformers_version") and (short or number):
            kept[str(key)[:_LONGEST_TEXT]] = value
    return kept
