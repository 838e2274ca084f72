"""Run files written for torchtitan 0.2."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli

from hekaton.config.base import dotted, walk
from hekaton.config.job import JobConfig
from hekaton.config.sources import Values

DEFAULTS = (Path(__file__).parent / "torchtitan_defaults.toml").read_text()

WITHOUT_DEFAULT = {
    "job.save_config_file": '"resolved.toml"',
    "model.tokenizer_path": '"tokenizer.json"',
    "lr_scheduler.total_steps": "20_000",
    "lr_scheduler.decay_ratio": "0.5",
    "training.dataset_path": '"data"',
    "training.dataloader.prefetch_factor": "2",
    "parallelism.module_fqns_per_model_part": '[["tok_embeddings"], ["norm", "output"]]',
    "parallelism.pipeline_parallel_layers_per_stage": "2",
    "quantize.linear.float8.recipe_name": '"rowwise"',
    "fault_tolerance.semi_sync_method": '"diloco"',
    "checkpoint.initial_load_path": '"there"',
    "validation.dataset_path": '"data"',
    "validation.dataloader.prefetch_factor": "2",
    "debug.seed": "42",
}
ONLY_A_FLAG = {"job.config_file"}


def test_every_field_at_its_default_is_accepted(load_run):
    loaded = load_run(DEFAULTS)
    assert loaded.notices == (
        "checkpoint.last_save_model_only (run.toml, line 97): no effect: checkpoint.enable is false",
        "validation.dataset (run.toml, line 168), validation.dataloader.pin_memory (run.toml, line 177): "
        "no effect: validation.enable is false",
    )
    assert loaded.config.training.dataset == "c4_test"
    assert loaded.config.model.hf_assets_path == "./tests/assets/tokenizer"


def test_the_defaults_are_those_of_the_core_but_for_a_few():
    values = Values()
    values.merge(tomli.loads(DEFAULTS), lambda path: lambda: "")
    fields = {path: field.get_default(call_default_factory=True) for path, field, _ in walk(JobConfig)}
    different = {dotted(path) for path, value in values.values.items() if fields[path] != value}
    assert different == {
        "training.dataset",
        "validation.dataset",
        "model.hf_assets_path",
        "checkpoint.last_save_model_only",
        "training.dataloader.pin_memory",
        "validation.dataloader.pin_memory",
    }


@pytest.mark.parametrize("path", WITHOUT_DEFAULT)
def test_a_field_without_default_takes_a_value_of_its_type(load_run, path):
    section, _, name = path.rpartition(".")
    load_run(f"[{section}]\n{name} = {WITHOUT_DEFAULT[path]}\n")


def test_the_fields_without_default_are_all_there():
    known = {dotted(path) for path, _, _ in walk(JobConfig)}
    assert known >= WITHOUT_DEFAULT.keys() | ONLY_A_FLAG


@pytest.mark.parametrize(
    ("section", "line", "feature"),
    [
        ("optimizer", "early_step_in_backward = true", "stepping the optimizer within backward"),
        ("comm", 'mode = "local_tensor"', "running all ranks in one process"),
        ("memory_estimation", "enable = true", "estimating memory"),
        ("fault_tolerance", "enable = true", "fault tolerance"),
    ],
)
def test_what_is_not_available_is_refused(problems, section, line, feature):
    toml = f"[{section}]\n{line}\n"
    (message,) = problems(toml)
    first, origin, hint = message.splitlines()
    assert first == f"{section}.{line}: {feature} is not available yet"
    assert origin == "  from: run.toml, line 2"
    assert hint.startswith("  leave it at ")


def test_a_converter_that_needs_a_plugin(problems, monkeypatch):
    monkeypatch.setattr("hekaton.plugins.packages._is_installed", lambda distribution: False)
    (message,) = problems('[model]\nconverters = ["quantize.linear.float8"]\n')
    assert message.startswith(
        "unknown converter 'quantize.linear.float8' (model.converters)\n  from: run.toml, line 2\n"
        "  'quantize.linear.float8' comes with hekaton-float8: pip install hekaton-float8\n"
    )


def test_a_converter_of_an_earlier_name(problems, load_run, plugin_file):
    # "float8" is the name in the file that torchtitan publishes for 405B.
    (message,) = problems('[model]\nconverters = ["halves", "float8"]\n')
    assert message.startswith(
        "unknown converter 'float8' (model.converters)\n  from: run.toml, line 2\n"
        "  'float8' is called 'quantize.linear.float8' now\n"
    )
    (message,) = problems('[float8]\nfilter_fqns = ["output"]\n')
    assert message.startswith(
        "unknown section [float8]\n  from: run.toml, line 2\n  [float8] is called [quantize.linear.float8] now\n"
    )
    other = Path("float8_plugin.py")
    other.write_text(
        plugin_file.read_text().split("class HalvesSection")[0].rpartition("@dataclass")[0] + FLOAT8
    )
    loaded = load_run('[model]\nconverters = ["halves", "float8"]\n', "--plugins.load", str(other))
    assert loaded.config.model.converters == ["halves", "quantize.linear.float8"]
    assert (
        "model.converters: 'float8' is called 'quantize.linear.float8' now (run.toml, line 2)"
        in loaded.notices
    )


FLOAT8 = """

