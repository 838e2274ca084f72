"""Other tools read our checkpoints: torch's converter, and torchtune with what it makes of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hekaton.checkpoint import CheckpointManager
from hekaton.testing import run_command, run_processes
from hekaton_blocks import RopeScaling
from hekaton_llama3.model import Llama3, Llama3Config
from hekaton_llama3.spec import flavors

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = Path(__file__).with_name("other_programs.py")
PAGE = ROOT / "docs" / "how-to" / "resume-and-checkpoints.md"
DEBUG_MODEL = ROOT / "model_zoo" / "llama3" / "train_configs" / "debug_model.toml"

# The keys that torchtune 0.6.1 reads (torchtune.models.convert_weights), those of Meta's checkpoints.
META_KEYS = ("tok_embeddings.weight", "norm.weight", "output.weight")
META_KEYS_OF_A_LAYER = (
    "attention.wq.weight",
    "attention.wk.weight",
    "attention.wv.weight",
    "attention.wo.weight",
    "attention_norm.weight",
    "ffn_norm.weight",
    "feed_forward.w1.weight",
    "feed_forward.w2.weight",
    "feed_forward.w3.weight",
)


def meta_keys(layers: int) -> set[str]:
    return {*META_KEYS, *(f"layers.{i}.{key}" for i in range(layers) for key in META_KEYS_OF_A_LAYER)}


def blocks(language: str, word: str) -> list[str]:
    """The code blocks of the how-to in which a word occurs."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    return [block for block in found if word in block]


def as_the_how_to_says(step: Path, folder: Path) -> None:
    """Make ``out.pt`` and ``weights.pt`` of a step in ``folder``, with the how-to's own lines."""
    (command,) = re.findall(r"^python -m torch\.distributed.*$", PAGE.read_text(encoding="utf-8"), re.M)
    words = command.replace("outputs/checkpoint/step-50", str(step)).split()
    (script,) = blocks("python", "weights.pt")
    assert words[:2] == ["python", "-m"]
    run_processes(PROGRAMS, "run_module_and_script", processes=1, cwd=folder, module=words[2:], script=script)


def test_torch_converts_a_step_of_a_run_to_the_keys_of_meta(tmp_path: Path) -> None:
    flags = ["--training.steps", "1", "--training.seq_len", "64", "--training.local_batch_size", "1"]
    flags += ["--job.dump_folder", str(tmp_path), "--checkpoint.enable", "--metrics.no-enable_tensorboard"]
    done = run_command("train", str(DEBUG_MODEL), *flags, timeout=110)
    assert done.returncode == 0, done.stderr
    as_the_how_to_says(tmp_path / "checkpoint" / "step-1", tmp_path)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert weights.keys() == meta_keys(flavors["debugmodel"].n_layers)
    every = torch.load(tmp_path / "out.pt", weights_only=True)
    parts = ("optimizer.", "data_loader.", "rng.")
    assert {key for key in every if not key.startswith(parts)} == weights.keys()


CASES = {
    "llama3": (flavors["debugmodel"], {}),
    "llama3_1": (replace(flavors["debugmodel"], rope_scaling=RopeScaling(factor=8.0)), {"scale_factor": 8}),
    "llama3_2": (
        replace(flavors["debugmodel"], rope_scaling=RopeScaling(factor=32.0), tie_embeddings=True),
        {"scale_factor": 32},
    ),
}
"""torchtune's builder -> the same model of ours, and what else to tell the builder."""


def save_a_step(folder: Path, model: torch.nn.Module) -> Path:
    weights = dict(model.named_parameters())
    others = {"optimizer": {"norm.weight.exp_avg": torch.ones(3)}, "rng": {"rank_0.cpu": torch.ones(2)}}
    CheckpointManager(folder / "checkpoint", describe={}).save(7, {"model": weights, **others}, {})
    return folder / "checkpoint" / "step-7"


def random_model(config: Llama3Config) -> Llama3:
    torch.manual_seed(1)
    model = Llama3(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.05)
    return model


@pytest.mark.parametrize("builder", ["llama3", "llama3_2"])
def test_the_converted_file_holds_the_weights_bit_for_bit(builder: str, tmp_path: Path) -> None:
    model = random_model(replace(CASES[builder][0], n_layers=2))
    as_the_how_to_says(save_a_step(tmp_path, model), tmp_path)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    expected = model.state_dict()
    assert weights.keys() == expected.keys() == meta_keys(2)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def torchtune_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that sees the packages of this one, and torchtune.

    An environment of its own, for torchtune needs a torchao of its time.
    """
    folder = tmp_path_factory.mktemp("torchtune")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
    python = folder / "bin" / "python"
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "outer.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "torchtune==0.6.1", "torchao==0.10.0"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return python


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_torchtune_computes_the_same_logits(torchtune_python: Path, tmp_path: Path) -> None:
    expected, jobs = {}, {}
    for builder, (config, more) in CASES.items():
        folder = tmp_path / builder
        folder.mkdir()
        model = random_model(config).eval()
        as_the_how_to_says(save_a_step(folder, model), folder)
        tokens = torch.randint(config.vocab_size, (2, 300))
        torch.save(tokens, folder / "tokens.pt")
        with torch.no_grad():
            expected[builder] = model(tokens)
        arguments = {
            "vocab_size": config.vocab_size,
            "num_layers": config.n_layers,
            "num_heads": config.n_heads,
            "num_kv_heads": config.n_kv_heads,
            "embed_dim": config.dim,
            "intermediate_dim": config.hidden_dim,
            "max_seq_len": 512,
            **more,
        }
        jobs[str(folder)] = (builder, arguments)
    done = subprocess.run(
        [str(torchtune_python), str(ROOT / "tests" / "read_with_torchtune.py"), json.dumps(jobs)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for builder, logits in expected.items():
        theirs = torch.load(tmp_path / builder / "logits.pt", weights_only=True)
        torch.testing.assert_close(theirs, logits, rtol=0, atol=1e-5, msg=lambda m, b=builder: f"{b}: {m}")
        assert logits.abs().max() > 1
