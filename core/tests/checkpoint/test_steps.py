"""What a save leaves on the disk, what a load takes from it, which steps stay."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

import hekaton
from hekaton.checkpoint import CheckpointManager
from hekaton.checkpoint.disk.folders import Folder
from hekaton.errors import CheckpointError

Make = Callable[..., CheckpointManager]
Parts = Callable[[float], dict[str, dict[str, torch.Tensor]]]
Messages = Callable[[], list[str]]


def values_of(parts: dict[str, dict[str, torch.Tensor]]) -> set[float]:
    return {
        value for part in parts.values() for tensor in part.values() for value in tensor.flatten().tolist()
    }


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def resumed(make: Make, parts: Parts, **arguments: Any) -> tuple[int, set[float]]:
    """The step that a fresh process loads, and the values that it then has."""
    into = parts(-1.0)
    loaded = make().load(into, **arguments)
    assert loaded is not None
    return loaded.step, values_of(into)


def test_a_step_holds_dcp_files_and_a_manifest_that_names_them(
    folder: Path, where: Folder, manager: Make, parts: Parts
) -> None:
    assert manager().save(10, parts(1.5), {"tokens": 123}) == where / "step-10"
    path = folder / "step-10"
    assert steps_in(path) == [".metadata", "__0_0.distcp", "manifest.json"]
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 10
    assert manifest["info"] == {"tokens": 123}
    assert manifest["describe"]["flavor"] == "8B"
    assert manifest["describe"]["config"] == {"training": {"steps": 30}}
    assert manifest["versions"] == {
        "hekaton": hekaton.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    assert manifest["files"] == {
        name: {
            "size": (path / name).stat().st_size,
            "xxh3_128": xxhash.xxh3_128_hexdigest((path / name).read_bytes()),
        }
        for name in (".metadata", "__0_0.distcp")
    }


def test_checksums_of_large_and_odd_tensors_are_those_of_the_files(folder: Path, manager: Make) -> None:
    torch.manual_seed(0)
    tensors = {
        "large": torch.randn(5 << 20),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(3, dtype=torch.int64),
        "view": torch.randn(64, 64).t()[3:],
        "half": torch.randn(7).bfloat16(),
    }
    manager().save(1, {"model": tensors}, {})
    path = folder / "step-1"
    written = json.loads((path / "manifest.json").read_text())["files"]["__0_0.distcp"]
    assert written["xxh3_128"] == xxhash.xxh3_128_hexdigest((path / "__0_0.distcp").read_bytes())
    into = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    assert manager().load({"model": into})
    for name, tensor in tensors.items():
        assert torch.equal(into[name], tensor), name


def test_torch_converts_a_step_with_flat_names(folder: Path, manager: Make, parts: Parts) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    manager().save(10, parts(1.5), {})
    dcp_to_torch_save(folder / "step-10", folder / "out.pt")
    state = torch.load(folder / "out.pt", weights_only=True)
    assert set(state) == {"layers.0.wq.weight", "norm.weight", "optimizer.layers.0.wq.weight.step"}
    assert torch.equal(state["layers.0.wq.weight"], torch.full((8, 4), 1.5))


def test_metadata_does_not_tell_where_the_folder_was(folder: Path, manager: Make, parts: Parts) -> None:
    manager().save(10, parts(1.5), {})
    assert str(folder).encode() not in (folder / "step-10" / ".metadata").read_bytes()
    moved = folder.parent.parent / "elsewhere"
    folder.rename(moved)
    into = parts(0.0)
    assert CheckpointManager(moved, describe={}).load(into)
    assert values_of(into) == {1.5}


def test_the_newest_step_is_loaded_in_place_with_its_info(
    folder: Path, where: Folder, manager: Make, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="hekaton")
    first = manager()
    for step in (5, 10, 100):
        first.save(step, parts(float(step)), {"cursor": [step, None, "x"]})
    into = parts(0.0)
    weight = into["model"]["norm.weight"]
    loaded = manager().load(into)
    assert loaded is not None
    assert loaded.step == 100
    assert loaded.folder == where / "step-100"
    assert loaded.info == {"cursor": [100, None, "x"]}
    assert loaded.describe["model"] == "llama3"
    assert loaded.parts == {"model", "optimizer"}
    assert values_of(into) == {100.0}
    assert into["model"]["norm.weight"] is weight
    assert resumed(manager, parts, step=10) == (10, {10.0})
    lines = [record.getMessage() for record in caplog.records]
    saved = re.escape(f"saved {where}/step-5: ") + r"\d\.\d{3} GB in \d+\.\d\d s, \d+\.\d\d GB/s"
    assert re.fullmatch(saved, lines[0])
    read = re.escape(f"loaded {where}/step-100: ") + r"\d\.\d{3} GB in \d+\.\d\d s"
    assert re.fullmatch(read, lines[3])


def test_any_json_value_is_restored(manager: Make, parts: Parts) -> None:
    info = {
        "by rank": {10: "a", 2: "b"},
        "limits": (float("inf"), 1e-300, -0.0),
        "text": "žluť\n",
        "no": None,
    }
    manager().save(1, parts(1.0), info)
    loaded = manager().load(parts(0.0))
    assert loaded is not None
    assert loaded.info == json.loads(json.dumps(info))


def test_no_folder_and_an_empty_one_are_no_checkpoint(folder: Path, manager: Make, parts: Parts) -> None:
    assert manager().load(parts(0.0)) is None
    (folder / "superseded").mkdir(parents=True)
    (folder / "notes.txt").write_text("step-9")
    assert manager().load(parts(0.0)) is None


def test_a_step_that_is_not_there_names_those_that_are(where: Folder, manager: Make, parts: Parts) -> None:
    with pytest.raises(CheckpointError) as missing:
        manager().load(parts(0.0), step=7)
    assert str(missing.value) == f"there is no checkpoint step-7 in {where}\n  there is no other"
    saver = manager()
    saver.save(10, parts(1.0), {})
    saver.save(20, parts(1.0), {})
    with pytest.raises(CheckpointError) as missing:
        manager().load(parts(0.0), step=7)
    assert str(missing.value) == f"there is no checkpoint step-7 in {where}\n  available: 10, 20"


def test_a_part_that_is_not_requested_is_not_read_and_is_named(
    manager: Make, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="hekaton")
    manager().save(1, parts(2.0), {})
    into = {"model": parts(0.0)["model"]}
    loaded = manager().load(into)
    assert loaded is not None
    assert loaded.parts == {"model"}
    assert values_of(into) == {2.0}
    assert caplog.records[-1].getMessage().endswith("; not loaded: optimizer")


def test_an_optional_part_that_does_not_fit_is_left_out(
    where: Folder, manager: Make, parts: Parts, messages: Messages
) -> None:
    states = {"rank_0.cpu": torch.ones(3), "rank_1.cpu": torch.ones(3)}
    manager().save(1, parts(2.0) | {"rng": states}, {})
    mine = {"rank_0.cpu": torch.zeros(3)}
    into = parts(0.0) | {"rng": mine}
    loaded = manager().load(into, optional=("rng",))
    assert loaded is not None
    assert loaded.parts == {"model", "optimizer"}
    assert mine["rank_0.cpu"].tolist() == [0, 0, 0]
    assert values_of(parts(0.0) | {"model": into["model"]}) >= {2.0}
    assert messages() == [
        f"{where}/step-1: 'rng', saved by 1 process(es), does not fit the 1 of this run; not restored"
    ]
    both = {name: torch.zeros(3) for name in states}
    loaded = manager().load(parts(0.0) | {"rng": both}, optional=("rng",))
    assert loaded is not None
    assert "rng" in loaded.parts
    assert both["rank_1.cpu"].tolist() == [1, 1, 1]


def test_tensors_of_another_dtype_are_converted_with_a_notice(
    where: Folder, manager: Make, messages: Messages
) -> None:
    manager().save(1, {"model": {"w": torch.full((2,), 1.5)}}, {})
    into = {"w": torch.zeros(2, dtype=torch.bfloat16)}
    manager().load({"model": into})
    assert into["w"].tolist() == [1.5, 1.5]
    assert messages() == [
        f"{where}/step-1: 1 tensor(s) are of another dtype and are converted (w: float32 to bfloat16, ...)"
    ]


def test_old_steps_are_removed_once_the_new_one_is_whole(folder: Path, manager: Make, parts: Parts) -> None:
    saver = manager(keep_latest_k=2)
    for step in (2, 10, 30):
        saver.save(step, parts(1.0), {})
    assert steps_in(folder) == ["step-10", "step-30"]
    (folder / "step-5").mkdir()  # what an interrupted removal leaves
    saver.save(40, parts(1.0), {})
    assert steps_in(folder) == ["step-30", "step-40"]


def test_all_steps_stay_by_default(folder: Path, manager: Make, parts: Parts) -> None:
    saver = manager()
    for step in range(1, 6):
        saver.save(step, parts(1.0), {})
    assert len(steps_in(folder)) == 5


def test_a_step_that_is_not_good_never_deletes_a_good_one_and_is_skipped(
    folder: Path, where: Folder, manager: Make, parts: Parts, messages: Messages
) -> None:
    saver = manager(keep_latest_k=1)
    saver.save(1, parts(1.0), {})
    saver.save(2, parts(2.0), {}, good=False)
    saver.save(3, parts(3.0), {}, good=False)
    assert steps_in(folder) == ["step-1", "step-3"]
    assert resumed(manager, parts) == (1, {1.0})
    assert messages() == [f"skipping checkpoint step-3 in {where}: its loss or its weights were not finite"]
    assert resumed(manager, parts, step=3) == (3, {3.0})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
def test_a_step_with_broken_weights_is_not_good(
    value: str,
    dtype: torch.dtype,
    folder: Path,
    manager: Make,
    parts: Parts,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="hekaton")
    saver = manager(keep_latest_k=1)
    weight = torch.zeros(1000).to(dtype)
    saver.save(1, parts(1.0) | {"model": parts(1.0)["model"] | {"extra": weight}}, {})
    weight.view(torch.uint8 if dtype.itemsize == 1 else dtype)[700] = (
        torch.tensor(float(value)).to(dtype).view(torch.uint8).item() if dtype.itemsize == 1 else float(value)
    )
    saver.save(2, parts(2.0) | {"model": parts(2.0)["model"] | {"extra": weight}}, {})
    assert caplog.records[-1].getMessage().endswith(", marked as not good: extra is not finite")
    assert steps_in(folder) == ["step-1", "step-2"]
    into = parts(0.0)["model"] | {"extra": torch.zeros(1000).to(dtype)}
    loaded = manager().load({"model": into})
    assert loaded is not None
    assert loaded.step == 1


def test_large_weights_are_not_broken_ones(folder: Path, manager: Make) -> None:
    """Their sum is infinite in their own precision, and in float32."""
    large = {"half": torch.full((100,), 60_000.0).half(), "single": torch.full((100,), 3e38)}
    manager().save(1, {"model": large}, {})
    assert json.loads((folder / "step-1" / "manifest.json").read_text())["good"] is True


def test_saving_a_step_again_replaces_it(folder: Path, manager: Make, parts: Parts) -> None:
    saver = manager()
    saver.save(1, parts(1.0), {})
    saver.save(1, parts(2.0), {"again": True})
    assert steps_in(folder) == ["step-1"]
    assert resumed(manager, parts) == (1, {2.0})


def test_an_interrupted_replacement_is_undone(
    folder: Path, where: Folder, manager: Make, parts: Parts, messages: Messages
) -> None:
    manager().save(1, parts(1.0), {})
    (folder / "step-1").rename(folder / "step-1.replaced")
    (folder / "step-1").mkdir()
    (folder / "step-1" / "__0_0.distcp").write_bytes(b"half")
    assert resumed(manager, parts) == (1, {1.0})
    assert steps_in(folder) == ["step-1", "step-1.replaced"], "looking changes nothing"
    saver = manager()
    saver.load(parts(0.0))
    saver.save(2, parts(2.0), {})
    assert messages() == [f"{where}/step-1: restored, since the save that was to replace it was interrupted"]
    assert steps_in(folder) == ["step-1", "step-2"]
    assert resumed(manager, parts, step=1) == (1, {1.0})


def test_an_unfinished_folder_is_cleared_before_a_save(folder: Path, manager: Make, parts: Parts) -> None:
    (folder / "step-3").mkdir(parents=True)
    (folder / "step-3" / "__9_0.distcp").write_bytes(b"half")
    manager().save(3, parts(3.0), {})
    assert steps_in(folder / "step-3") == [".metadata", "__0_0.distcp", "manifest.json"]
    assert resumed(manager, parts) == (3, {3.0})


def test_superseded_steps_are_not_resumed_from(
    folder: Path, where: Folder, manager: Make, parts: Parts, messages: Messages
) -> None:
    before = manager()
    for step in (10, 20, 30):
        before.save(step, parts(float(step)), {})
    after = manager()
    assert after.load(parts(0.0), step=10)
    assert steps_in(folder) == ["step-10", "step-20", "step-30"]
    after.save(20, parts(-20.0), {})
    assert messages() == [
        f"step-20, step-30: newer than step 10, which this run resumes from; moved to {where}/superseded"
    ]
    assert steps_in(folder) == ["step-10", "step-20", "superseded"]
    assert resumed(manager, parts) == (20, {-20.0})
    into = parts(0.0)
    assert CheckpointManager(folder / "superseded", describe={}).load(into, step=30)
    assert values_of(into) == {30.0}


def test_exports_of_superseded_steps_are_moved_with_them(
    tmp_path: Path, parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    before = CheckpointManager(tmp_path, describe={})
    for step in (1, 2, 3):
        before.save(step, parts(float(step)), {})
    # Of step 4 the export alone is left.
    for name in ("step-1-hf", "step-3-hf", "step-3-hf.partial", "step-4-hf", "step-3hf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    after = CheckpointManager(tmp_path, describe={})
    assert after.load(parts(0.0), step=2)
    after.save(3, parts(-3.0), {})
    moved = ["step-3", "step-3-hf", "step-3-hf.partial", "step-4-hf"]
    assert steps_in(tmp_path / "superseded") == moved
    assert (tmp_path / "superseded/step-4-hf/config.json").read_text() == "step-4-hf"
    assert steps_in(tmp_path) == ["step-1", "step-1-hf", "step-2", "step-3", "step-3hf", "superseded"]
    assert all(name in caplog.text for name in moved)


def test_a_model_tensor_that_would_look_like_another_part_is_refused(manager: Make) -> None:
    state = {"model": {"optimizer.weight": torch.ones(1)}, "optimizer": {"step": torch.ones(1)}}
    with pytest.raises(
        CheckpointError, match=r"'optimizer\.weight', and checkpoints keep the optimizer under"
    ):
        manager().save(1, state, {})


def test_torchs_checkpoint_package_is_imported_only_when_needed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hekaton.checkpoint import CheckpointManager; from hekaton.checkpoint.tensors import state; "
        f"assert CheckpointManager(Path({str(tmp_path)!r}), describe={{}}).load({{}}) is None; "
        "assert 'torch.distributed.checkpoint' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
