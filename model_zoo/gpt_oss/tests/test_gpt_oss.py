"""gpt-oss against transformers' GptOssForCausalLM: logits, gradients, files, published sizes."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GptOssForCausalLM
from transformers import GptOssConfig as TheirConfig

from hekaton.build import materialize
from hekaton.checkpoint import CheckpointManager
from hekaton.cli import main
from hekaton.contributions import HFAdapter
from hekaton.errors import CheckpointError, ConfigError
from hekaton.init import initialize, resolve_init
from hekaton.plugins import Plugins
from hekaton.testing import run_command
from hekaton.weights import whole
from hekaton.weights.counterpart import adapter_of, read_config
from hekaton_blocks import AttentionPattern, MoEConfig, YarnScaling
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
NAMES = {
    "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj", "moe.router.gate": "mlp.router", "attention.sinks": "self_attn.sinks",
    "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "moe.experts.mlp1_weight": "mlp.experts.gate_up_proj", "moe.experts.mlp1_bias": "mlp.experts.gate_up_proj_bias",
    "moe.experts.mlp2_weight": "mlp.experts.down_proj", "moe.experts.mlp2_bias": "mlp.experts.down_proj_bias",
}  # fmt: skip
ENDS = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


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


def their_name(name: str) -> str:
    """The name that transformers has for a parameter, written out by hand."""
    if not name.startswith("layers."):
        return f"{ENDS[name.removesuffix('.weight')]}.weight"
    _, layer, rest = name.split(".", 2)
    if rest in NAMES:
        return f"model.layers.{layer}.{NAMES[rest]}"
    rest, kind = rest.rsplit(".", 1)
    return f"model.layers.{layer}.{NAMES[rest]}.{kind}"


def through_files(model: GptOss, folder: Path) -> GptOssForCausalLM:
    """transformers' model, from the files of an export."""
    describe = {"model": "gpt_oss", "flavor": "tiny", "layout": {}, "config": {}}
    state = {"model": dict(model.state_dict())}
    step = CheckpointManager(folder / "checkpoint", describe=describe).save(3, state, {})
    assert main(["convert", "to-hf", str(step), str(folder / "hf"), "--max_shard_size", "100KB"]) == 0
    return AutoModelForCausalLM.from_pretrained(folder / "hf", experts_implementation="eager")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_step_is_opened_by_transformers_with_equal_logits_and_gradients(tmp_path):
    model = build(TINY)
    theirs = through_files(model, tmp_path)
    assert type(theirs) is GptOssForCausalLM
    logits, expected = model(TOKENS), theirs(TOKENS).logits
    assert (logits - expected).norm() <= 1e-5 * expected.norm()
    weights = torch.linspace(-1, 1, logits.numel()).reshape(logits.shape)
    (logits * weights).mean().backward()
    (expected * weights).mean().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        gradient = gradients.pop(their_name(name))
        gradient = gradient.mT if name.endswith(("mlp1_weight", "mlp2_weight")) else gradient
        assert (parameter.grad - gradient).norm() <= 1e-4 * gradient.norm(), name
        assert parameter.grad.abs().max() > 0, name
    assert not gradients


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


def test_a_packed_row_gives_each_document_the_logits_that_it_has_alone():
    model = build(TINY)
    documents = [TOKENS[0, :n] for n in (17, 1, 12)]
    positions = torch.cat([torch.arange(len(document)) for document in documents])
    ids = torch.cat([torch.full((len(document),), i) for i, document in enumerate(documents)])
    with torch.no_grad():
        packed = model(torch.cat(documents)[None], positions[None], ids[None])
        alone = torch.cat([model(document[None]) for document in documents], dim=1)
        torch.testing.assert_close(packed, alone, rtol=1e-4, atol=1e-5)
        changed = torch.cat(documents)[None].clone()
        changed[0, 3] = (changed[0, 3] + 1) % 101
        # Not to the bit: an expert that is sent more tokens computes products of other sizes.
        other = model(changed, positions[None], ids[None])[:, 17:]
        torch.testing.assert_close(other, packed[:, 17:], rtol=1e-5, atol=1e-6)


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


def test_flops_are_those_that_torch_counts(monkeypatch):
    """Of attention torch counts every pair and the sink, where only half, or those in the window, are needed."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # the masked way
    seq = 64
    model, tokens = build(TINY), torch.zeros(1, seq, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(tokens).sum().backward()
    per_pair = 12 * TINY.n_heads * TINY.head_dim
    needed = sum(min(query + 1, TINY.window) for query in range(seq)) / seq
    causal = sum(query + 1 for query in range(seq)) / seq
    more = per_pair * (3 * (seq + 1) - 2 * needed - causal)
    assert counter.get_total_flops() / seq - more == pytest.approx(flops_per_token(TINY, seq), rel=0.02)


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
