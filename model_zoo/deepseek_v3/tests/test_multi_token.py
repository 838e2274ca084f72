"""The layer for a second token against transformers' MtpModel, and its objective by hand."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel

from hekaton.building import materialize
from hekaton.cli import main
from hekaton.errors import CheckpointError
from hekaton.identity.values import model_meanings
from hekaton.loss import IGNORE_INDEX
from hekaton.multi_token import MultiToken
from hekaton.plugins import Plugins
from hekaton.testing import run_command
from hekaton.weights import whole
from hekaton.weights.counterpart import adapter_of, build_format, read_config
from hekaton_deepseek_v3.hugging_face import table
from hekaton_deepseek_v3.model import DeepSeekV3
from hekaton_deepseek_v3.spec import flavors, flops_per_token

PLUGINS = Plugins.discover()
SMALL = {
    "dim": 32, "n_layers": 2, "n_heads": 4, "inter_dim": 48, "q_lora_rank": 24, "kv_lora_rank": 20,
    "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10, "moe": {"hidden_dim": 16},
}  # fmt: skip
RUN = [
    "--model.name", "deepseek_v3", "--model.flavor", "debugmodel", "--model.tokenizer", "byte",
    "--training.dataset", "python_stdlib", "--training.seq_len", "32", "--training.local_batch_size", "4",
    "--training.steps", "20", "--metrics.log_freq", "1", "--optimizer.lr", "2e-2",
    "--lr_scheduler.warmup_steps", "2",
]  # fmt: skip
MTP = [*RUN, "--model.overrides", json.dumps(SMALL | {"n_mtp_layers": 1})]


@pytest.fixture
def published(tmp_path):
    """Transformers' model and its layer for a second token, and both in a folder as they are published."""
    config = DeepseekV3Config(
        hidden_size=40, num_hidden_layers=3, first_k_dense_replace=1, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=96, moe_intermediate_size=24, q_lora_rank=24,
        kv_lora_rank=20, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, vocab_size=101,
        n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=3, num_mtp_layers=1,
        experts_implementation="eager", attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    torch.manual_seed(0)
    model = DeepseekV3ForCausalLM(config)
    second = MtpModel(model, 1)
    for name, parameter in [*model.named_parameters(), *second.layers.named_parameters()]:
        with torch.no_grad():
            parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    for name, tensor in second.layers[0].state_dict().items():
        there = "model.layers.3." + name.replace("mtp_block.", "").replace("post_norm", "shared_head.norm")
        if there.endswith("gate_up_proj"):
            for expert, (gate, up) in enumerate(one.chunk(2) for one in tensor):
                each = there.replace("gate_up_proj", f"{expert}.")
                tensors |= {f"{each}gate_proj.weight": gate.clone(), f"{each}up_proj.weight": up.clone()}
        elif there.endswith("experts.down_proj"):
            for expert, down in enumerate(tensor):
                tensors[there.replace("down_proj", f"{expert}.down_proj.weight")] = down.clone()
        else:
            tensors[there] = tensor
    tensors["model.layers.3.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.3.shared_head.head.weight"] = tensors["lm_head.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    return model, second


def test_second_logits_and_gradients_are_those_of_transformers(published, tmp_path):
    model, second = published
    weights = build_format(PLUGINS, "hf").open(tmp_path)
    config = replace(
        read_config(adapter_of(PLUGINS, "deepseek_v3"), weights.config, what="it"), n_mtp_layers=1
    )
    with torch.device("meta"):
        ours = DeepSeekV3(config)
    materialize(ours, torch.device("cpu"))
    tensors = table(config).from_hf(weights.tensors, what="it")
    ours.load_state_dict({name: tensor.read() for name, tensor in tensors.items()})
    row = torch.randint(0, 101, (2, 17), generator=torch.Generator().manual_seed(0))
    tokens, following = row[:, :-1], row[:, 1:]
    got = ours(tokens, next_tokens=following)
    theirs = model(tokens, output_hidden_states=True)
    positions = torch.arange(16).expand(2, -1)
    hidden = second.forward_layer(0, theirs.hidden_states[-1], positions, None, input_ids=following)
    expected = (theirs.logits, second._project_to_logits(hidden))
    for one, other in zip(got, expected, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()
    for logits in (got, expected):
        (logits[1] * torch.linspace(-1, 1, got[1].numel()).view_as(got[1])).mean().backward()
    pairs = {
        "mtp_layers.3.eh_proj.weight": second.layers[0].eh_proj,
        "mtp_layers.3.enorm.weight": second.layers[0].enorm,
        "mtp_layers.3.attention.wkv_b.weight": second.layers[0].mtp_block.self_attn.kv_b_proj,
        "layers.0.feed_forward.w2.weight": model.model.layers[0].mlp.down_proj,
        "tok_embeddings.weight": model.model.embed_tokens,
        "output.weight": model.lm_head,
    }
    for name, module in pairs.items():
        gradient = module.weight.grad
        assert (ours.get_parameter(name).grad - gradient).norm() <= 1e-4 * gradient.norm(), name


def test_a_copy_that_differs_from_the_embedding_is_refused(published, tmp_path):
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.3.embed_tokens.weight"] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    weights = build_format(PLUGINS, "hf").open(tmp_path)
    config = read_config(adapter_of(PLUGINS, "deepseek_v3"), weights.config, what="it")
    with pytest.raises(CheckpointError, match=r"'model.layers.3.embed_tokens.weight' differs from"):
        table(replace(config, n_mtp_layers=1)).from_hf(weights.tensors, what="it")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_conversion_reads_the_layer_with_its_option(published, tmp_path, monkeypatch, caplog):
    """Without it, a notice names what is left out. Back in the file, it is there bit for bit."""
    weights = build_format(PLUGINS, "hf").open(tmp_path)
    config = read_config(adapter_of(PLUGINS, "deepseek_v3"), weights.config, what="it")
    monkeypatch.setitem(flavors, "tiny", config)
    folder = str(tmp_path)
    there = str(tmp_path.with_name("step"))
    assert main(["convert", "from-hf", folder, f"{there}-without"]) == 0
    assert "multi-token prediction (model.layers.3): left out" in caplog.text
    caplog.clear()
    assert main(["convert", "from-hf", folder, there, "--overrides", '{"n_mtp_layers": 1}']) == 0
    assert "left out" not in caplog.text
    assert main(["convert", "to-hf", there, f"{there}-back"]) == 0
    before = load_file(tmp_path / "model.safetensors")
    after = load_file(tmp_path.with_name("step-back") / "model.safetensors")
    copies = {"model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight"}
    assert after.keys() == before.keys() - copies
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    content = json.loads((tmp_path.with_name("step-back") / "config.json").read_text())
    assert content["num_nextn_predict_layers"] == 1


def test_the_published_size_of_the_layer_and_its_tensors():
    config = replace(flavors["671B"], n_mtp_layers=1)
    with torch.device("meta"):
        model = DeepSeekV3(config)
    stored = model.mtp_layers.state_dict().values()  # the bias of the experts is a buffer
    assert sum(tensor.numel() for tensor in stored) == 11_610_068_224
    there = table(config).to_hf({name: whole(one) for name, one in model.state_dict().items()}, what="it")
    (left_out,) = table(flavors["671B"]).left_out.values()
    copies = {"model.layers.61.embed_tokens.weight", "model.layers.61.shared_head.head.weight"}
    assert {name for name in there if name.startswith("model.layers.61.")} == set(left_out) - copies


def test_the_layer_costs_its_products_and_the_output_once_more():
    config, seq_len = flavors["debugmodel"], 64
    # By hand: of attention wq, wkv_a, wkv_b and wo, three experts and two shared ones of three matrices, the router,
    # the projection of both inputs, the output; and the pairs of tokens of 16 heads of (192 + 128) / 2 channels.
    attention = 256 * 16 * 192 + 256 * (512 + 64) + 512 * 16 * 256 + 16 * 128 * 256
    products = attention + 3 * 256 * 256 * 5 + 256 * 8 + 2 * 256 * 256 + 256 * 2048
    more = flops_per_token(replace(config, n_mtp_layers=1), seq_len) - flops_per_token(config, seq_len)
    assert more == 6 * products + 12 * 16 * 160 * seq_len / 2


def test_the_second_label_is_in_the_same_document():
    """Two documents of 3 and 4 tokens; the label at the end of the first is that of the second's begin."""
    batch = {
        "tokens": torch.tensor([[1, 2, 3, 4, 5, 6, 7]]),
        "labels": torch.tensor([[2, 3, IGNORE_INDEX, 5, 6, 7, 8]]),
        "positions": torch.tensor([[0, 1, 2, 0, 1, 2, 3]]),
    }
    objective = MultiToken(weight=0.3)
    inputs, targets = objective.prepare(dict(batch), None)
    none = IGNORE_INDEX
    assert inputs["next_tokens"].tolist() == [[2, 3, 0, 5, 6, 7, 8]]
    assert targets["second_labels"].tolist() == [[3, none, none, 6, 7, 8, none]]
    assert {name: int(count) for name, count in objective.count(targets).items()} == {
        "next_token": 6, "second_token": 4,
    }  # fmt: skip
    logits = torch.zeros(1, 7, 10)
    terms = objective.loss((logits, logits), targets)
    expected = [6 * math.log(10), 4 * math.log(10)]
    assert [float(terms[name]) for name in ("next_token", "second_token")] == pytest.approx(expected)
    batch["labels"][0, 2] = 4  # packed without a mark between documents: the next one begins
    assert objective.prepare(dict(batch), None)[1]["second_labels"].tolist() == [[3, 4, none, 6, 7, 8, none]]


PRINTED = """
from hekaton.contributions import hookimpl

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_step_ended(step, metrics, control):
    names = ["loss", "loss/next_token", "loss/second_token", "loss/sequence_balance"]
    print(*(metrics[name] for name in names))
"""


def test_a_run_trains_both_tokens_and_resumes_under_tensor_parallel(tmp_path):
    (tmp_path / "printed.py").write_text(PRINTED)
    words = [*MTP, "--training.objective", "multi_token", "--plugins.load", "printed.py"]
    words += ["--checkpoint.enable", "--checkpoint.interval", "20", "--multi_token.weight", "0.5"]
    done = run_command("train", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    steps = [[float(value) for value in line.split()] for line in done.stdout.splitlines()]
    for total, first, second, balance in steps:
        assert total == pytest.approx(first + 0.5 * second + 1e-4 * balance, rel=1e-6)
    assert steps[-1][1] < steps[0][1] - 0.3
    assert steps[-1][2] < steps[0][2] - 0.3
    tensor_parallel = ["--parallelism.tensor_parallel_degree", "2"]
    further = run_command(
        "train", *words, "--training.steps", "21", *tensor_parallel, processes=2, cwd=tmp_path
    )
    assert further.returncode == 0, further.stderr
    assert "resumed at step 20" in further.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (MTP, "n_mtp_layers = 1 is a layer for a second token, which the run does not train"),
        (
            [*MTP, "--training.objective", "multi_token", "--parallelism.pipeline_parallel_degree", "2"],
            "deepseek_v3 debugmodel predicts a second token with the embedding, which the first stage",
        ),
        (
            [*MTP, "--model.overrides", '{"n_layers": 2, "n_dense_layers": 2, "n_mtp_layers": 1}'],
            "n_mtp_layers = 1: the layer for a second token has experts, and no other has",
        ),
    ],
)
def test_configurations_that_cannot_be_trained_are_refused(words, message):
    done = run_command("config", "check", *words)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_resume_with_another_number_of_tokens_ahead_is_another_run():
    assert model_meanings(flavors["debugmodel"])["model.n_mtp_layers"] == "refusal"


def test_a_model_that_predicts_one_token_is_refused(tmp_path):
    done = run_command("train", *RUN, "--training.objective", "multi_token", cwd=tmp_path)
    assert done.returncode == 2
    assert 'training.objective = "multi_token" is for a model with a layer for a second token' in done.stderr
