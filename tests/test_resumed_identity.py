"""A resume is the same run, or says what is different: nothing, a notice, or a refusal that names the way on."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

from hekaton.building import model_config
from hekaton.checkpoint.disk.manifest import MANIFEST, Manifest
from hekaton.cli import main
from hekaton.config import AtResume, load
from hekaton.config.base import dotted, marks, walk
from hekaton.contributions import Model
from hekaton.errors import HekatonError
from hekaton.identity import code
from hekaton.meta import on_meta
from hekaton.spec import TrainSpec

RUN = """
[model]
name = "llama3"
flavor = "debugmodel"
tokenizer = "byte"
[model.overrides]
n_layers = 1
dim = 32
n_heads = 2
n_kv_heads = 2
hidden_dim = 64
[training]
seq_len = 32
local_batch_size = 1
mixed_precision_param = "float32"
[lr_scheduler]
warmup_steps = 0
total_steps = 100
[checkpoint]
enable = true
interval = 1
"""
CHANGES = {
    "optimizer.lr": ("0.0008", "0.001"),
    "optimizer.weight_decay": ("0.1", "0.2"),
    "optimizer.eps": ("1e-08", "1e-07"),
    "training.max_norm": ("1.0", "0.5"),
    "lr_scheduler.total_steps": ("100", "200"),
    "training.seq_len": ("32", "16"),
    "training.mixed_precision_param": ("float32", "float64"),
    "compile.backend": ("inductor", "eager"),
    "fault.nonfinite": ("abort", "skip"),
}
GROUPS = ["--optimizer.groups", '[{"match": "*norm*", "lr_factor": 0.5}]']
MODEL = ["--model.overrides.rope_theta", "20000.0", "--model.overrides.norm_eps", "0.001"]
OTHER = [*MODEL, "--model.overrides.n_heads", "4", "--model.overrides.n_kv_heads", "4"]
SCALING = '{"factor": 8.0}'


class Runs:
    """A run, and what its resumes say."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "run.toml"
        self.file.write_text(RUN)
        self.said: dict[str, str] = {}

    def train(self, name: str, steps: int, *flags: str, folder: str = "outputs") -> None:
        output = ["--job.dump_folder", str(self.folder / folder), "--training.steps", str(steps)]
        with contextlib.redirect_stderr(io.StringIO()) as console:
            status = main(["train", str(self.file), *output, *flags])
        self.said[name] = f"{status}\n{console.getvalue()}"

    def notices(self, name: str) -> list[str]:
        said = self.said[name]
        assert said.startswith("0\n"), said
        return [line.partition(" has changed: ")[2] for line in said.splitlines() if " has changed: " in line]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    runs = Runs(tmp_path_factory.mktemp("runs"))
    runs.train("first", 2)
    shutil.copytree(runs.folder / "outputs", runs.folder / "copy")
    nothing = ["--metrics.log_freq", "3", "--training.gc_freq", "7", "--checkpoint.keep_latest_k", "5"]
    runs.train("same", 3, *nothing, folder="copy")
    flags = [*GROUPS, *(word for name, (_, now) in CHANGES.items() for word in (f"--{name}", now))]
    version = code.version_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code, "version_of", lambda name: "0.0.9" if name == "hekaton" else version(name))
        patch.setenv("NCCL_ALGO", "Ring")
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "of another processor")
        patch.setattr(torch.backends.cudnn, "benchmark", True)
        runs.train("notices", 3, *flags)
    runs.train("refused", 4, *flags, *OTHER, "--optimizer.name", "Adam")
    accepted = "model.rope_theta,model.norm_eps,model.n_heads,model.n_kv_heads,optimizer.name"
    accept = ["--checkpoint.accept_changes", accepted]
    runs.train("accepted", 4, *flags, *OTHER, "--optimizer.name", "Adam", *accept)
    runs.train(
        "again", 5, *flags, *OTHER, "--optimizer.name", "Adam", "--model.overrides.rope_scaling", SCALING
    )
    wider = ["--model.overrides.hidden_dim", "96"]
    other = [*wider, "--model.overrides.rope_theta", "20000.0", "--optimizer.lr", "0.1", "--debug.seed", "7"]
    runs.train("other shapes", 4, *other, folder="copy")
    runs.train("more tensors", 4, "--model.converters", "lora", folder="copy")
    runs.train("other data", 4, "--debug.seed", "7", "--model.overrides.norm_eps", "0.001", folder="copy")
    runs.train("unknown name", 5, "--checkpoint.accept_changes", "model.rope_thetta")
    start = ["--checkpoint.initial_load_path", str(runs.folder / "copy" / "checkpoint" / "step-2")]
    runs.train(
        "afresh",
        4,
        "--optimizer.name",
        "Adam",
        "--checkpoint.exclude_from_loading",
        "optimizer",
        folder="copy",
    )
    runs.train("weights of other shapes", 1, *start, *wider, folder="wider")
    runs.train("other weights", 1, *start, *MODEL, "--optimizer.lr", "0.1", folder="started")
    for steps, weight in ((1, 1.0), (2, 3.0)):
        runs.train(f"mixture of {weight}", steps, *mixture(weight), folder="mixture")
    without_identity(runs.folder / "copy" / "checkpoint" / "step-2")
    runs.train("old", 3, "--optimizer.lr", "0.1", "--checkpoint.load_step", "2", folder="copy")
    return runs


