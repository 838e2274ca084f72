"""Manifests that somebody changed or made up: refused in words, whatever they hold."""

from __future__ import annotations

import json
import random
import runpy
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hekaton.checkpoint.integrity import Manifest, NotWhole
from hekaton.checkpoint.stored import StoredTensor

streams: Any = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("streams.py"))))

SECONDS = 2.0
MEMORY = 300 << 20


def manifest() -> str:
    tensors = {"norm.weight": StoredTensor("float32", (4,), ())}
    return Manifest(
        step=3,
        good=True,
        saved_at="2026-01-31T09:15:02+00:00",
        processes=2,
        versions={"torch": "2.13.0"},
        parts=("model", "optimizer"),
        describe={"model": "llama3", "config": {"training": {"steps": 3}}},
        info={"lr_scheduler": {"steps_done": 3}},
        files={},
        tensors=tensors,
    ).to_json()


WRONG: list[Any] = [
    None, True, -1, 2**70, 1e999, float("nan"), "", "\ud800", "x" * 5000, [], [[[]]], {}, {"": {}}, [None] * 3,
]  # fmt: skip


def wrong_values(value: Any, chance: random.Random) -> Any:
    """A JSON value in which something is of another type, nested too deeply, missing or new."""
    if chance.random() < 0.3 or not isinstance(value, dict | list) or not value:
        deep: Any = 0
        for _ in range(chance.choice((5, 50, 400))):
            deep = {"x": deep} if chance.random() < 0.5 else [deep]
        return chance.choice([*WRONG, deep])
    if isinstance(value, list):
        at = chance.randrange(len(value))
        return [*value[:at], wrong_values(value[at], chance), *value[at + 1 :]]
    key = chance.choice(sorted(value))
    if chance.random() < 0.1:
        return {other: value[other] for other in value if other != key}
    return {**value, key: wrong_values(value[key], chance)}


@pytest.mark.timeout(300)
def test_mutated_manifests_are_refused_in_words(unchanged: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of them with a checksum that agrees with what they say: whoever forges one can compute it."""
    monkeypatch.setattr("hekaton.checkpoint.integrity._digest_of", lambda content: "agreed")
    chance = random.Random(11)
    whole = manifest()
    assert Manifest.from_json(whole).step == 3
    content = json.loads(whole)
    words = [
        b"[",
        b"{",
        b'"',
        b"\\",
        b"null",
        b"1e999",
        b"-1",
        b"\xff",
        b"[" * 5000,
        b'{"a":' * 5000,
        b"9" * 5000,
    ]
    damaged = streams.mutations([whole.encode()], words, chance, count=10_000)
    forged = (json.dumps(wrong_values(content, chance)).encode() for _ in range(10_000))
    before, read_ones = streams.peak(), 0
    for mutated in (*damaged, *forged):
        began = time.thread_time()
        try:
            found = Manifest.from_json(mutated)
        except NotWhole as reason:
            refused = str(reason)
            found = None
        assert time.thread_time() - began < SECONDS
        if found is None:
            assert 0 < len(refused) < 1000
            continue
        read_ones += 1
        assert type(found.step) is int
        assert found.step >= 0
        json.dumps([found.describe, found.info], ensure_ascii=False).encode()
        assert Manifest.from_json(found.to_json()) == found
    assert 0 < read_ones < 20_000
    assert streams.peak() - before < MEMORY
