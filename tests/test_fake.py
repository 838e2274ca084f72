"""One step as one of many ranks, on fake tensors."""

import json
import os
from pathlib import Path

import pytest

from hekaton.cli import main
from hekaton.testing import run_command

CONFIGS = Path(__file__).parents[1] / "model_zoo/llama3/train_configs"
SMALL = ["--training.seq_len", "64", "--training.local_batch_size", "4"]


def train(folder, config, world_size, *flags):
    return run_command(
        "train", str(CONFIGS / config), "--comm.mode", "fake_backend", *flags, cwd=folder, timeout=110,
        environment={**os.environ, "NGPU": str(world_size), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_layout_of_64_ranks_is_played(tmp_path):
    degrees = ["--parallelism.tensor_parallel_degree", "2", "--parallelism.context_parallel_degree", "2"]
    done = train(tmp_path, "debug_model.toml", 64, *SMALL, *degrees)
    assert done.returncode == 0, done.stderr
    assert "one step ran as rank 0 of 64 (pp 1, dp_replicate 1, dp_shard 16, cp 2, tp 2)" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_layout_is_refused(tmp_path):
    done = train(tmp_path, "debug_model.toml", 8, *SMALL, "--parallelism.tensor_parallel_degree", "3")
    assert done.returncode == 2
    assert "error: " in done.stderr
    assert "parallelism.tensor_parallel_degree = 3" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--parallelism.data_parallel_replicate_degree 2",
        "--parallelism.context_parallel_degree 2 --parallelism.context_parallel_strategy ring",
        "--parallelism.context_parallel_degree 2 --parallelism.context_parallel_strategy ulysses",
        "--parallelism.pipeline_parallel_degree 2 --parallelism.pipeline_parallel_schedule ZBVZeroBubble",
        "--parallelism.pipeline_parallel_degree 2 --parallelism.context_parallel_degree 2 "
        "--parallelism.tensor_parallel_degree 2",
        "--activation_checkpoint.mode selective --activation_checkpoint.selective_ac_option op",
        "--compile.enable --parallelism.tensor_parallel_degree 2",
        "--training.enable_cpu_offload",
        "--training.global_batch_size 64",
    ],
)
def test_every_kind_of_layout_goes_through(flags, tmp_path):
    done = train(tmp_path, "debug_model.toml", 8, *SMALL, *flags.split())
    assert done.returncode == 0, done.stderr
    assert "one step ran as rank 0 of 8" in done.stderr
    assert ("without dataset, tokenizer, compile" in done.stderr) == ("--compile.enable" in flags)


@pytest.mark.slow
def test_405b_on_512_ranks_is_explained(tmp_path):
    """With 12 of its 126 layers, which are all alike."""
    done = train(tmp_path, "llama3_405b.toml", 512, "--model.overrides", '{"n_layers": 12}')
    assert done.returncode == 0, done.stderr
    # By hand: of 4 bytes on 512 ranks 12 layers of 2 × 16,384² + 2 × 16,384 × 1,024 + 3 × 16,384 × 53,248, and
    # twice 128,256 × 16,384; the 25 norms on 64.
    assert "parameters           0.309 GiB" in done.stderr


TIED = """
[model]
name = "llama3"
flavor = "debugmodel"
tokenizer = "byte"

[model.overrides]
tie_embeddings = true

[training]
dataset = "python_stdlib"
seq_len = 64
local_batch_size = 4
steps = 1
"""


@pytest.fixture
def show(tmp_path, capsys):
    """``hekaton config show --parallel`` of a run in this process; :returns: status, stdout, stderr."""

    def of(*words, extra="", plugin=""):
        (tmp_path / "run.toml").write_text(TIED + extra)
        flags = []
        if plugin:
            path = tmp_path / f"{plugin.replace(' ', '_')}.py"
            path.write_text(BROKEN[plugin][0].replace("mine:", f"{path.stem}:"))
            flags = ["--plugins.load", str(path)]
        status = main(["config", "show", "--parallel", str(tmp_path / "run.toml"), *flags, *words])
        return status, *capsys.readouterr()

    return of


def test_a_tied_embedding_is_cut_by_tensor_parallel(show):
    status, out, _ = show("--world_size", "4", "--parallelism.tensor_parallel_degree", "2", "--json")
    assert status == 0
    # By hand: 2,048 × 256 once, 6 layers of 2 × 256 × 256 + 2 × 256 × 128 + 3 × 256 × 768 cut in two by tp,
    # the 13 norms whole, all of it cut in two by fsdp; 4 bytes each.
    cut = 2048 * 256 + 6 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 768)
    assert json.loads(out)["held"]["parameters"] == (cut // 4 + 13 * 256 // 2) * 4


def test_styles_that_place_a_tied_parameter_differently_are_refused(show):
    status, _, err = show(
        "--parallelism.tensor_parallel_degree", "2", extra='[parallelism.plan]\noutput = "replicate"\n'
    )
    assert status == 2
    assert err.startswith(
        "error: tok_embeddings.weight and output.weight are one tied parameter, and the tensor-parallel styles "
        "of their modules place it differently: cut along dim 0, and whole on every rank"
    )
    assert "give both modules styles that cut it alike" in err


BROKEN = {
    "an initialiser": (
        """
from hekaton.contributions import Model, Ref, hookimpl

def __getattr__(name):
    if name != "spec":
        raise AttributeError(name)
    from dataclasses import replace
    from hekaton.init import DepthScaled
    from hekaton_llama3.spec import train_spec
    init = lambda config: {**train_spec.init(config), "norm.weight": DepthScaled(1.0)}
    return replace(train_spec, name="mine", init=init)

@hookimpl
def hekaton_models():
    return [Model("mine", spec=Ref("mine:spec"))]
""",
        ["--model.name", "mine"],
        "DepthScaled needs a layer number in the parameter's name, not 'norm.weight'",
    ),
    "a schedule": (
        """
from hekaton.contributions import LRSchedule, Ref, hookimpl
from hekaton.errors import ConfigError

def build(section, settings, training_steps):
    raise ConfigError("no schedule for so few steps")

@hookimpl
def hekaton_lr_schedules():
    return [LRSchedule("mine", build=Ref("mine:build"))]
""",
        ["--lr_scheduler.name", "mine"],
        "no schedule for so few steps",
    ),
    "what a converter does after a step": (
        """
from hekaton.contributions import Converter, Ref, hookimpl
from hekaton.errors import ConfigError

class Broken:
    def convert(self, draft):
        return draft

    def after_step(self, model_parts):
        raise ConfigError("nothing to do for these parts")

def build(section, dims):
    return Broken()

@hookimpl
def hekaton_converters():
    return [Converter("mine", build=Ref("mine:build"))]
""",
        ["--model.converters", '["mine"]'],
        "nothing to do for these parts",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_breaks_in_a_first_step_breaks_here(what, show):
    _, flags, message = BROKEN[what]
    status, _, err = show("--world_size", "2", *flags, plugin=what)
    assert status == 2
    assert err.startswith(f"error: {message}")
