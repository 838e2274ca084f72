"""Runs of a model with experts: the shipped file trains, resumes exactly, and on another layout is the same run."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from hekaton.testing import run_command, run_processes

ROOT = Path(__file__).parents[1]
SCRIPT = Path(__file__).with_name("training_on_processes.py")
TINY = {
    "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "vocab_size": 264,
    "moe": {
        "n_experts": 8, "top_k": 2, "hidden_dim": 16, "bias_rate": 1e-2, "sequence_balance": 1e-2,
        "batch_balance": 1e-2,
    },
}  # fmt: skip
FLAGS = [
    "--model.tokenizer", "byte", "--model.overrides", json.dumps(TINY), "--training.seq_len", "32",
    "--training.local_batch_size", "2", "--training.global_batch_size", "8", "--training.steps", "8",
    "--lr_scheduler.warmup_steps", "2", "--lr_scheduler.total_steps", "8", "--optimizer.lr", "1e-2",
    "--metrics.no-enable_tensorboard",
]  # fmt: skip


def train(folder: Path, name: str, *flags: str, processes: int = 1) -> dict:
    """What a run of the shipped file wrote down."""
    folder.mkdir(exist_ok=True)
    result = folder / f"{name}.pt"
    run_processes(
        SCRIPT, "train", processes=processes, timeout=100, result=str(result),
        config=str(ROOT / "model_zoo/qwen3/train_configs/debug_model_moe.toml"),
        flags=[*FLAGS, "--job.dump_folder", str(folder / "run"), *flags],
    )  # fmt: skip
    return torch.load(result, weights_only=True)


def test_the_loss_falls_and_resuming_is_exact_on_one_process_and_close_on_two(tmp_path):
    whole = train(tmp_path / "whole", "whole")
    assert whole["losses"][8] < whole["losses"][1] - 0.3
    start = train(tmp_path, "start", "--training.steps", "4")
    (tmp_path / "run").rename(tmp_path / "saved")
    for name, flags, processes, within in [
        ("alone", [], 1, 0.0),
        ("ep2", ["--parallelism.expert_parallel_degree", "2"], 2, 1e-5),
    ]:
        shutil.copytree(tmp_path / "saved", tmp_path / name / "run")
        rest = train(tmp_path / name, name, *flags, processes=processes)
        assert list(rest["losses"]) == [5, 6, 7, 8]
        for step, loss in rest["losses"].items():
            assert loss == pytest.approx(whole["losses"][step], rel=within, abs=0)
    assert start["losses"][4] == whole["losses"][4]


@pytest.mark.slow
def test_published_weights_come_in_and_go_out_under_expert_parallel(tmp_path):
    """At a rate that moves no weight: experts, a tensor each in the files, are distributed and come together."""
    overrides = TINY | {"moe": {"n_experts": 8, "top_k": 2, "hidden_dim": 16}}
    theirs = Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            intermediate_size=768, vocab_size=264, num_experts=8, num_experts_per_tok=2, norm_topk_prob=True,
            moe_intermediate_size=16, router_aux_loss_coef=1e-3, initializer_range=0.2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )
    )  # fmt: skip
    theirs.save_pretrained(tmp_path / "hf")
    train(
        tmp_path, "ep", "--training.steps", "1", "--model.overrides", json.dumps(overrides),
        "--parallelism.expert_parallel_degree", "2", "--parallelism.expert_tensor_parallel_degree", "2",
        "--parallelism.tensor_parallel_degree", "2", "--optimizer.lr", "1e-30", "--optimizer.weight_decay", "0",
        "--checkpoint.initial_load_in_hf", "--checkpoint.initial_load_path", str(tmp_path / "hf"),
        "--checkpoint.last_save_model_only", "--checkpoint.last_save_in_hf", processes=4,
    )  # fmt: skip
    saved, exported = (
        {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
        for folder in (tmp_path / "hf", tmp_path / "run/checkpoint/step-1-hf")
    )
    assert exported.keys() == saved.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in saved.items())


def test_the_metrics_of_balance_are_logged(tmp_path):
    (tmp_path / "watch.py").write_text(
        "from hekaton.contributions import hookimpl\n"
        "@hookimpl\n"
        "def hekaton_step_ended(step, metrics, control):\n"
        "    print({name: number for name, number in metrics.items() if name.startswith(('moe', 'loss'))})\n"
    )
    done = run_command(
        "train", "--model.name", "qwen3", "--model.flavor", "debugmodel_moe", *FLAGS, "--training.steps", "1",
        "--debug.moe_force_load_balance", "--plugins.load", "./watch.py", "--lr_scheduler.warmup_steps", "0",
        "--training.mixed_precision_param", "float32", "--job.dump_folder", str(tmp_path), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    metrics = eval(done.stdout)  # what the plugin above printed
    assert metrics["moe/max_load/layers_0-0"] == metrics["moe/max_load/layers_1-1"] == 1.0
    assert metrics["moe/dropped_tokens"] == 0
    assert metrics["loss/batch_balance"] == pytest.approx(2.0)  # an even load, two layers
    parts = {name.removeprefix("loss/"): number for name, number in metrics.items() if name != "loss"}
    expected = parts["next_token"] + 1e-2 * (parts["batch_balance"] + parts["sequence_balance"])
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)
