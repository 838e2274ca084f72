"""Which configurations ``config.json`` may hold: what transformers' own LlamaConfig reads is read alike."""

from __future__ import annotations

import copy
import random
from collections import Counter
from typing import Any

import pytest
from transformers import LlamaConfig

from hekaton.contributions import HFAdapter
from hekaton.errors import CheckpointError
from hekaton.plugins import Plugins
from hekaton.weights.counterpart import adapter_of, identify, read_config
from hekaton.weights.facts import facts_of
from hekaton_blocks import RopeScaling
from hekaton_llama3 import LLAMA_DEFAULTS
from hekaton_llama3.model import Llama3Config

ABSENT = object()
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
# Each key with values that are found in the wild, and some that are not; the first are the more frequent.
VALUES: dict[str, list[Any]] = {
    "vocab_size": [ABSENT, 32000, 128_256, None, 0, "32000", True],
    "hidden_size": [ABSENT, 4096, 2048, 64, 100, None, 64.0],
    "intermediate_size": [ABSENT, 11008, 96, None, -1],
    "num_hidden_layers": [ABSENT, 32, 2, None],
    "num_attention_heads": [ABSENT, 32, 4, 7, None, 0],
    "num_key_value_heads": [ABSENT, None, 4, 8, 32, 5, 0],
    "head_dim": [ABSENT, None, 16, 64, 128, 0],
    "hidden_act": [ABSENT, "silu", "swish", "gelu"],
    "max_position_embeddings": [ABSENT, 2048, 8192, 131_072, None, 0],
    "rms_norm_eps": [ABSENT, 1e-5, 1e-6, 1, None, "1e-5"],
    "rope_theta": [ABSENT, 10000.0, 500_000.0, 10000, None, "1e4"],
    "rope_scaling": [
        ABSENT, None, {}, {"rope_type": "default"}, {"type": "default"}, {"rope_type": "llama3", **SCALING},
        {"rope_type": "llama3", **SCALING, "original_max_position_embeddings": 8192},
        {"type": "llama3", **SCALING, "original_max_position_embeddings": 8192, "rope_theta": 7e5},
        {"type": "linear", "factor": 2.0}, {"rope_type": "yarn", "factor": 4.0}, {"rope_type": "llama3"}, 3, "x",
    ],
    "rope_parameters": [
        ABSENT, None, {}, {"rope_type": "default"}, {"rope_type": "default", "rope_theta": 3e5},
        {"rope_theta": 1_000_000}, {"rope_theta": None}, {"rope_type": None, "rope_theta": 1e4},
        {"rope_type": "llama3", "rope_theta": 5e5, **SCALING, "original_max_position_embeddings": 8192},
        {"rope_type": "llama3", **SCALING},
        {"rope_type": "llama3", **SCALING, "original_max_position_embeddings": None},
        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        {"rope_theta": 1e4, "partial_rotary_factor": 1.0}, [],
    ],
    "original_max_position_embeddings": [ABSENT, ABSENT, ABSENT, 4096],
    "partial_rotary_factor": [ABSENT, ABSENT, ABSENT, 1.0, 0.5],
    "tie_word_embeddings": [ABSENT, True, False, None],
    "attention_bias": [ABSENT, False, True, None],
    "mlp_bias": [ABSENT, False, True],
    "bos_token_id": [ABSENT, None, 1, 128_000],
    "eos_token_id": [ABSENT, None, 2, [128_001, 128_008, 128_009], []],
    "pad_token_id": [ABSENT, None, 0],
    "pretraining_tp": [ABSENT, 1], "use_cache": [ABSENT, True], "attention_dropout": [ABSENT, 0.0],
    "torch_dtype": [ABSENT, "bfloat16"], "dtype": [ABSENT, "float32"], "transformers_version": [ABSENT, "4.40.0"],
    "quantization_config": [ABSENT, None], "no_such_key": [ABSENT, [1]], "model_type": [ABSENT, "llama"],
    "architectures": [ABSENT, ["LlamaForCausalLM"], None, []],
}  # fmt: skip


@pytest.fixture(scope="module")
def adapter() -> HFAdapter:
    return adapter_of(Plugins.discover(), "llama3")


