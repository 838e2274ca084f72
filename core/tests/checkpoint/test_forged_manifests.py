"""Manifests that somebody changed or made up: refused in words, whatever they hold."""

from __future__ import annotations

import json
import random
import runpy
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.disk.manifest import Manifest, NotWhole
from hekaton.checkpoint.disk.stored import StoredTensor
from hekaton.checkpoint.tensors.state import check_info
from hekaton.cli import main
from hekaton.errors import CheckpointError

streams: Any = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("streams.py"))))

Make = Callable[..., CheckpointManager]
Parts = Callable[[float], dict[str, dict[str, torch.Tensor]]]

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
def test_mutated_manifests_are_refused_with_a_message(
    unchanged: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them with a checksum that agrees with what they say: whoever forges one can compute it."""
    monkeypatch.setattr("hekaton.checkpoint.disk.manifest._digest_of", lambda content: "agreed")
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


FIELDS: list[tuple[str, list[Any], str]] = [
    ("step", ["1", 1.0, True, None, [], -1, 2**70], "step"),
    ("good", [1, "true", None], "good"),
    ("saved_at", [0, None, "\ud800"], "saved_at"),
    ("processes", ["2", None, -1], "processes"),
    ("versions", [[], None, {"torch": 2}, {"torch": "\ud800"}], "versions"),
    ("parts", ["model", None, [1], ["\udfff"], {}], "parts"),
    ("describe", [[], None, {"model": 1}, {"layout": [1]}, {"config": "x"}, {"config": {"model": []}},
                  {"config": {"model": {"overrides": 3}}}, {"config": None},
                  {"identity": ["data"]}, {"facts": "none"}], "describe"),
    ("info", [[], None, 5], "info"),
    ("files", [[], None, {"x": 1}, {"x": {}}, {"x": {"size": "1", "xxh3_128": ""}},
               {"x": {"size": 1, "xxh3_128": 5}}, {"x": {"size": -1, "xxh3_128": ""}},
               {"x": {"size": 1, "md5": ""}}], "file|checksum"),
    ("tensors", [[], None, {"x": 1}, {"x": {"dtype": "float32"}}, {"x": {"dtype": 1, "shape": [], "chunks": []}},
                 {"x": {"dtype": "float32", "shape": [-1], "chunks": []}},
                 {"x": {"dtype": "float32", "shape": [2**62, 4], "chunks": []}},
                 {"x": {"dtype": "float32", "shape": [True], "chunks": []}},
                 {"x": {"dtype": "float32", "shape": [1] * 65, "chunks": []}},
                 {"x": {"dtype": "float32", "shape": [2], "chunks": [["a", 0, 1, [1], [2]]]}},
                 {"x": {"dtype": "float32", "shape": [2], "chunks": [["a", 0, 1, [], [2]]]}},
                 {"x": {"dtype": "float32", "shape": [2], "chunks": [[1, 0, 1, [0], [2]]]}},
                 {"x": {"dtype": "hub", "shape": [0], "chunks": []}}], "tensor|describe|dtype|within"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "values", "said"), FIELDS, ids=[field for field, *_ in FIELDS])
@pytest.mark.parametrize("where", ["disk"], indirect=True)
def test_a_field_of_another_type_is_named_by_all_that_read_manifests(
    field: str,
    values: list[Any],
    said: str,
    folder: Path,
    manager: Make,
    parts: Parts,
    signed: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    manager().save(1, parts(1.0), {})
    step = folder / "step-1"
    honest = (step / "manifest.json").read_bytes()
    for value in values:
        (step / "manifest.json").write_bytes(honest)
        signed(step, **{field: value})
        with pytest.raises(CheckpointError, match=rf"step-1: manifest\.json .*({said})"):
            manager().load(parts(0.0))
        for words in (["ls", folder], ["ls", folder, "--json"], ["verify", folder], ["show", step]):
            assert main(["checkpoint", *map(str, words)]) in (0, 1, 2), words
        assert main(["convert", "to-torch", str(step), str(folder / "out.pt")]) == 2
        assert not (folder / "out.pt").exists()


@pytest.mark.parametrize("where", ["disk"], indirect=True)
def test_a_configuration_that_is_no_toml_cannot_be_shown(
    folder: Path, manager: Make, parts: Parts, capsys: pytest.CaptureFixture[str]
) -> None:
    manager(describe={"config": {"model": {"name": None}}}).save(1, parts(1.0), {})
    assert main(["checkpoint", "show", str(folder)]) == 2
    assert "cannot show the configuration in" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["disk"], indirect=True)
def test_tensors_beyond_the_end_of_their_file_or_stored_in_part_are_refused(
    folder: Path, manager: Make, parts: Parts, signed: Callable[..., None]
) -> None:
    manager().save(1, parts(1.0), {})
    step = folder / "step-1"
    content = json.loads((step / "manifest.json").read_text())
    size = content["files"]["__0_0.distcp"]["size"]
    (chunk,) = content["tensors"]["norm.weight"]["chunks"]
    forged = {
        f"expects {chunk[1] + size:,} bytes in __0_0.distcp, which has {size:,}": [
            [*chunk[:2], size, *chunk[3:]]
        ],
        "not all of 'norm.weight' is stored": [],
        "points to 'manifest.json', not a file of the step": [["manifest.json", *chunk[1:]]],
        "__0_0.distcp holds another tensor than it should": [[*chunk[:3], [0], [2]], [*chunk[:3], [2], [2]]],
        "__0_0.distcp does not hold a tensor where one should be": [[chunk[0], chunk[1] + 1, *chunk[2:]]],
    }
    for said, chunks in forged.items():
        tensors = {
            **content["tensors"],
            "norm.weight": {**content["tensors"]["norm.weight"], "chunks": chunks},
        }
        signed(step, tensors=tensors)
        with pytest.raises(CheckpointError) as error:
            manager().load(parts(0.0))
        assert said in str(error.value)


@pytest.mark.parametrize(
    "info",
    [
        {"optimizer": None},
        {"optimizer": []},
        {"optimizer": {"values": {}}},
        {"optimizer": {"values": [], "unstarted": {}}},
        {"optimizer": {"values": {"nodot": 1}, "unstarted": {}}},
        {"optimizer": {"values": {"a.b": [1]}, "unstarted": {}}},
        {"lr_scheduler": None},
        {"lr_scheduler": {}},
        {"lr_scheduler": {"steps_done": "3"}},
        {"lr_scheduler": {"steps_done": -3}},
        {"data_loader": None},
        {"data_loader": {"seed": [1]}},
        {"bad_steps": None},
        {"bad_steps": {"in_a_row": 1, "furthest": -1, "equal_at": 0, "losses": []}},
        {"bad_steps": {"in_a_row": True, "furthest": 1, "equal_at": 0, "losses": []}},
        {"bad_steps": {"in_a_row": 1, "furthest": 1, "equal_at": 0, "losses": {}}},
        {"bad_steps": {"in_a_row": 1, "furthest": 1, "equal_at": 0, "losses": [float("nan")]}},
    ],
)
def test_what_a_run_kept_beside_its_tensors_is_checked_before_it_is_used(info: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not what a run saves"):
        check_info(info)


def test_what_a_run_saves_is_accepted() -> None:
    model = torch.nn.Linear(2, 2)
    from hekaton.checkpoint.tensors.state import optimizer_state

    _, rest = optimizer_state([model], [torch.optim.AdamW(model.parameters())])
    data = {"documents": "x", "seed": 1, "packing": "on"}
    info = {"optimizer": rest, "lr_scheduler": {"steps_done": 3}, "data_loader": data}
    check_info(json.loads(json.dumps(info)))
