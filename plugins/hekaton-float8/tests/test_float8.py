"""What the converter makes of a model, what a run with it trains and saves, and what is refused."""

import dataclasses
import json

import pytest
import torch
from torchao.float8.float8_linear import Float8Linear

from hekaton.building import build_meta
from hekaton.checkpoint.tensors.model_only import open_model
from hekaton.cli import main
from hekaton.config import load
from hekaton.contributions import Model
from hekaton.mesh import ParallelDims
from hekaton.parallel.plan import module_names
from hekaton.patterns import resolve
from hekaton.plugins import Plugins
from hekaton.rules import Run
from hekaton.testing import check_converter, check_requirement, check_rule
from hekaton_float8 import LINEAR
from hekaton_float8.combinations import float8_can_be_combined
from hekaton_float8.linear import TOO_SMALL, LinearFloat8, WholeRows, as_torchao
from hekaton_float8.sections import Float8Section

SIZES = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 64, "vocab_size": 258}
PLAIN = [
    "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.overrides", json.dumps(SIZES),
    "--model.tokenizer", "byte", "--training.steps", "3", "--training.seq_len", "16",
    "--training.global_batch_size", "2", "--training.local_batch_size", "1", "--training.mixed_precision_param", "float32",
    "--lr_scheduler.warmup_steps", "0", "--optimizer.lr", "1e-3",
]  # fmt: skip
CONVERTED = ["--model.converters", LINEAR, f"--{LINEAR}.filter_fqns", "output"]
RUN = [*PLAIN, *CONVERTED]
GATHER = f"--{LINEAR}.enable_fsdp_float8_all_gather"


def train(folder, *flags):
    steps = ["--checkpoint.enable", "--checkpoint.interval", "3"]
    assert main(["train", *flags, *steps, "--job.dump_folder", str(folder)]) == 0
    return folder / "checkpoint" / "step-3"


def read(step):
    return {name: tensor.read() for name, tensor in open_model(step).tensors.items()}


def choices(*flags):
    loaded = load([], [*PLAIN, "--model.converters", LINEAR, *flags])
    meta = build_meta(loaded.config, loaded.plugins, ParallelDims())
    return {choice.layer: choice.left for choice in meta.draft.choices[LINEAR]}, meta.model


def styles(*flags):
    loaded = load(
        [], [*PLAIN, "--model.overrides", json.dumps(SIZES | {"n_kv_heads": 4}), *CONVERTED[:2], *flags]
    )
    meta = build_meta(loaded.config, loaded.plugins, ParallelDims(tp=2))
    plan = resolve(meta.plan.tensor, module_names(meta.model), what="plan")
    return {name: style for name, style in plan.items() if name.startswith(("layers.1.", "norm", "output"))}


def test_under_tensor_parallel_the_plan_gathers_in_float8_what_converted_layers_alone_read():
    output = ["--quantize.linear.float8.filter_fqns", "output"]
    assert styles(*output) == {
        "layers.1.attention_norm": "float8_sequence_norm", "layers.1.ffn_norm": "float8_sequence_norm",
        "layers.1.attention.wq": "colwise", "layers.1.attention.wk": "colwise",
        "layers.1.attention.wv": "colwise", "layers.1.attention.wo": "float8_rowwise",
        "layers.1.feed_forward.w1": "colwise", "layers.1.feed_forward.w3": "colwise",
        "layers.1.feed_forward.w2": "float8_rowwise", "norm": "sequence_norm", "output": "vocab_output",
    }  # fmt: skip
    left = styles("--quantize.linear.float8.filter_fqns", "output,wk,w2")
    changed = {name for name, style in left.items() if style.startswith("float8")}
    assert changed == {"layers.1.ffn_norm", "layers.1.attention.wo"}
    rowwise = styles(*output, f"--{LINEAR}.recipe_name", "rowwise")
    assert not any(style.startswith("float8") for style in rowwise.values())