def contents(count: int) -> list[dict[str, Any]]:
    """Configurations in which about two keys are odd."""
    chance = random.Random(0)
    made = []
    for _ in range(count):
        content = {}
        for key, values in VALUES.items():
            usual = max(2, len(values) // 3)
            value = chance.choice(values if chance.random() < 0.15 else values[:usual])
            if value is not ABSENT:
                content[key] = copy.deepcopy(value)
        made.append(content)
    return made


def of_transformers(content: dict[str, Any]) -> LlamaConfig | None:
    """``None`` where it refuses."""
    try:
        return LlamaConfig.from_dict(copy.deepcopy(content))
    except Exception:
        return None


def expected(theirs: LlamaConfig) -> Llama3Config | None:
    """The same configuration of ours; ``None`` where the model cannot be of that kind."""
    rope = theirs.rope_parameters
    heads = theirs.num_attention_heads
    scaling = None
    if rope["rope_type"] == "llama3":
        if not {*SCALING, "original_max_position_embeddings"} <= {key for key in rope if rope[key]}:
            return None
        scaling = RopeScaling(
            factor=rope["factor"], low_freq_factor=rope["low_freq_factor"],
            high_freq_factor=rope["high_freq_factor"], original_context=rope["original_max_position_embeddings"],
        )  # fmt: skip
    sizes = (
        theirs.vocab_size, theirs.hidden_size, theirs.intermediate_size, theirs.num_hidden_layers, heads,
        theirs.num_key_value_heads,
    )  # fmt: skip
    possible = (
        all(size is not None and size > 0 and not isinstance(size, bool) for size in sizes)
        and theirs.hidden_size % heads == 0
        and theirs.head_dim == theirs.hidden_size // heads
        and theirs.head_dim % 2 == 0
        and heads % theirs.num_key_value_heads == 0
        and theirs.hidden_act in ("silu", "swish")
        and not theirs.attention_bias
        and not theirs.mlp_bias
        and rope["rope_type"] in ("default", "llama3")
        and isinstance(rope["rope_theta"], int | float)
        and rope.get("partial_rotary_factor") in (None, 1.0)
    )
    if not possible:
        return None
    return Llama3Config(
        dim=theirs.hidden_size, n_layers=theirs.num_hidden_layers, n_heads=heads,
        n_kv_heads=theirs.num_key_value_heads, hidden_dim=theirs.intermediate_size,
        vocab_size=theirs.vocab_size, norm_eps=theirs.rms_norm_eps, rope_theta=rope["rope_theta"],
        rope_scaling=scaling, tie_embeddings=theirs.tie_word_embeddings,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # transformers' own, of odd values
def test_what_llama_config_reads_is_read_alike(adapter: HFAdapter) -> None:
    outcomes: Counter[str] = Counter()
    for content in contents(2000):
        theirs = of_transformers(content)
        wanted = None if theirs is None else expected(theirs)
        try:
            ours = read_config(adapter, content, what="it")
        except CheckpointError:
            ours = None
        if theirs is None:
            outcomes["transformers refuses"] += 1
        else:
            outcomes["read" if wanted else "not this model"] += 1
            assert ours == wanted, content
            facts = facts_of({**adapter.defaults, **content})
            assert facts.positions == (theirs.max_position_embeddings or None), content
            assert facts.tokens is not None
            assert facts.tokens.bos_id == theirs.bos_token_id, content
            ends = theirs.eos_token_id
            assert list(facts.tokens.eos_ids) == (
                ends if isinstance(ends, list) else [ends] if ends is not None else []
            )
            assert facts.tokens.pad_id == theirs.pad_token_id, content
    assert min(outcomes[kind] for kind in ("read", "not this model", "transformers refuses")) > 100, outcomes


def test_a_folder_without_architectures_is_known_by_its_model_type(adapter: HFAdapter) -> None:
    content = LlamaConfig(tie_word_embeddings=True).to_dict() | {"architectures": None}
    wanted = expected(LlamaConfig(tie_word_embeddings=True))
    assert read_config(adapter, content, what="it") == wanted
    with pytest.raises(CheckpointError, match="is none of the flavors of llama3"):
        identify(Plugins.discover(), content, model=None, flavor=None, what="it")
    with pytest.raises(CheckpointError, match="cannot tell which model it is of: it names no architecture"):
        identify(Plugins.discover(), content | {"model_type": "gpt2"}, model=None, flavor=None, what="it")


def test_the_defaults_are_those_of_transformers() -> None:
    theirs = LlamaConfig().to_dict()
    theirs["rope_theta"] = theirs["rope_parameters"]["rope_theta"]
    derived = {"num_key_value_heads": None, "head_dim": None}
    assert {**{key: theirs[key] for key in LLAMA_DEFAULTS}, **derived} == LLAMA_DEFAULTS