@hookimpl
def hekaton_converters():
    return [Converter("quantize.linear.float8", build=Ref("float8_plugin:nothing"))]
"""


DEBUG_MODEL = """\
[job]
dump_folder = "./outputs"
description = "Llama 3 debug training"
print_config = false

[profiling]
enable_profiling = false
save_traces_folder = "profile_trace"
profile_freq = 10
enable_memory_snapshot = false

[metrics]
log_freq = 1
disable_color_printing = false
enable_tensorboard = false
save_tb_folder = "tb"
enable_wandb = false

[model]
name = "llama3"
flavor = "debugmodel"
hf_assets_path = "./tests/assets/tokenizer"
# converters = ["float8"]

[optimizer]
name = "AdamW"
lr = 8e-4
eps = 1e-8

[lr_scheduler]
warmup_steps = 2
decay_ratio = 0.8
decay_type = "linear"
min_lr_factor = 0.0

[training]
local_batch_size = 8
seq_len = 2048
max_norm = 1.0  # grad norm clipping
steps = 10
dataset = "c4_test"

[parallelism]
data_parallel_replicate_degree = 1
data_parallel_shard_degree = -1
fsdp_reshard_after_forward = "default"
tensor_parallel_degree = 1
enable_async_tensor_parallel = false
pipeline_parallel_degree = 1
context_parallel_degree = 1

[checkpoint]
enable = false
folder = "checkpoint"
interval = 10
last_save_model_only = false
export_dtype = "float32"
async_mode = "disabled"

[activation_checkpoint]
mode = "selective"
selective_ac_option = "2"

[compile]
enable = false
components = ["model", "loss"]

[quantize.linear.float8]
enable_fsdp_float8_all_gather = false
precompute_float8_dynamic_scale_for_fsdp = false
filter_fqns = ["output"]

[validation]
enable = false
dataset = "c4_validation"
freq = 5
steps = 10
"""

LLAMA_8B = """\
[job]
dump_folder = "./outputs"

[profiling]
enable_profiling = true
save_traces_folder = "profile_trace"
profile_freq = 100

[metrics]
log_freq = 10
enable_tensorboard = true
save_tb_folder = "tb"

[model]
name = "llama3"
flavor = "8B"
tokenizer_path = "./assets/hf/Llama-3.1-8B"

[optimizer]
name = "AdamW"
lr = 3e-4

[training]
local_batch_size = 1
seq_len = 8192
steps = 1000
dataset = "c4"

[checkpoint]
enable = true
interval = 500
exclude_from_loading = ["lr_scheduler", "dataloader"]

[activation_checkpoint]
mode = "full"
"""

LLAMA_405B = """\
[model]
name = "llama3"
flavor = "405B"
converters = ["quantize.linear.float8"]

[training]
dataset = "c4"

[checkpoint]
enable = true
async_mode = "async"

[activation_checkpoint]
mode = "selective"
selective_ac_option = "op"

[quantize.linear.float8]
enable_fsdp_float8_all_gather = true
filter_fqns = ["output"]
"""


def test_a_debug_run_loads(load_run):
    loaded = load_run(DEBUG_MODEL)
    assert [notice.partition(":")[0] for notice in loaded.notices] == [
        "profiling.save_traces_folder (run.toml, line 8)",
        "checkpoint.interval (run.toml, line 55)",
        "validation.dataset (run.toml, line 75), validation.freq (run.toml, line 76), validation.steps "
        "(run.toml, line 77)",
        "quantize.linear.float8.filter_fqns (run.toml, line 71)",
    ]
    assert loaded.config.lr_scheduler.decay_ratio == 0.8


def test_an_8b_run_loads(load_run):
    loaded = load_run(LLAMA_8B)
    assert loaded.notices == (
        "model.tokenizer_path is now model.hf_assets_path (run.toml, line 17); its value is used there",
    )
    assert loaded.config.model.hf_assets_path == "./assets/hf/Llama-3.1-8B"
    assert loaded.config.checkpoint.exclude_from_loading == ["lr_scheduler", "data_loader"]
    assert (loaded.config.training.seq_len, loaded.config.optimizer.lr) == (8192, 3e-4)


def test_a_405b_run_is_refused_for_what_is_missing(problems):
    assert [problem.splitlines()[0] for problem in problems(LLAMA_405B)] == [
        "unknown converter 'quantize.linear.float8' (model.converters)",
    ]
