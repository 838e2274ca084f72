"""Qwen 3 against transformers' Qwen3ForCausalLM, on the same weights."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import Qwen3Config as TheirConfig
from transformers import Qwen3ForCausalLM

from hekaton.building import materialize
from hekaton.contributions import HFAdapter
from hekaton.errors import CheckpointError, ConfigError
from hekaton.init import initialize, resolve_init
from hekaton.plugins import Plugins
from hekaton.weights.counterpart import adapter_of, read_config
from hekaton_qwen3 import QWEN3_DEFAULTS
from hekaton_qwen3.hugging_face import table
from hekaton_qwen3.model import Qwen3, Qwen3Config
from hekaton_qwen3.spec import flavors, flops_per_token, init

TINY = Qwen3Config(
    dim=48, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, hidden_dim=96, vocab_size=101, rope_theta=10_000.0
)  # fmt: skip
VARIANTS = {"plain": TINY, "tied": replace(TINY, tie_embeddings=True), "one key": replace(TINY, n_kv_heads=1)}


@pytest.fixture(scope="module")
def adapter() -> HFAdapter:
    return adapter_of(Plugins.discover(), "qwen3")


def build(config: Qwen3Config) -> Qwen3:
    with torch.device("meta"):
        model = Qwen3(config)
    rows = resolve_init(model, init(config), what="qwen3")
    materialize(model, torch.device("cpu"))
    initialize(model, rows, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # norms that are all ones would hide one that is left out
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_are_those_of_transformers(variant, opened_by_transformers, assert_equal):
    model = build(VARIANTS[variant])
    theirs = opened_by_transformers("qwen3", model)
    assert type(theirs) is Qwen3ForCausalLM
    tokens = torch.randint(0, 101, (2, 48), generator=torch.Generator().manual_seed(0))
    assert_equal(model, theirs, table(model.config), tokens)


def test_a_packed_row_gives_each_document_the_logits_that_it_has_alone(check_packing):
    check_packing(build(TINY), (7, 1, 12), within=1e-5)


@pytest.mark.parametrize(
    ("flavor", "parameters"),
    [
        ("0.6B", 596_049_920), ("1.7B", 1_720_574_976), ("4B", 4_022_468_096), ("8B", 8_190_735_360),
        ("14B", 14_768_307_200), ("32B", 32_762_123_264),
    ],
)  # fmt: skip
def test_published_sizes(flavor, parameters):
    """As transformers counts the published configurations, a tied weight once."""
    with torch.device("meta"):
        model = Qwen3(flavors[flavor])
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_flops_are_those_that_torch_counts(counted_flops):
    seq = 64
    # torch counts the masked half of attention as well; ours does not.
    attention = 6 * TINY.n_layers * TINY.n_heads * TINY.head_dim * seq
    assert counted_flops(build(TINY), seq) == pytest.approx(flops_per_token(TINY, seq) + attention, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"), [({"n_kv_heads": 3}, "does not divide"), ({"head_dim": 15}, "is odd")]
)
def test_impossible_heads_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


def test_the_defaults_are_those_of_transformers():
    theirs = TheirConfig().to_dict()
    theirs["rope_theta"] = theirs["rope_parameters"]["rope_theta"]
    assert {key: theirs[key] for key in QWEN3_DEFAULTS} == QWEN3_DEFAULTS


def test_what_transformers_reads_is_read_alike(adapter):
    values = {
        "vocab_size": [151_936, 2_000], "hidden_size": [4_096, 96], "intermediate_size": [22_016, 96],
        "num_hidden_layers": [28, 2], "num_attention_heads": [32, 64], "num_key_value_heads": [8, 2, None],
        "head_dim": [128, 16], "hidden_act": ["silu", "swish"], "rms_norm_eps": [1e-6, 1e-5],
        "rope_theta": [1_000_000, 10_000.0], "rope_scaling": [None], "tie_word_embeddings": [True, False],
        "rope_parameters": [{"rope_type": "default", "rope_theta": 5e6}], "attention_bias": [False],
        "use_sliding_window": [False],
    }  # fmt: skip
    chance = random.Random(0)
    for _ in range(300):
        content = {key: chance.choice(of) for key, of in values.items() if chance.random() < 0.6}
        theirs = TheirConfig.from_dict(dict(content))
        assert read_config(adapter, content, what="it") == Qwen3Config(
            dim=theirs.hidden_size, n_layers=theirs.num_hidden_layers, n_heads=theirs.num_attention_heads,
            n_kv_heads=theirs.num_key_value_heads, head_dim=theirs.head_dim,
            hidden_dim=theirs.intermediate_size, vocab_size=theirs.vocab_size, norm_eps=theirs.rms_norm_eps,
            rope_theta=theirs.rope_parameters["rope_theta"], tie_embeddings=theirs.tie_word_embeddings,
        ), content  # fmt: skip


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"attention_bias": True}, "attention_bias = True: the model qwen3 knows only False"),
        ({"use_sliding_window": True}, "use_sliding_window = True"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type = 'yarn': the model qwen3 knows only"),
        ({"head_dim": 0}, "head_dim = 0: a whole number above 0"),
    ],
)  # fmt: skip
def test_what_the_model_cannot_do_is_refused(adapter, content, message):
    with pytest.raises(CheckpointError, match=message):
        read_config(adapter, content, what="it")