def mixture(weight: float) -> list[str]:
    sources = [
        {"dataset": "python_stdlib", "name": name, "weight": share}
        for name, share in (("a", weight), ("b", 1.0))
    ]
    return ["--training.dataset", "mixture", "--mixture.sources", json.dumps(sources)]


def test_another_weight_of_a_mixture_is_reported(runs: Runs) -> None:
    assert runs.notices("mixture of 1.0") == []
    assert runs.notices("mixture of 3.0") == ["mixture.sources.0.weight: 1.0 until step 1, 3.0 from then on"]


def test_every_field_of_the_core_declares_what_a_change_means() -> None:
    undeclared = [
        dotted(path)
        for path, field, inside in walk(type(load([], []).config))
        if inside[-1].__module__.startswith("hekaton.config.sections")
        and not marks(field, AtResume)
        and "at_resume" not in vars(inside[-1])
    ]
    assert undeclared == []


@pytest.mark.parametrize("name", sorted(load([], []).plugins.all(Model)))
def test_every_field_of_a_model_changes_its_tensors_or_declares_what_a_change_means(name: str) -> None:
    """What is not declared is a notice: that is right only where another value does not fit the checkpoint."""
    loaded = load([], ["--model.name", name])
    spec, _ = model_config(loaded.config, loaded.plugins)
    settings = spec.flavors[max((one for one in spec.flavors if one in DEBUG), key=DEBUG.index)]
    before = shapes(spec, settings)
    unseen = [
        ".".join(path)
        for path, value in undeclared_fields(settings)
        if not any(other != before for other in changed_shapes(spec, settings, path, value))
    ]
    assert [one for one in unseen if one not in UNUSED.get(name, ())] == []


DEBUG = ("debugmodel", "debugmodel_moe")
"""Flavors, the one with most of a model's parts last."""
UNUSED = {"qwen3": ("hidden_dim",)}
"""Fields of a feed-forward layer that a model with experts in every layer does not have."""


def shapes(spec: TrainSpec, settings: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in on_meta(spec, settings).state_dict().items()}


