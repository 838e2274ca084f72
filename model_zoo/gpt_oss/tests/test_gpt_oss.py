"""gpt-oss against transformers' GptOssForCausalLM: logits, gradients, files, published sizes."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig as TheirConfig
from transformers import GptOssForCausalLM

from hekaton.building import materialize
from hekaton.cli import main
from hekaton.contributions import HFAdapter
from hekaton.errors import CheckpointError, ConfigError
from hekaton.init import initialize, resolve_init
from hekaton.plugins import Plugins
from hekaton.testing import run_command
from hekaton.weights import whole
from hekaton.weights.counterpart import adapter_of, read_config
from hekaton_blocks import AttentionPattern, MoEConfig, YarnScaling, attention, sinks
from hekaton_gpt_oss.hugging_face import DEFAULTS, table, write_config
from hekaton_gpt_oss.model import Experts, GptOss, GptOssConfig
from hekaton_gpt_oss.spec import flavors, flops_per_token, init

EXPERTS = MoEConfig(n_experts=8, top_k=3, hidden_dim=48, renormalise=True, batch_balance=1e-3)
# The down projections are square, as in the published models: one that is not transposed fits as well.
TINY = GptOssConfig(
    dim=48, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=16, window=7, vocab_size=101, swiglu_limit=1.0,
    rope_scaling=YarnScaling(factor=32.0, original_context=64, truncate=False), moe=EXPERTS,
)  # fmt: skip
TOKENS = torch.randint(0, 101, (2, 48), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _flavors(monkeypatch):
    monkeypatch.setitem(flavors, "tiny", TINY)


@pytest.fixture(scope="module")
def adapter() -> HFAdapter:
    return adapter_of(Plugins.discover(), "gpt_oss")


def build(config: GptOssConfig) -> GptOss:
    """With values of which none is what it would be if it were left out: sinks, biases, norms."""
    with torch.device("meta"):
        model = GptOss(config)
    materialize(model, torch.device("cpu"))
    initialize(model, resolve_init(model, init(config), what="gpt_oss"), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            elif "bias" in name or "sinks" in name or "router" in name:
                parameter.normal_(0, 0.5, generator=generator)
            elif "mlp" in name:  # so that some gates are clamped
                parameter.normal_(0, 0.2, generator=generator)
    return model


def test_logits_and_gradients_are_those_of_transformers(opened_by_transformers, assert_equal):
    model = build(TINY)
    theirs = opened_by_transformers("gpt_oss", model)
    assert type(theirs) is GptOssForCausalLM
    assert_equal(model, theirs, table(TINY), TOKENS)
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_files_of_transformers_come_in_and_go_out_bit_for_bit(tmp_path):
    torch.manual_seed(1)
    content = {key: value for key, value in write_config(TINY).items() if key != "architectures"}
    theirs = GptOssForCausalLM(TheirConfig.from_dict(content)).bfloat16()
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="100KB")
    arguments = [str(tmp_path / "hf"), str(tmp_path / "out"), "--model_flavor", "tiny"]
    assert main(["convert", "from-hf", *arguments]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "out"), str(tmp_path / "again")]) == 0
    saved = {}
    for file in (tmp_path / "hf").glob("*.safetensors"):
        saved |= load_file(file)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == saved.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in saved.items())


@pytest.mark.slow
def test_its_run_file_trains_and_resumes(tmp_path):
    """``debug_model.toml``, with a smaller model and fewer steps."""
    overrides = json.dumps({"dim": 32, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "window": 8})
    words = [
        str(Path(__file__).parents[1] / "train_configs" / "debug_model.toml"), "--model.overrides", overrides,
        "--training.seq_len", "32", "--training.local_batch_size", "4", "--metrics.log_freq", "1",
        "--metrics.no-enable_tensorboard", "--optimizer.lr", "2e-2",
    ]  # fmt: skip
    first = run_command("train", *words, "--training.steps", "20", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    losses = [float(loss) for loss in re.findall(r"step +\d+  loss ([\d.]+)", first.stderr)]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.5
    further = run_command("train", *words, "--training.steps", "22", cwd=tmp_path)
    assert further.returncode == 0, further.stderr
    assert "resumed at step 20" in further.stderr
    assert re.findall(r"step +(\d+)  loss", further.stderr) == ["21", "22"]


E2M1 = (0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6)
"""What the sixteen patterns of four bits stand for (OCP MX v1.0, E2M1)."""


def in_four_bits(experts: int, columns: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random blocks and scales, and the matrix that they stand for."""
    generator = torch.Generator().manual_seed(columns + rows)
    patterns = torch.randint(16, (experts, rows, columns), generator=generator)
    scales = torch.randint(118, 124, (experts, rows, columns // 32), generator=generator, dtype=torch.uint8)
    pairs = (patterns[..., ::2] + 16 * patterns[..., 1::2]).to(torch.uint8)
    powers = 2.0 ** (scales.double() - 127)
    values = torch.tensor(E2M1)[patterns] * powers.repeat_interleave(32, dim=-1)
    return pairs.unflatten(-1, (-1, 16)), scales, values.float().mT.contiguous()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_published_weights_in_four_bits_are_read(tmp_path, monkeypatch):
    # With square down projections.
    scaling = YarnScaling(factor=32.0, original_context=128, truncate=False)
    square = replace(EXPERTS, top_k=4, hidden_dim=64)
    config = replace(TINY, dim=64, vocab_size=264, rope_scaling=scaling, moe=square)
    monkeypatch.setitem(flavors, "tiny", config)
    monkeypatch.chdir(tmp_path)
    content = {key: value for key, value in write_config(config).items() if key != "architectures"}
    GptOssForCausalLM(TheirConfig.from_dict(content)).save_pretrained("hf")
    expected = load_file("hf/model.safetensors")
    stored = dict(expected)
    for name, tensor in expected.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            del stored[name]
            stored[f"{name}_blocks"], stored[f"{name}_scales"], expected[name] = in_four_bits(*tensor.shape)
    save_file(stored, "hf/model.safetensors", metadata={"format": "pt"})
    said = json.loads(Path("hf/config.json").read_text()) | {"quantization_config": {"quant_method": "mxfp4"}}
    Path("hf/config.json").write_text(json.dumps(said))
    assert main(["convert", "from-hf", "hf", "step", "--model_flavor", "tiny"]) == 0
    assert main(["convert", "to-hf", "step", "back", "--export_dtype", "float32"]) == 0
    after = load_file("back/model.safetensors")
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[name], tensor.float()) for name, tensor in expected.items())

    overrides = json.dumps(
        {name: getattr(config, name) for name in ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim")}
        | {"window": 7, "vocab_size": 264, "swiglu_limit": 1.0, "moe": {"n_experts": 8, "hidden_dim": 64}}
    )
    done = run_command(
        "train", "--model.name", "gpt_oss", "--model.overrides", overrides, "--model.tokenizer", "byte",
        "--training.steps", "1", "--training.seq_len", "16", "--training.local_batch_size", "1",
        "--checkpoint.enable", "--checkpoint.initial_load_path", "hf", "--checkpoint.initial_load_in_hf",
        "--checkpoint.initial_load_in_hf_quantized", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "started with the weights of hf" in done.stderr


def test_experts_are_those_of_their_definition():
    """``swiglu`` of OpenAI's reference implementation, written out for one expert and one row."""
    experts = Experts(2, 3, 4, limit=7.0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(0, 4, generator=generator)
    rows = torch.randn(5, 3, generator=generator)
    got = experts(rows, torch.tensor([2, 3]))
    for number, row in enumerate(rows):
        expert = 0 if number < 2 else 1
        both = experts.mlp1_weight[expert] @ row + experts.mlp1_bias[expert]
        hidden = torch.stack([swiglu(both[2 * i].item(), both[2 * i + 1].item()) for i in range(4)])
        expected = experts.mlp2_weight[expert] @ hidden + experts.mlp2_bias[expert]
        torch.testing.assert_close(got[number], expected, rtol=1e-5, atol=1e-4)


def swiglu(gate: float, up: float) -> torch.Tensor:
    gate, up = min(gate, 7.0), max(min(up, 7.0), -7.0)
    return torch.tensor(gate / (1 + torch.exp(torch.tensor(-1.702 * gate)).item()) * (up + 1))


def test_a_packed_row_gives_each_document_the_logits_that_it_has_alone(check_packing):
    check_packing(build(TINY), (17, 1, 12))


def yarn_applied_twice(patch):
    once = YarnScaling.rotary_factor.fget
    patch.setattr(YarnScaling, "rotary_factor", property(lambda self: once(self) ** 2))


def window_of_one_token_more(patch):
    pattern = GptOssConfig.pattern

    def longer(self, layer):
        right = pattern(self, layer)
        return right if right.window is None else replace(right, window=right.window + 1)

    patch.setattr(GptOssConfig, "pattern", longer)


def sinks_have_no_gradient(patch):
    patch.setattr(sinks, "grad_of_sinks", lambda grad, out, lse, given: torch.zeros_like(given))


def sinks_left_out_in_the_backward(patch):
    """The output is scaled by what the sink leaves, and queries and keys have no gradient of that."""

    def scaled(q, k, v, given, *, mask, causal, scale):
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        bias = None if mask is None else sinks._as_bias(mask, q.dtype)
        out, lse = sinks._flash(q, k, v, 0.0, causal, attn_mask=bias, scale=scale)
        return out * sinks.sink_weight(lse.detach(), given).unsqueeze(-1)

    patch.setattr(attention, "attend_with_sinks", scaled)


# Mistakes of public implementations -> what must differ first: the output of a layer, or a gradient.
MISTAKES = {
    "YaRN's mscale applied twice": (yarn_applied_twice, "layers.0.attention", None),
    "window off by one": (window_of_one_token_more, "layers.0.attention", None),
    "sinks without a gradient": (sinks_have_no_gradient, "", "model.layers.0.self_attn.sinks"),
    "sinks left out in the backward": (
        sinks_left_out_in_the_backward, "", "model.layers.0.self_attn.q_proj.weight",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed_with_its_layer_or_parameter(
    mistake, opened_by_transformers, outputs_of_layers, first_difference, differences, monkeypatch
):
    put_in, layer, parameter = MISTAKES[mistake]
    theirs = opened_by_transformers("gpt_oss", build(TINY))
    put_in(monkeypatch)
    model = build(TINY)
    names = {"attention": "self_attn", "moe": "mlp"}
    got = outputs_of_layers(model, list(model.layers.values()), {name: name for name in names}, TOKENS)
    expected = outputs_of_layers(theirs, list(theirs.model.layers), names, TOKENS)
    assert first_difference(got, expected) == layer
    if parameter is not None:
        found = differences(model, theirs, table(TINY), TOKENS)
        assert found["logits"] <= 1e-5
        assert found[parameter] > 1e-2


def test_windows_are_in_even_layers_and_hold_the_published_number_of_tokens():
    config = flavors["20b"]
    assert [config.pattern(layer) for layer in range(2)] == [
        AttentionPattern(window=128, sinks=True), AttentionPattern(sinks=True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flavor", "total", "active"),
    [("20b", 20_914_757_184, 4_187_440_704), ("120b", 116_829_156_672, 5_711_982_912)],
)
def test_published_sizes_and_names(flavor, total, active):
    """As transformers counts the published configurations; active are all but the experts not chosen. Names and
    shapes are those of files in bfloat16."""
    config = flavors[flavor]
    with torch.device("meta"):
        model = GptOss(config)
    assert sum(p.numel() for p in model.parameters()) == total
    each = 3 * 2_880 * 2_880 + 3 * 2_880
    experts = config.moe.n_experts
    assert total - config.n_layers * (experts - 4) * each == active
    published = {
        "model.embed_tokens.weight": (201_088, 2_880), "model.norm.weight": (2_880,),
        "lm_head.weight": (201_088, 2_880),
    }  # fmt: skip
    for i in range(config.n_layers):
        attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        published |= {
            f"{attention}.q_proj.weight": (4_096, 2_880), f"{attention}.q_proj.bias": (4_096,),
            f"{attention}.k_proj.weight": (512, 2_880), f"{attention}.k_proj.bias": (512,),
            f"{attention}.v_proj.weight": (512, 2_880), f"{attention}.v_proj.bias": (512,),
            f"{attention}.o_proj.weight": (2_880, 4_096), f"{attention}.o_proj.bias": (2_880,),
            f"{attention}.sinks": (64,), f"model.layers.{i}.input_layernorm.weight": (2_880,),
            f"model.layers.{i}.post_attention_layernorm.weight": (2_880,),
            f"{mlp}.router.weight": (experts, 2_880), f"{mlp}.router.bias": (experts,),
            f"{mlp}.experts.gate_up_proj": (experts, 2_880, 5_760),
            f"{mlp}.experts.gate_up_proj_bias": (experts, 5_760),
            f"{mlp}.experts.down_proj": (experts, 2_880, 2_880),
            f"{mlp}.experts.down_proj_bias": (experts, 2_880),
        }  # fmt: skip
    theirs = table(config).to_hf({name: whole(t) for name, t in model.state_dict().items()}, what=flavor)
    assert {name: tensor.shape for name, tensor in theirs.items()} == published


def test_flops_are_those_that_torch_counts(monkeypatch, counted_flops):
    """Of attention torch counts every pair and the sink, where only half, or those in the window, are needed."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the masked way
    seq = 64
    per_pair = 12 * TINY.n_heads * TINY.head_dim
    needed = sum(min(query + 1, TINY.window) for query in range(seq)) / seq
    causal = sum(query + 1 for query in range(seq)) / seq
    more = per_pair * (3 * (seq + 1) - 2 * needed - causal)
    counted = counted_flops(build(TINY), seq)
    assert counted - more == pytest.approx(flops_per_token(TINY, seq), rel=0.02)


def test_an_expert_bias_that_has_moved_has_no_place_there():
    config = replace(TINY, moe=replace(EXPERTS, bias_rate=1e-3))
    model = build(config)
    lazy = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    assert "model.layers.0.mlp.router.bias" in table(config).to_hf(lazy, what="it")
    model.layers["1"].moe.expert_bias[3] = 1e-3
    with pytest.raises(CheckpointError, match=r"'layers.1.moe.expert_bias' is not 0 everywhere"):
        table(config).to_hf(lazy, what="it")


def test_the_defaults_are_those_of_transformers():
    theirs = TheirConfig().to_dict()
    assert theirs["rope_parameters"].pop("rope_theta") == TheirConfig.default_theta == 150_000.0
    theirs["layer_types"] = None  # filled in there
    assert {key: theirs[key] for key in DEFAULTS} == DEFAULTS


def test_what_transformers_reads_is_read_alike(adapter):
    yarn = {"rope_type": "yarn", "factor": 8.0, "beta_fast": 16.0, "original_max_position_embeddings": 128}
    values = {
        "vocab_size": [2_000], "hidden_size": [96], "intermediate_size": [48], "num_hidden_layers": [2, 5],
        "num_attention_heads": [64, 32], "num_key_value_heads": [8, 4], "head_dim": [16],
        "sliding_window": [64], "num_local_experts": [16], "num_experts_per_tok": [2], "rms_norm_eps": [1e-6],
        "rope_theta": [10_000.0], "rope_scaling": [yarn, {**yarn, "truncate": False}], "swiglu_limit": [5.0],
        "rope_parameters": [{"rope_type": "default", "rope_theta": 5e6}],
    }  # fmt: skip
    chance = random.Random(0)
    for _ in range(100):
        content = {key: chance.choice(of) for key, of in values.items() if chance.random() < 0.6}
        theirs = TheirConfig.from_dict(dict(content))
        rope = theirs.rope_parameters
        got = read_config(adapter, content, what="it")
        scaling = None
        if rope["rope_type"] == "yarn":
            scaling = YarnScaling(
                factor=rope["factor"], original_context=rope["original_max_position_embeddings"],
                beta_fast=rope.get("beta_fast", 32.0), truncate=rope.get("truncate", True),
            )  # fmt: skip
        assert got == GptOssConfig(
            dim=theirs.hidden_size, n_layers=theirs.num_hidden_layers, n_heads=theirs.num_attention_heads,
            n_kv_heads=theirs.num_key_value_heads, head_dim=theirs.head_dim, window=theirs.sliding_window,
            vocab_size=theirs.vocab_size, swiglu_limit=theirs.swiglu_limit, norm_eps=theirs.rms_norm_eps,
            rope_theta=rope["rope_theta"], rope_scaling=scaling,
            moe=MoEConfig(
                n_experts=theirs.num_local_experts, top_k=theirs.num_experts_per_tok,
                hidden_dim=theirs.intermediate_size, renormalise=True, batch_balance=0.001,
            ),
        ), content  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"attention_bias": False}, "attention_bias = False: the model gpt_oss knows only True"),
        ({"layer_types": ["full_attention"] * 36}, "layer_types = .*: the model gpt_oss knows only "),
        ({"swiglu_alpha": 1.0}, "swiglu_alpha = 1.0: the model gpt_oss knows only 1.702"),
        ({"sliding_window": None}, "sliding_window = None: a whole number above 0"),
        (
            {"rope_scaling": {**DEFAULTS["rope_parameters"], "mscale": 1.0, "mscale_all_dim": 1.0}},
            "mscale: the",
        ),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_type = 'llama3': the model gpt_oss knows only"),
    ],
)
def test_what_the_model_cannot_do_is_refused(adapter, content, message):
    with pytest.raises(CheckpointError, match=message):
        read_config(adapter, content, what="it")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_dim": 15}, "odd"),
        ({"rope_scaling": YarnScaling(factor=4.0, mscale=2.0)}, "rope_scaling has an mscale"),
        ({"n_kv_heads": 3}, "n_kv_heads = 3 does not divide"),
        ({"moe": replace(EXPERTS, n_shared_experts=1)}, "n_shared_experts = 1: the model has none"),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)