@pytest.mark.parametrize("recipe", [one for one in TOO_SMALL if one != "blockwise"])
def test_the_converter_keeps_its_contract(recipe):
    spec = Plugins.discover().get(Model, "qwen3").spec.load()
    small = dataclasses.replace(spec.flavors["debugmodel"], dim=32, n_heads=2, n_kv_heads=2, n_layers=1)
    spec = dataclasses.replace(spec, flavors={"small": small})
    section = Float8Section(recipe_name=recipe, filter_fqns=["wk"], emulate=True)
    check_converter(LinearFloat8(section, ParallelDims()), spec, "small")


def test_names_that_contain_a_filter_and_those_of_a_pattern_are_left():
    chosen, model = choices(f"--{LINEAR}.filter_fqns", "output,wq,layers.1.feed_forward.*")
    left = {name for name, why in chosen.items() if why}
    assert left == {
        "output", "layers.0.attention.wq", "layers.1.attention.wq", *(f"layers.1.feed_forward.w{i}" for i in "123")
    }  # fmt: skip
    for name in chosen:
        assert (type(model.get_submodule(name)) is torch.nn.Linear) == (name in left), name


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_layers_that_are_too_small_are_those_that_torchao_leaves(recipe):
    from torchao.float8 import _auto_filter_for_recipe

    takes = _auto_filter_for_recipe(recipe, [])
    for outputs in (1024, 1040, 2048, 2064, 4096, 4112):
        for inputs in (1024, 1040, 2048, 2064, 4096, 4112):
            with torch.device("meta"):
                layer = torch.nn.Linear(inputs, outputs)
            assert takes(layer, "layer") == (not TOO_SMALL[recipe](outputs, inputs)), (outputs, inputs)


def test_what_is_converted_is_shown(capsys):
    large = json.dumps(
        SIZES | {"dim": 1040, "n_layers": 1, "n_heads": 13, "n_kv_heads": 13, "hidden_dim": 5000}
    )
    flags = [*PLAIN, "--model.converters", "float8", f"--{LINEAR}.filter_fqns", "auto_filter_small_kn"]
    assert main(["config", "show", "--converters", *flags, "--model.overrides", large]) == 0
    printed = capsys.readouterr().out
    assert "notice: model.converters: 'float8' is called 'quantize.linear.float8' now" in printed
    assert "quantize.linear.float8: 4 of 8 linear layers converted" in printed
    lines = {
        line.split()[0]: " ".join(line.split()[1:]) for line in printed.splitlines() if line.startswith("  ")
    }
    assert lines["layers.*.attention.wo"] == "1 1040 x 1040 converted"
    assert (
        lines["layers.*.feed_forward.w2"]
        == "1 1040 x 5000 left: it is 1040 x 5000: 5000 is no multiple of 16"
    )
    assert lines["output"] == "1 258 x 1040 left: it is 258 x 1040: 258 is no multiple of 16"


def test_checkpoints_are_those_of_the_model_without_it(tmp_path, capsys):
    plain = train(tmp_path / "plain", *PLAIN)
    converted = train(tmp_path / "converted", *RUN)
    assert "quantize.linear.float8: 14 of 15 linear layers converted" in capsys.readouterr().err
    before, after = read(plain), read(converted)
    assert {name: (one.shape, one.dtype) for name, one in after.items()} == {
        name: (one.shape, one.dtype) for name, one in before.items()
    }
    assert not torch.equal(before["layers.0.attention.wq.weight"], after["layers.0.attention.wq.weight"])
    for name, flags in (("with", RUN), ("without", PLAIN)):
        for start in (plain, converted):
            still = ["--checkpoint.initial_load_path", str(start), "--optimizer.lr", "1e-30"]
            loaded = read(train(tmp_path / f"{name} {start.parent.parent.name}", *flags, *still))
            for tensor, value in read(start).items():
                torch.testing.assert_close(loaded[tensor], value)


