"""What the converter makes of a model, what a run with it trains and saves, and what it refuses."""

import dataclasses
import json
import math
import shutil

import pytest
import torch

from hekaton.building import build_meta
from hekaton.checkpoint.tensors.model_only import open_model
from hekaton.cli import main
from hekaton.config import load
from hekaton.contributions import Model
from hekaton.mesh import ParallelDims
from hekaton.plugins import Plugins
from hekaton.testing import check_converter, check_rule, run_command
from hekaton_lora.checks import adapters_have_a_base, lora_export_is_written
from hekaton_lora.converter import Lora
from hekaton_lora.linear import KaimingUniform
from hekaton_lora.sections import LoraSection

SIZES = {"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "hidden_dim": 24, "vocab_size": 258}
PLAIN = [
    "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.overrides", json.dumps(SIZES),
    "--model.tokenizer", "byte",
    "--training.steps", "4", "--training.seq_len", "16", "--training.global_batch_size", "2",
    "--training.dtype", "float64", "--training.mixed_precision_param", "float64",
    "--training.mixed_precision_reduce", "float64", "--lr_scheduler.warmup_steps", "0", "--optimizer.lr", "1e-2",
    "--checkpoint.enable", "--checkpoint.interval", "2",
]  # fmt: skip
FLAGS = [*PLAIN, "--model.converters", "lora", "--lora.rank", "4"]
ALONE = ["--training.local_batch_size", "2"]
LAYERS = [f"attention.{name}" for name in ("wq", "wk", "wv", "wo")] + [
    f"feed_forward.{name}" for name in ("w1", "w2", "w3")
]


def run(folder, *more, flags=FLAGS):
    assert main(["train", *flags, *ALONE, "--job.dump_folder", str(folder), *more]) == 0
    return folder / "checkpoint"


def read(step):
    return {name: tensor.read() for name, tensor in open_model(step).tensors.items()}


def draft(*flags):
    loaded = load([], [*FLAGS, *flags])
    return build_meta(loaded.config, loaded.plugins, ParallelDims()).draft


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoints of a run of four steps, of which step 2 was saved too."""
    return run(tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize(
    ("model", "targets"),
    [("llama3", []), ("llama3", ["layers.*.attention.*", "output"]), ("qwen3", [])],
)
def test_the_converter_keeps_its_contract(model, targets):
    spec = Plugins.discover().get(Model, model).spec.load()
    small = dataclasses.replace(spec.flavors["debugmodel"], dim=16, n_heads=2, n_kv_heads=2, n_layers=1)
    spec = dataclasses.replace(spec, flavors={"small": small})
    check_converter(Lora(LoraSection(rank=3, targets=targets), ParallelDims()), spec, "small")


def test_every_linear_layer_of_the_blocks_has_an_adapter_and_nothing_else_is_trained():
    model = draft().model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {
        f"layers.{i}.{layer}.{part}" for i in range(2) for layer in LAYERS for part in ("lora_a", "lora_b")
    }


def test_targets_are_patterns_and_may_overlap():
    model = draft("--lora.targets", "layers.1.attention.*,layers.*.attention.wq,output").model
    adapted = {name.removesuffix(".lora_a") for name, _ in model.named_parameters() if "lora_a" in name}
    assert adapted == {
        *(f"layers.1.attention.{w}" for w in ("wq", "wk", "wv", "wo")), "layers.0.attention.wq", "output"
    }  # fmt: skip


def test_an_adapter_adds_its_product_to_the_output():
    layer = torch.nn.Sequential(torch.nn.Linear(6, 5)).double()
    from hekaton_lora.linear import adapt

    x = torch.randn(3, 6, dtype=torch.float64)
    before = layer(x)
    adapt(layer[0], rank=2, scale=1.5)
    a, b = torch.randn(2, 6, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    with torch.no_grad():
        layer[0].lora_a.copy_(a)
        layer[0].lora_b.copy_(b)
    torch.testing.assert_close(layer(x), before + 1.5 * x @ a.T @ b.T)


def test_a_is_drawn_as_torch_draws_a_linear_layer():
    ours, torchs = torch.empty(4, 50), torch.empty(4, 50)
    KaimingUniform()(ours, name="", generator=torch.Generator().manual_seed(3))
    torch.nn.init.kaiming_uniform_(torchs, a=math.sqrt(5), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(ours, torchs)


def test_a_run_starts_from_its_base(tmp_path):
    seed = ["--checkpoint.create_seed_checkpoint"]
    adapted = read(run(tmp_path / "adapted", *seed) / "step-0")
    base = read(run(tmp_path / "base", *seed, flags=PLAIN) / "step-0")
    added = {name for name in adapted if "lora" in name}
    assert adapted.keys() - added == base.keys()
    assert all(torch.equal(adapted[name], base[name]) for name in base)
    for name in added:
        assert bool(adapted[name].any()) == name.endswith("lora_a"), name


def test_only_adapters_change_and_have_optimizer_state(trained):
    before, after = read(trained / "step-2"), read(trained / "step-4")
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert changed == {name for name in after if "lora" in name}
    manifest = json.loads((trained / "step-4" / "manifest.json").read_text())
    kept = {name for name in manifest["tensors"] if name.startswith("optimizer.")}
    assert kept
    assert all("lora" in name for name in kept)


def half_done(trained, folder):
    """A run of which step 2 is there."""
    shutil.copytree(trained / "step-2", folder / "checkpoint" / "step-2")
    return folder


def test_a_run_resumes_exactly(trained, tmp_path):
    resumed = read(run(half_done(trained, tmp_path)) / "step-4")
    assert all(torch.equal(resumed[name], tensor) for name, tensor in read(trained / "step-4").items())


def test_a_run_resumes_in_a_pipeline(trained, tmp_path):
    """Under other layouts: tests/test_conformance.py."""
    flags = ["--parallelism.pipeline_parallel_degree", "2", "--training.local_batch_size", "2"]
    folder = str(half_done(trained, tmp_path))
    done = run_command("train", *FLAGS, *flags, "--job.dump_folder", folder, processes=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    resumed = read(tmp_path / "checkpoint" / "step-4")
    for name, tensor in read(trained / "step-4").items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-10, atol=1e-12)


def test_a_run_starts_from_a_checkpoint_without_adapters(tmp_path):
    base = run(tmp_path / "base", "--debug.seed", "7", "--training.steps", "1", flags=PLAIN)
    run(tmp_path / "adapted", "--checkpoint.initial_load_path", str(base), "--training.steps", "1")
    before, after = read(base / "step-1"), read(tmp_path / "adapted" / "checkpoint" / "step-1")
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_run_starts_from_a_checkpoint_with_adapters(trained, tmp_path):
    start = [
        "--checkpoint.initial_load_path",
        str(trained),
        "--optimizer.lr",
        "1e-30",
        "--training.steps",
        "1",
    ]
    after = read(run(tmp_path, *start) / "step-1")
    for name, tensor in read(trained / "step-4").items():
        torch.testing.assert_close(after[name], tensor)


def test_a_checkpoint_with_other_adapters_is_refused(trained, tmp_path, capsys):
    start = ["--checkpoint.initial_load_path", str(trained), "--lora.rank", "2"]
    assert main(["train", *FLAGS, *ALONE, *start, "--job.dump_folder", str(tmp_path)]) == 2
    assert "lora_a is (4, 16) in the checkpoint, (2, 16) here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        (
            ["--lora.targets", "layers.*.attention.wx"],
            "lora.targets: 'layers.*.attention.wx' matches nothing of llama3\n  from: --lora.targets",
            "did you mean 'layers.*.attention.wv'?",
        ),
        (
            ["--lora.targets", "layers.*.attention_norm"],
            "lora.targets: 'layers.*.attention_norm' matches 'layers.0.attention_norm', which is no linear layer",
            "choose one of: layers.*.attention.wk,",
        ),
        (["--lora.targets", "layers.{"], "'layers.{' is no pattern", ""),
        (
            ["--lora.rank", "17"],
            "lora.rank = 17 is more than the rank of a weight: 'layers.0.attention.wq' of llama3 is 16 x 16\n"
            "  from: --lora.rank",
            "choose at most 16",
        ),
        (["--lora.rank", "0"], "lora.rank", "greater than or equal to 1"),
        (["--lora.alpha", "0"], "lora.alpha", "greater than 0"),
        (["--lora.alpha", "nan"], "lora.alpha", "finite"),
        (["--lora.export", "peft"], "lora.export", "'merged' or 'adapter'"),
        (["--lora.ranks", "4"], "--lora.ranks", "did you mean --lora.rank?"),
        (
            ["--model.flavor", "debugmodel_tied", "--lora.targets", "output"],
            "lora: the weight of 'output' is tied to 'tok_embeddings.weight'",
            "leave it out of lora.targets",
        ),
    ],
)
def test_layers_that_cannot_be_adapted_are_refused(flags, message, hint, capsys):
    assert main(["config", "check", *FLAGS, *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert hint in said


def test_an_export_that_is_not_written_gives_a_notice():
    last = ["--checkpoint.last_save_in_hf", "--checkpoint.last_save_model_only"]
    adapter = [*FLAGS, "--lora.export", "adapter"]
    (notice,) = check_rule(lora_export_is_written, *adapter, others=PLAIN)
    assert notice == "lora.export: no effect: checkpoint.last_save_in_hf is false"
    assert not check_rule(lora_export_is_written, *adapter, *last)


def test_random_frozen_weights_give_a_notice(tmp_path):
    (notice,) = check_rule(adapters_have_a_base, *FLAGS, others=PLAIN)
    assert notice.startswith("lora: the frozen weights are the initial ones, drawn at random")
    assert not check_rule(adapters_have_a_base, *FLAGS, "--checkpoint.initial_load_path", str(tmp_path))
