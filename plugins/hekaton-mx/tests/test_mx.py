"""What the converter makes of a model, what a run with it trains and saves, and what is refused."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from hekaton.checkpoint.tensors.model_only import open_model
from hekaton.cli import main
from hekaton.config import load
from hekaton.contributions import Model
from hekaton.mesh import ParallelDims
from hekaton.plugins import Plugins
from hekaton.rules import Run
from hekaton.testing import check_converter, check_requirement
from hekaton_mx import LINEAR
from hekaton_mx.combinations import mx_can_be_combined
from hekaton_mx.linear import LinearMX
from hekaton_mx.sections import MXSection

SIZES = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "hidden_dim": 128, "vocab_size": 258}
PLAIN = [
    "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.overrides", json.dumps(SIZES),
    "--model.tokenizer", "byte", "--training.seq_len", "16", "--lr_scheduler.warmup_steps", "0",
]  # fmt: skip
RUN = [*PLAIN, "--model.converters", LINEAR]


def test_the_converter_keeps_its_contract():
    spec = Plugins.discover().get(Model, "qwen3").spec.load()
    small = dataclasses.replace(
        spec.flavors["debugmodel"], dim=64, n_heads=2, n_kv_heads=2, n_layers=1, hidden_dim=64
    )
    spec = dataclasses.replace(spec, flavors={"small": small})
    draft = check_converter(LinearMX(MXSection(filter_fqns=["wk"]), ParallelDims()), spec, "small")
    left = {choice.layer: bool(choice.left) for choice in draft.choices[LINEAR]}
    assert left["layers.0.attention.wk"]
    assert not left["layers.0.attention.wq"]


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        (
            [f"--{LINEAR}.filter_fqns", "outputs"],
            f"{LINEAR}.filter_fqns: 'outputs' matches no linear layer of llama3",
            "did you mean 'output'?",
        ),
        (
            [f"--{LINEAR}.filter_fqns", "w1"],
            f"{LINEAR}.filter_fqns: 'output' of llama3 is 258 x 64: 258 is no multiple of 32",
            f"add 'output' to {LINEAR}.filter_fqns",
        ),
        (
            ["--parallelism.tensor_parallel_degree", "4"],
            "'layers.0.attention.wq' of llama3 is 64 x 64, of which a rank has 16 x 64: 16 is no multiple of 32",
            "add 'layers.*.attention.wq'",
        ),
        (
            [f"--{LINEAR}.recipe_name", "nvfp4"],
            "'layers.0.attention.wq' of llama3 is 64 x 64: 64 is no multiple of 128",
            "add 'layers.*.attention.wq'",
        ),
        ([f"--{LINEAR}.recipe_name", "mxfp6"], f"{LINEAR}.recipe_name", "'mxfp8_rceil'"),
        (
            ["--model.converters", "quantize.linear.float8"],
            "quantize.linear.mx with quantize.linear.float8: a linear layer computes in one format",
            "choose one of them",
        ),
        (
            ["--model.converters", f"lora,{LINEAR}"],
            "lora before quantize.linear.mx: a layer that has an adapter is not converted any more",
            f'write converters = ["{LINEAR}", "lora"]',
        ),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_converted_is_refused(flags, message, hint, capsys):
    start = PLAIN if f"lora,{LINEAR}" in flags else RUN  # given twice, a list is joined
    assert main(["config", "check", *start, *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert hint in said


@pytest.mark.parametrize(("capability", "refused"), [((9, 0), True), ((10, 0), False)])
def test_a_gpu_without_mxfp8_is_refused(capability, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    for recipe, expected in (
        ("mxfp8_rceil", refused), ("nvfp4", refused), ("mxfp8_emulated_rceil", False), ("nvfp4_emulated", False),
    ):  # fmt: skip
        loaded = load([], [*RUN, f"--{LINEAR}.recipe_name", recipe, "--compile.enable"])
        found = list(mx_can_be_combined(Run(loaded.config, loaded.plugins, loaded.origins, 1, "cuda")))
        assert [str(one).partition(":")[0] for one in found] == (
            ["quantize.linear.mx on a GPU below capability 10.0"] if expected else []
        )


def test_without_torchao_only_a_run_that_names_it_is_refused():
    check_requirement("torchao>=0.18", too_old="0.9.1", without=PLAIN, using=RUN)


def test_checkpoints_and_exports_are_of_the_plain_model(tmp_path, capsys):
    """Saved with the converter, loaded without it, and the other way round; exported in the precision of the run."""
    wide = json.dumps(SIZES | {"dim": 128, "n_layers": 1})
    flags = [
        *PLAIN, "--model.overrides", wide, "--lr_scheduler.total_steps", "9", "--training.local_batch_size", "2",
        "--training.mixed_precision_param", "float32", "--checkpoint.enable", "--job.dump_folder", str(tmp_path),
    ]  # fmt: skip
    for step, recipe in enumerate(("mxfp8_rceil", "", "nvfp4"), 1):
        converted = ["--model.converters", LINEAR, f"--{LINEAR}.recipe_name", recipe] if recipe else []
        assert main(["train", *flags, "--training.steps", str(step), *converted]) == 0
        assert step == 1 or f"resumed at step {step - 1}" in capsys.readouterr().err
    saved = tmp_path / "checkpoint" / "step-3"
    assert main(["convert", "to-hf", str(saved), str(tmp_path / "hf")]) == 0
    ours = open_model(saved).tensors["layers.0.attention.wv.weight"].read()
    (file,) = (tmp_path / "hf").glob("*.safetensors")
    assert torch.equal(load_file(file)["model.layers.0.self_attn.v_proj.weight"], ours)
    assert ours.dtype == torch.float32
    assert not torch.equal(ours, ours.bfloat16().float())