@pytest.mark.parametrize(
    ("flags", "message", "hint"),
    [
        (
            [f"--{LINEAR}.filter_fqns", "outputs"],
            f"{LINEAR}.filter_fqns: 'outputs' matches no linear layer of llama3\n  from: --{LINEAR}.filter_fqns",
            "did you mean 'output'?",
        ),
        (
            [f"--{LINEAR}.filter_fqns", "auto_filter"],
            f"{LINEAR}.filter_fqns: 'auto_filter' matches no linear layer of llama3",
            "auto_filter_small_kn, layers.*.attention.wk",
        ),
        (
            [f"--{LINEAR}.filter_fqns", "layers.{0.**"],
            f"{LINEAR}.filter_fqns: 'layers.{{0.**' is no pattern: '{{0' is no component of one\n  from: --{LINEAR}",
            "a component is a name",
        ),
        (
            ["--model.converters", LINEAR],
            f"{LINEAR}.filter_fqns: 'output' of llama3 is 258 x 32: 258 is no multiple of 16",
            f"leave it as it is: add 'output' to {LINEAR}.filter_fqns",
        ),
        (
            ["--parallelism.tensor_parallel_degree", "2", "--model.overrides", json.dumps(SIZES | {"dim": 48, "n_heads": 6})],
            "'layers.0.attention.wq' of llama3 is 48 x 48, of which a rank has 24 x 48: 24 is no multiple of 16",
            "add 'layers.*.attention.wq'",
        ),
        (
            [f"--{LINEAR}.filter_fqns", "auto_filter_small_kn"],
            "no linear layer of llama3 is left to convert: of 15, the first is left because",
            "leave the converter out of model.converters",
        ),
        (
            [f"--{LINEAR}.recipe_name", "blockwise"],
            "'layers.0.attention.wq' of llama3 is 32 x 32: 32 is no multiple of 128",
            "auto_filter_small_kn",
        ),
        ([f"--{LINEAR}.recipe_name", "delayed"], f"{LINEAR}.recipe_name", "'tensorwise'"),
        (
            ["--model.converters", f"lora,{LINEAR}", f"--{LINEAR}.filter_fqns", "output"],
            "lora before quantize.linear.float8: a layer that has an adapter is not converted any more\n"
            "  from: --model.converters",
            f'write converters = ["{LINEAR}", "lora"]',
        ),
        (
            [GATHER, f"--{LINEAR}.recipe_name", "rowwise"],
            "float8 all-gather with another recipe than tensorwise",
            'set recipe_name = "tensorwise", or enable_fsdp_float8_all_gather = false',
        ),
        (
            [GATHER, "--parallelism.tensor_parallel_degree", "2", "--parallelism.data_parallel_shard_degree", "2"],
            "float8 all-gather under tensor parallel without precomputed scales",
            "set precompute_float8_dynamic_scale_for_fsdp = true",
        ),
        (
            ["--model.converters", f"{LINEAR},lora", f"--{LINEAR}.filter_fqns", "output",
             "--parallelism.tensor_parallel_degree", "2"],
            "tensorwise float8 with lora under tensor parallel",
            'set recipe_name = "rowwise"',
        ),
        (
            [GATHER, "--training.enable_cpu_offload"],
            "float8 all-gather with parameters offloaded to the CPU",
            "enable_fsdp_float8_all_gather = false",
        ),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_converted_is_refused(flags, message, hint, capsys):
    named = [] if "--model.converters" in flags else CONVERTED  # given twice, a list is joined
    assert main(["config", "check", *PLAIN, *named, *flags]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert hint in said


def said(*flags, **where):
    return [str(one) for one in check_rule(float8_can_be_combined, *RUN, *flags, others=PLAIN, **where)]


def test_devices_and_layouts_without_an_effect_give_notices():
    assert [one.partition(":")[0] for one in said()] == ["quantize.linear.float8 on a CPU"]
    assert said(f"--{LINEAR}.emulate") == []
    assert [one.partition(":")[0] for one in said(device_type="cuda")] == [
        "quantize.linear.float8 on a GPU without compile"
    ]
    alone = said(GATHER, "--compile.enable", device_type="cuda")
    assert [one.partition(":")[0] for one in alone] == ["float8 all-gather on one data-parallel rank"]
    assert said(GATHER, "--compile.enable", device_type="cuda", world_size=2) == []


@pytest.mark.parametrize(
    ("recipe", "flags", "refused"),
    [
        ("rowwise", ["--training.seq_len", "24"], True),
        ("tensorwise", ["--training.seq_len", "24", "--training.local_batch_size", "2"], False),
        ("blockwise", ["--training.seq_len", "24"], False),
        ("tensorwise", ["--training.seq_len", "16", "--parallelism.context_parallel_degree", "2"], True),
        (
            "tensorwise",
            ["--training.seq_len", "24", "--training.local_batch_size", "2", "--parallelism.pipeline_parallel_degree", "2"],
            True,
        ),
    ],
)  # fmt: skip
def test_under_tensor_parallel_a_gpu_sums_over_a_multiple_of_16_tokens(recipe, flags, refused):
    loaded = load([], [*RUN, f"--{LINEAR}.recipe_name", recipe, "--compile.enable", *flags,
                       "--parallelism.tensor_parallel_degree", "2"])  # fmt: skip
    run = Run(loaded.config, loaded.plugins, loaded.origins, 4, "cuda", here=False)
    found = [str(one) for one in float8_can_be_combined(run)]
    assert [one.partition(":")[0].rpartition(" of tokens")[2] for one in found] == (
        [" that are no multiple of 16"] if refused else []
    )


@pytest.mark.parametrize("recipe", ["tensorwise", "rowwise"])
def test_rows_are_filled_up_to_a_multiple_of_16(recipe, monkeypatch):
    """As of a vector for each of two images, or of an odd sequence: the same values, in a shape that a GPU takes."""
    config = as_torchao(Float8Section(recipe_name=recipe, emulate=True))
    plain = torch.nn.Linear(32, 48)
    theirs = Float8Linear.from_float(plain, config=config)
    shapes, forward = [], Float8Linear.forward
    monkeypatch.setattr(Float8Linear, "forward", lambda self, x: shapes.append(x.shape) or forward(self, x))
    ours = WholeRows.from_float(plain, config=config)
    for shape in ((2, 32), (3, 7, 32), (2, 8, 32), (32,)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        computed = []
        for layer in (theirs, ours):
            layer.zero_grad()
            given = x.clone().requires_grad_()
            out = layer(given if layer is ours else given.reshape(-1, 32)).reshape(*shape[:-1], 48)
            out.cos().sum().backward()
            computed.append([out, given.grad, layer.weight.grad.clone(), layer.bias.grad.clone()])
        for expected, found in zip(*computed, strict=True):
            torch.testing.assert_close(found, expected)
        assert not shapes[-1][:-1].numel() % 16


@pytest.mark.parametrize(
    ("capability", "recipe", "refused"),
    [
        ((8, 0), "tensorwise", "tensorwise float8 on a GPU below capability 8.9"),
        ((8, 9), "tensorwise", ""),
        ((8, 9), "rowwise", "rowwise or blockwise float8 on a GPU below capability 9.0"),
        ((8, 9), "blockwise", "rowwise or blockwise float8 on a GPU below capability 9.0"),
        ((8, 9), "rowwise_with_gw_hp", "rowwise or blockwise float8 on a GPU below capability 9.0"),
        ((9, 0), "rowwise", ""),
    ],
)
def test_a_gpu_without_float8_is_refused(capability, recipe, refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    loaded = load([], [*RUN, f"--{LINEAR}.recipe_name", recipe, "--compile.enable"])
    run = Run(loaded.config, loaded.plugins, loaded.origins, 1, "cuda")
    found = [str(one) for one in float8_can_be_combined(run)]
    assert [one.partition(":")[0] for one in found] == ([refused] if refused else [])
    emulated = load([], [*RUN, f"--{LINEAR}.recipe_name", recipe, "--compile.enable", f"--{LINEAR}.emulate"])
    run = Run(emulated.config, emulated.plugins, emulated.origins, 1, "cuda")
    assert not list(float8_can_be_combined(run))


def test_without_torchao_only_a_run_that_names_it_is_refused():
    check_requirement("torchao>=0.18", too_old="0.9.1", without=PLAIN, using=RUN)


def test_a_converter_named_twice_is_an_error_also_under_an_earlier_name(capsys):
    for names in (f"{LINEAR},{LINEAR}", f"{LINEAR},float8", "float8,quantize.dense.float8"):
        assert main(["config", "check", *PLAIN, "--model.converters", names]) == 2
        assert f': it names "{LINEAR}" twice\n' in capsys.readouterr().err
