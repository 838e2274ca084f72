"""Which frozen encoders a run has: those for trials, those of its folders, or what they gave before."""

from __future__ import annotations

import functools
from pathlib import Path

from hekaton.errors import ConfigError, about
from hekaton_flux.encoded import StoredEncodings
from hekaton_flux.encoders import FrozenEncoders, TrialEncoders
from hekaton_flux.pretrained import PretrainedEncoders, check_folders
from hekaton_flux.settings import FlowMatchingSection

FIELDS = ("text_encoder", "pooled_encoder", "autoencoder")


@functools.lru_cache(maxsize=4)
def _pretrained(text_encoder: str, pooled_encoder: str, autoencoder: str, text_length: int) -> FrozenEncoders:
    return PretrainedEncoders(
        FlowMatchingSection(
            text_encoder=text_encoder, pooled_encoder=pooled_encoder, autoencoder=autoencoder,
            text_length=text_length,
        )
    )  # fmt: skip


def frozen_encoders(section: FlowMatchingSection) -> FrozenEncoders:
    """The encoders of a run, opened once in a process, or what a folder has in their place.

    :raises ConfigError: when some of the three folders are named and others not, or for one that is wrong.
    """
    if section.encoded:
        return StoredEncodings(Path(section.encoded), section)
    if not _named(section):
        return TrialEncoders(section.text_length)
    return _pretrained(section.text_encoder, section.pooled_encoder, section.autoencoder, section.text_length)


def check_encoders(section: FlowMatchingSection) -> None:
    """What can be said without opening models.

    :raises HekatonError: for a folder that is not there, was not written to its end, or is damaged.
    """
    if section.encoded:
        with about("flow_matching.encoded"):
            StoredEncodings(Path(section.encoded), section)
    elif _named(section):
        check_folders({field: getattr(section, field) for field in FIELDS})


def _named(section: FlowMatchingSection) -> bool:
    """Whether folders are named.

    :raises ConfigError: when some of the three are, and others not.
    """
    missing = [name for name in FIELDS if not getattr(section, name)]
    if missing and len(missing) < len(FIELDS):
        raise ConfigError(
            f"[flow_matching] names some encoders, and not {', '.join(missing)}",
            hint="set all three of text_encoder, pooled_encoder and autoencoder, or none",
            fields=[f"flow_matching.{name}" for name in FIELDS],
        )
    return not missing
