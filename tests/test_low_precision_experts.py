"""Experts whose products are in float8 and MXFP8: what is converted, trained, saved, exported and refused."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from hekaton.checkpoint.tensors.model_only import open_model
from hekaton.cli import main
from hekaton.config import load
from hekaton.contributions import Converter
from hekaton.plugins import Plugins
from hekaton.rules import Run
from hekaton.testing import check_requirement, check_rule, run_command
from hekaton_float8.combinations import TABLE as FLOAT8_TABLE
from hekaton_float8.combinations import float8_can_be_combined
from hekaton_mx.combinations import TABLE as MX_TABLE
from hekaton_mx.combinations import mx_can_be_combined

FLOAT8, MX = "quantize.grouped_mm.float8", "quantize.grouped_mm.mx"
LINEAR_FLOAT8, LINEAR_MX = "quantize.linear.float8", "quantize.linear.mx"
CHECKS = {FLOAT8: float8_can_be_combined, MX: mx_can_be_combined}
SIZES = {
    "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "head_dim": 16, "hidden_dim": 128, "vocab_size": 258,
    "moe": {"n_experts": 4, "top_k": 2, "hidden_dim": 64},
}  # fmt: skip
PLAIN = [
    "--model.name", "qwen3", "--model.flavor", "debugmodel_moe", "--model.overrides", json.dumps(SIZES),
    "--model.tokenizer", "byte", "--training.seq_len", "16", "--lr_scheduler.warmup_steps", "0",
]  # fmt: skip
LEFT = "output,router"
BOTH = {
    "float8": [
        "--model.converters", f"{LINEAR_FLOAT8},{FLOAT8}", f"--{LINEAR_FLOAT8}.recipe_name", "rowwise",
        f"--{LINEAR_FLOAT8}.filter_fqns", LEFT,
    ],
    "mx": ["--model.converters", f"{MX},{LINEAR_MX}", f"--{LINEAR_MX}.filter_fqns", LEFT],
}  # fmt: skip
"""Linear layers and experts in one format, in either order."""


def changed(**moe):
    return ["--model.overrides", json.dumps(SIZES | {"moe": SIZES["moe"] | moe})]


@pytest.mark.parametrize(("converter", "multiple"), [(FLOAT8, 16), (MX, 32)])
def test_a_model_that_cannot_be_converted_is_refused(converter, multiple, capsys):
    etp = ["--parallelism.expert_tensor_parallel_degree", "2", "--parallelism.tensor_parallel_degree", "2"]
    half = multiple // 2
    for flags, message, hint in (
        ([f"--{converter}.fqns", "exprts"], f"{converter}.fqns: 'exprts' matches no experts of qwen3",
         "choose one of: layers.*.moe.experts"),
        ([f"--{converter}.fqns", ""], f"{converter}.fqns names no experts to convert", '["experts"]'),
        (changed(hidden_dim=half),
         f"{converter}.fqns: 'layers.0.moe.experts.w1' of qwen3 is 4 x {half} x 64: {half} is no multiple of {multiple}",
         "leave the converter out"),
        ([*changed(hidden_dim=multiple), *etp],
         f"is 4 x {multiple} x 64, of which a rank has {half} x 64: {half} is no multiple of {multiple}",
         "expert_tensor_parallel_degree"),
        (["--model.name", "llama3", "--model.flavor", "debugmodel", "--model.overrides", "{}"],
         "this llama3 has no experts", "choose a model with experts"),
        (["--model.converters", MX if converter == FLOAT8 else FLOAT8], "experts compute in one format",
         "choose one of them"),
    ):  # fmt: skip
        processes = ["--comm.mode", "fake_backend", "--world_size", "2"] if flags[-2:] == etp[-2:] else []
        status = main(["config", "check", *PLAIN, "--model.converters", converter, *flags, *processes])
        said = capsys.readouterr().err
        assert status == 2, flags
        assert message in said
        assert hint in said


@pytest.mark.parametrize("names", [[FLOAT8, LINEAR_FLOAT8], [LINEAR_FLOAT8, FLOAT8]])
def test_converters_run_in_the_order_given(names, monkeypatch, capsys):
    from hekaton_float8.grouped import GroupedFloat8
    from hekaton_float8.linear import LinearFloat8

    run = []
    for name, one in ((FLOAT8, GroupedFloat8), (LINEAR_FLOAT8, LinearFloat8)):
        convert = one.convert
        monkeypatch.setattr(
            one, "convert", lambda self, draft, name=name, of=convert: run.append(name) or of(self, draft)
        )
    flags = ["--model.converters", ",".join(names), f"--{LINEAR_FLOAT8}.filter_fqns", LEFT]
    assert main(["config", "show", "--converters", *PLAIN, *flags]) == 0
    assert run == names
    shown = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines() if " converted" in line]
    assert [line for line in shown if line in names] == names


def test_experts_that_compute_in_a_way_of_their_own_are_refused(monkeypatch, capsys):
    from hekaton_blocks.experts import GroupedExperts

    start = GroupedExperts.__init__

    def without(self, *arguments):
        start(self, *arguments)
        del self.product

    monkeypatch.setattr(GroupedExperts, "__init__", without)
    assert main(["config", "check", *PLAIN, "--model.converters", FLOAT8]) == 2
    said = capsys.readouterr().err
    assert "'layers.0.moe.experts' of qwen3 computes its products in a way of its own" in said


def test_which_experts_are_converted_is_shown(capsys):
    flags = ["--model.converters", FLOAT8, f"--{FLOAT8}.fqns", "layers.1.**"]
    assert main(["config", "show", "--converters", *PLAIN, *flags]) == 0
    printed = capsys.readouterr().out
    assert f"{FLOAT8}: 3 of 6 tensors of experts converted" in printed
    lines = [" ".join(line.split()) for line in printed.splitlines()]
    assert "layers.*.moe.experts.w2 1 4 x 64 x 64 converted" in lines
    assert f"layers.*.moe.experts.w2 1 4 x 64 x 64 left: {FLOAT8}.fqns does not name it" in lines


@pytest.mark.parametrize(
    ("converter", "lacking", "enough", "emulated"),
    [
        (FLOAT8, (8, 9), (9, 0), [f"--{FLOAT8}.emulate"]),
        (MX, (9, 0), (10, 0), [f"--{MX}.recipe_name", "mxfp8_emulated_rceil"]),
    ],
)
def test_a_gpu_without_the_format_is_refused(converter, lacking, enough, emulated, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    run = [*PLAIN, "--model.converters", converter]
    for capability, flags, refused in ((lacking, [], 1), (enough, [], 0), (lacking, emulated, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        loaded = load([], [*run, *flags])
        found = list(CHECKS[converter](Run(loaded.config, loaded.plugins, loaded.origins, 1, "cuda")))
        assert len(found) == refused, (capability, flags, found)
        assert all("on a GPU below capability" in str(one) and "emulate" in one.hint for one in found)
    on_cpu = check_rule(CHECKS[converter], *run, others=PLAIN)
    assert [str(one).partition(":")[0] for one in on_cpu] == [f"{converter} on a CPU"]


@pytest.mark.parametrize("converter", CHECKS)
def test_without_torchao_only_a_run_that_names_it_is_refused(converter):
    check_requirement(
        "torchao>=0.18", too_old="0.9.1", without=PLAIN, using=[*PLAIN, "--model.converters", converter]
    )


def test_every_entry_of_the_table_says_why_and_what_to_do_instead():
    converters = {*Plugins.discover().all(Converter)}
    for entry in (*FLOAT8_TABLE, *MX_TABLE):
        assert entry.converter in converters
        assert entry.reason, entry.when
        assert entry.instead, entry.when


@pytest.mark.parametrize("which", BOTH)
def test_checkpoints_and_exports_are_of_the_plain_model(which, tmp_path, capsys):
    """A run with converters resumes without them; an export has the values of the checkpoint, bit for bit."""
    flags = [
        *PLAIN, "--training.global_batch_size", "2", "--training.local_batch_size", "2", "--lr_scheduler.total_steps",
        "9", "--training.mixed_precision_param", "float32", "--checkpoint.enable", "--job.dump_folder", str(tmp_path),
    ]  # fmt: skip
    last = ["--checkpoint.last_save_in_hf", "--checkpoint.last_save_model_only"]
    assert main(["train", *flags, "--training.steps", "1", *BOTH[which]]) == 0
    assert main(["train", *flags, "--training.steps", "2"]) == 0
    assert "resumed at step 1" in capsys.readouterr().err
    assert main(["train", *flags, "--training.steps", "3", *BOTH[which]]) == 0
    ours = {
        name: tensor.read() for name, tensor in open_model(tmp_path / "checkpoint" / "step-3").tensors.items()
    }
    assert (
        main(["train", *flags, *last, "--training.steps", "4", "--optimizer.lr", "1e-30", *BOTH[which]]) == 0
    )
    (exported,) = {path.parent for path in tmp_path.rglob("*.safetensors")}
    for name in ("layers.1.attention.wq.weight", "layers.1.moe.experts.w1"):
        assert not torch.equal(ours[name], ours[name].bfloat16().float()), f"{name} has lost precision"
    theirs = {}
    for path in exported.glob("*.safetensors"):
        theirs |= load_file(path)
    assert {one.dtype for one in theirs.values()} == {torch.float32}
    layer = "model.layers.1"
    pairs = {
        f"{layer}.self_attn.q_proj.weight": ours["layers.1.attention.wq.weight"],
        f"{layer}.mlp.experts.3.gate_proj.weight": ours["layers.1.moe.experts.w1"][3],
        f"{layer}.mlp.experts.0.down_proj.weight": ours["layers.1.moe.experts.w2"][0],
        "lm_head.weight": ours["output.weight"],
    }
    for name, value in pairs.items():
        assert torch.equal(theirs[name], value), name


def test_a_dry_run_takes_a_step(tmp_path):
    """In float32, of which torch has no grouped product on fake tensors."""
    done = run_command(
        "train", *PLAIN, *BOTH["float8"], "--comm.mode", "fake_backend", "--parallelism.expert_parallel_degree", "2",
        "--training.mixed_precision_param", "float32", "--training.local_batch_size", "2",
        cwd=tmp_path, environment={**os.environ, "NGPU": "4", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "one step ran as rank 0 of 4" in done.stderr
