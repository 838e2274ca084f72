"""The three run files of torchtitan 0.2 for Flux load as they are, and every field does what it did or says so."""

import pytest

from hekaton.cli import main
from hekaton.config import load
from hekaton_flux.spec import flavors

COMMON = """
[job]
dump_folder = "./outputs"
custom_config_module = "torchtitan.models.flux.job_config"
[profiling]
enable_profiling = false
save_traces_folder = "profile_trace"
profile_freq = 10
enable_memory_snapshot = false
save_memory_snapshot_folder = "memory_snapshot"
[metrics]
log_freq = {log_freq}
disable_color_printing = false
enable_tensorboard = false
save_tb_folder = "tb"
enable_wandb = false
[model]
name = "flux"
flavor = "{flavor}"
[optimizer]
name = "AdamW"
lr = {lr}
eps = 1e-8
[lr_scheduler]
warmup_steps = {warmup}
decay_ratio = 0.0
[training]
local_batch_size = {rows}
max_norm = {norm}
steps = {steps}
dataset = "{dataset}"
classifier_free_guidance_prob = 0.447
img_size = 256
[encoder]
t5_encoder = "google/t5-v1_1-xxl"
clip_encoder = "openai/clip-vit-large-patch14"
max_t5_encoding_len = {length}
autoencoder_path = "assets/hf/FLUX.1-dev/ae.safetensors"
[parallelism]
data_parallel_replicate_degree = 1
data_parallel_shard_degree = -1
[activation_checkpoint]
mode = "full"
[checkpoint]
enable = false
folder = "checkpoint"
interval = {interval}
last_save_model_only = {model_only}
export_dtype = "float32"
async_mode = "disabled"
[validation]
enable = false
dataset = "coco-validation"
local_batch_size = {validated}
steps = {validation_steps}
freq = {freq}
enable_classifier_free_guidance = true
classifier_free_guidance_scale = 5.0
denoising_steps = {denoising}
save_img_count = {images}
save_img_folder = "img"
all_timesteps = false
"""
LONG = {
    "log_freq": 100, "lr": 1e-4, "warmup": 3_000, "norm": 1.0, "steps": 30_000, "dataset": "cc12m-wds", "interval": 1_000,
    "model_only": "true", "freq": 1_000, "denoising": 50, "images": 50,
}  # fmt: skip
FILES = {
    "flux-debug": {
        "log_freq": 1, "lr": 8e-4, "warmup": 1, "rows": 4, "norm": 2.0, "steps": 10, "dataset": "cc12m-test", "length": 256,
        "interval": 10, "model_only": "false", "validated": 8, "validation_steps": 48, "freq": 5, "denoising": 4, "images": 1,
    },
    "flux-dev": {**LONG, "rows": 32, "length": 512, "validated": 32, "validation_steps": 12},
    "flux-schnell": {**LONG, "rows": 64, "length": 256, "validated": 64, "validation_steps": 6},
}  # fmt: skip
INFERENCE = """
[inference]
save_img_folder = "inference_results"
prompts_path = "./torchtitan/models/flux/inference/prompts.txt"
local_batch_size = 2
"""


@pytest.fixture(params=FILES)
def file(request, tmp_path):
    """A file, its flavor and its values."""
    values = FILES[request.param]
    path = tmp_path / "run.toml"
    path.write_text(
        COMMON.format(flavor=request.param, **values) + (INFERENCE if request.param == "flux-debug" else "")
    )
    return path, request.param, values


def test_a_file_passes_on_the_machine_that_has_its_files(file, capsys):
    path, flavor, _ = file
    words = ["config", "check", str(path), "--comm.mode", "fake_backend", "--world_size", "8"]
    assert main(words) == 0, capsys.readouterr().err
    assert f"OK: flux {flavor}, 8 processes" in capsys.readouterr().out


def test_fields_take_effect_where_ours_are(file):
    path, flavor, values = file
    loaded = load([str(path)], [])
    section = loaded.config.section("flow_matching")
    assert section.image_size == 256
    assert section.text_dropout == 0.447
    assert section.text_encoder == "google/t5-v1_1-xxl"
    assert section.pooled_encoder == "openai/clip-vit-large-patch14"
    assert section.autoencoder == "assets/hf/FLUX.1-dev/ae.safetensors"
    assert section.text_length == values["length"]
    assert section.sample_steps == values["denoising"]
    assert section.sample_guidance == 5.0
    assert loaded.config.training.packing == "images"
    notices = "\n".join(loaded.notices)
    assert "validation.enable_classifier_free_guidance" in notices
    assert ("validation.save_img_count" in notices) == (values["images"] != 1)
    # Its models have these sizes, and dev no input for the scale.
    config = flavors[flavor]
    sizes = (1536, 12, 2, 2) if flavor == "flux-debug" else (3072, 24, 19, 38)
    assert (config.dim, config.n_heads, config.n_double_blocks, config.n_single_blocks) == sizes
    assert not config.guidance


def test_what_is_missing_here_is_named(file, tmp_path, capsys):
    path, *_ = file
    assert main(["config", "check", str(path)]) == 2
    assert "a dataset of tar shards needs dataset_path" in capsys.readouterr().err
    (tmp_path / "0.tar").write_bytes(b"")
    assert main(["config", "check", str(path), "--training.dataset_path", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "flow_matching.text_encoder = 'google/t5-v1_1-xxl' is no folder" in said
    assert "hf download google/t5-v1_1-xxl --local-dir FOLDER" in said