def undeclared_fields(settings: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    hints = get_type_hints(type(settings), include_extras=True)
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if any(isinstance(mark, AtResume) for mark in getattr(hints[field.name], "__metadata__", ())):
            continue
        if dataclasses.is_dataclass(value):
            yield from undeclared_fields(value, (*at, field.name))
        else:
            yield (*at, field.name), value


def changed_shapes(
    spec: TrainSpec, settings: Any, path: tuple[str, ...], value: Any
) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors with other values of a field, of those that the model takes."""
    assert isinstance(value, int), f"{'.'.join(path)} is no number of anything: declare what a change means"
    for other in [not value] if isinstance(value, bool) else [value + 1, value * 2, value // 2]:
        with contextlib.suppress(HekatonError, ValueError):
            yield shapes(spec, replaced(settings, path, other))


def replaced(settings: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *rest = path
    inner = replaced(getattr(settings, name), tuple(rest), value) if rest else value
    return dataclasses.replace(settings, **{name: inner})


def without_identity(step: Path) -> None:
    """As a step was saved before runs kept their identity."""
    manifest = Manifest.from_json((step / MANIFEST).read_bytes())
    describe = {
        name: value for name, value in manifest.describe.items() if name not in ("identity", "history")
    }
    (step / MANIFEST).write_text(dataclasses.replace(manifest, describe=describe).to_json())


def test_steps_logging_and_folders_mean_nothing(runs: Runs) -> None:
    assert runs.notices("same") == []


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_reported_with_both_values_and_the_step(runs: Runs, name: str) -> None:
    was, now = CHANGES[name]
    assert f"{name}: {was} until step 2, {now} from then on" in runs.notices("notices")


def test_another_version_is_reported(runs: Runs) -> None:
    notices = runs.notices("notices")
    assert "version of hekaton: 0.1.0 until step 2, 0.0.9 from then on" in notices
    assert "environment.NCCL_ALGO: not set until step 2, Ring from then on" in notices
    assert "optimizer.groups.0.lr_factor: not set until step 2, 0.5 from then on" in notices
    assert "optimizer.groups.0.match: not set until step 2, *norm* from then on" in notices
    assert len(notices) == len(CHANGES) + 6


def test_another_machine_is_reported(runs: Runs) -> None:
    (processor,) = (
        one for one in runs.notices("notices") if one.startswith("instructions of the processor: ")
    )
    assert processor.endswith(" until step 2, of another processor from then on")
    setting = "torch.backends.cudnn.benchmark: false until step 2, true from then on"
    assert setting in runs.notices("notices")


def test_another_model_is_refused_with_the_ways_on(runs: Runs) -> None:
    said = runs.said["refused"]
    assert said.startswith("2\n")
    assert "error: step 3 is of another run: " in said
    for change in (
        "optimizer.name was AdamW and is now Adam", "model.rope_theta was 500000.0 and is now 20000.0",
        "model.norm_eps was 1e-05 and is now 0.001", "model.n_heads was 2 and is now 4",
    ):  # fmt: skip
        assert change in said
    assert (
        '  where it is intended: [checkpoint] accept_changes = ["optimizer.name", "model.n_heads", '
        '"model.n_kv_heads", "model.norm_eps", "model.rope_theta"]\n'
    ) in said
    assert '  or reset its state: [checkpoint] exclude_from_loading = ["optimizer"]' in said


def test_a_model_of_other_shapes_is_one_error_with_what_changed(runs: Runs) -> None:
    said, step = runs.said["other shapes"], runs.folder / "copy" / "checkpoint" / "step-3"
    assert said.startswith("2\n"), said
    assert " has changed: " not in said
    error = said.partition("error: ")[2].splitlines()
    assert error[0] == (
        f"the checkpoint {step} (llama3 debugmodel) does not fit this run (llama3 debugmodel): "
        "model.rope_theta was 500000.0 and is now 20000.0; model.hidden_dim was 64 and is now 96; "
        "debug.seed was not set and is now 7; optimizer.lr was 0.0008 and is now 0.1"
    )
    assert error[1].startswith("  of another shape (3): layers.0.feed_forward.w1.weight is (64, 32) in ")
    ways = ["  set back what changed of the model", "  or start a run of its own: another job.dump_folder"]
    assert error[2:] == ways

    said = runs.said["more tensors"]
    assert 'does not fit this run (llama3 debugmodel): model.converters was [] and is now ["lora"]' in said
    assert f'another job.dump_folder, and checkpoint.initial_load_path = "{step}"\n' in said

    said = runs.said["weights of other shapes"]
    assert "does not fit this run (llama3 debugmodel): model.hidden_dim was 64 and is now 96\n" in said
    assert said.endswith("  or start with new weights: without checkpoint.initial_load_path\n")


def test_other_data_and_another_model_are_said_at_once(runs: Runs) -> None:
    said = runs.said["other data"]
    assert "the run cannot continue with the data of the checkpoint: seed was" in said
    assert "; and step 3 is of another run: model.norm_eps was" in said
    assert "where it is intended: [checkpoint] accept_changes" in said


def test_an_accepted_change_is_a_notice_once(runs: Runs) -> None:
    assert "model.rope_theta: 500000.0 until step 3, 20000.0 from then on" in runs.notices("accepted")
    assert runs.said["again"].startswith("2\n")
    assert "model.rope_scaling was not set and is now RopeScaling\n" in runs.said["again"]
    assert "rope_theta" not in runs.said["again"]


def test_accepting_what_does_not_exist_is_an_error(runs: Runs) -> None:
    assert (
        "error: checkpoint.accept_changes names 'model.rope_thetta', which is no value"
        in runs.said["unknown name"]
    )
    assert "did you mean 'model.rope_theta'?" in runs.said["unknown name"]


def test_an_optimizer_that_is_reset_may_be_another(runs: Runs) -> None:
    assert runs.notices("afresh") == ["optimizer.name: AdamW until step 3, Adam from then on"]


def test_the_history_stays_with_the_run_and_its_steps(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    kept = json.loads((runs.folder / "outputs" / "history.json").read_text())
    assert {"step": 2, "field": "optimizer.lr", "was": 0.0008, "now": 0.001} in kept
    assert {"step": 3, "field": "model.norm_eps", "was": 1e-05, "now": 0.001} in kept
    assert main(["checkpoint", "show", str(runs.folder / "outputs")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["after", "2", "optimizer.lr", "0.0008", "0.001"] in lines
    assert ["after", "3", "optimizer.name", "AdamW", "Adam"] in lines
    assert main(["checkpoint", "show", str(runs.folder / "outputs"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["history"] == kept
    assert shown["identity"]["model.rope_theta"] == 20000.0


def test_other_weights_are_compared_in_what_they_mean(runs: Runs) -> None:
    said = runs.said["other weights"]
    assert said.startswith("0\n"), said
    assert "the weights were trained with model.rope_theta = 500000.0, and this run has 20000.0" in said
    assert "the weights were trained with model.norm_eps = 1e-05, and this run has 0.001" in said
    assert "optimizer.lr" not in said


def test_steps_without_identity_still_load(runs: Runs) -> None:
    assert runs.notices("old") == ["optimizer.lr: 0.0008 until step 2, 0.1 from then on"]
    assert "step 2 was saved before runs kept their identity" in runs.said["old"]
