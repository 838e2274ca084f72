"""AdamW in 8 bits: as torchao computes it, the same under every layout, resumed, and refused where it cannot be."""

import importlib.metadata
import json
import shutil

import pytest
import torch
from torchao.optim import AdamW8bit as Torchaos

from hekaton.checkpoint.tensors.model_only import open_model
from hekaton.cli import main
from hekaton.testing import check_layouts, check_optimizer, check_plugin, check_requirement, run_command
from hekaton_torchao.adamw import AdamW8bit, build
from hekaton_torchao.sections import AdamW8bitSection

SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48, "vocab_size": 264}
MODEL = [
    "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.overrides", json.dumps(SIZES),
    "--model.tokenizer", "byte", "--training.steps", "4", "--training.seq_len", "16",
    "--lr_scheduler.warmup_steps", "0", "--optimizer.lr", "1e-2",
]  # fmt: skip
EIGHT_BITS = [
    "--optimizer.name",
    "AdamW8bit",
    "--adamw_8bit.block_size",
    "8",
    "--adamw_8bit.min_size",
    "1024",
]
RUN = [
    *MODEL, *EIGHT_BITS, "--training.mixed_precision_param", "float32", "--checkpoint.enable",
    "--checkpoint.interval", "2", "--training.global_batch_size", "2",
]  # fmt: skip
ALONE = ["--training.local_batch_size", "2"]


@pytest.mark.parametrize("min_size", [0, 200, 10**6])
def test_the_optimizer_keeps_its_contract(min_size):
    check_optimizer(build, section=AdamW8bitSection(block_size=8, min_size=min_size))


@pytest.mark.parametrize("shape", [(16, 512), (4, 2048), (100,), (3, 100)])
def test_a_step_is_torchaos(shape):
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    options = {"betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    optimizers = [
        AdamW8bit([ours], lr=0.01, block_size=256, min_size=4096, **options),
        Torchaos([theirs], lr=0.01, block_size=256, **options),
    ]
    for _ in range(5):
        ours.grad = torch.randn(shape, generator=generator)
        theirs.grad = ours.grad.clone()
        with torch.compiler.set_stance("force_eager"):
            for optimizer in optimizers:
                optimizer.step()
    assert torch.equal(ours, theirs)


def test_means_take_a_byte_per_value():
    parameter = torch.nn.Parameter(torch.ones(16, 512))
    optimizer = AdamW8bit(
        [parameter], lr=0.1, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, block_size=256, min_size=0
    )
    parameter.grad = torch.ones(16, 512)
    optimizer.step()
    sizes = {name: value.nbytes for name, value in optimizer.state[parameter].items()}
    means = ("exp_avg", "exp_avg_sq")
    assert sizes == {
        "step": 4, **{f"{mean}_codes": 16 * 512 for mean in means}, **{f"{mean}_scales": 16 * 2 * 4 for mean in means}
    }  # fmt: skip


def read(step):
    return {name: tensor.read() for name, tensor in open_model(step).tensors.items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", *RUN, *ALONE, "--job.dump_folder", str(folder)]) == 0
    return folder / "checkpoint"


def half_done(trained, folder):
    shutil.copytree(trained / "step-2", folder / "checkpoint" / "step-2")
    return str(folder)


def test_a_run_resumes_exactly(trained, tmp_path):
    stored = json.loads((trained / "step-2" / "manifest.json").read_text())["tensors"]
    of_wq = {name.rpartition(".")[2] for name in stored if name.startswith("optimizer.layers.0.attention.wq")}
    assert of_wq == {"step", "exp_avg_codes", "exp_avg_scales", "exp_avg_sq_codes", "exp_avg_sq_scales"}
    assert main(["train", *RUN, *ALONE, "--job.dump_folder", half_done(trained, tmp_path)]) == 0
    resumed = read(tmp_path / "checkpoint" / "step-4")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in read(trained / "step-4").items())


@pytest.mark.slow
def test_layouts_compute_what_one_process_does():
    """The others, and a resume under them: tests/test_conformance.py."""
    check_layouts(*MODEL, *EIGHT_BITS, layouts=["pp2", "shard2 tp2"], tolerance=1e-5)


def test_a_cut_within_a_block_is_refused(tmp_path):
    flags = ["--adamw_8bit.block_size", "32", "--parallelism.tensor_parallel_degree", "2", *ALONE]
    flags += ["--job.dump_folder", str(tmp_path)]
    done = run_command("train", *RUN, *flags, processes=2, cwd=tmp_path)
    assert done.returncode == 2
    said = "the rows of 'layers.0.attention.wo.weight', of 32 values, are cut into 2 parts"
    printed = "".join(rank.stderr for rank in done.ranks)
    assert f"AdamW8bit: {said}, which are no whole blocks of 32" in printed
    assert "Traceback" not in printed


def test_without_torchao_only_a_run_that_names_it_is_refused(monkeypatch, capsys):
    check_requirement("torchao>=0.18", too_old="0.9.1", without=MODEL, using=[*MODEL, *EIGHT_BITS])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.9.1")
    assert main(["config", "check", *MODEL, *EIGHT_BITS]) == 2
    said = capsys.readouterr().err
    reason = "needs torchao>=0.18, and 0.9.1 is installed"
    assert f"error: optimizer 'AdamW8bit' {reason} (optimizer.name)\n  from: --optimizer.name" in said
    assert "pip install 'torchao>=0.18'" in said
    check_plugin("hekaton_torchao")
