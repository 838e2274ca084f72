"""Operations of a step as they are counted for TFLOP/s and MFU: beside torch's own counter where a converter has changed
what is trained, which each model's package compares for the model alone, and beside sums by hand for published sizes."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from hekaton.building import build_meta, build_objective, materialize
from hekaton.config import load
from hekaton.contributions import Model
from hekaton.flops import counted_flops
from hekaton.mesh import ParallelDims
from hekaton.plugins import Plugins

SEQ_LEN = 8
"""So short that what torch counts of masked attention, and we do not, is below 1%."""
CPU = torch.device("cpu")


def built(*flags):
    """The model on the meta device, and the inputs of a row."""
    always = ["--training.seq_len", str(SEQ_LEN), "--training.mixed_precision_param", "float32"]
    loaded = load([], [*always, *flags])
    meta = build_meta(loaded.config, loaded.plugins, dims := ParallelDims())
    objective = build_objective(meta, dims, loaded.config, loaded.plugins, device=CPU)
    return meta, {one.name: one.empty(1, device=CPU).zero_() for one in objective.inputs(SEQ_LEN)}


def flops_of_row(meta, inputs):
    shapes = {name: tuple(one.shape[1:]) for name, one in inputs.items()}
    flops = counted_flops(meta, shapes, seq_len=SEQ_LEN)
    return flops * SEQ_LEN if meta.spec.flops_per_unit is not None else flops


@pytest.mark.parametrize(
    ("model", "sizes"),
    [("deepseek_v3", '{"n_layers": 3, "dim": 64}'), ("flux", '{"n_double_blocks": 1, "n_single_blocks": 1}')],
)
def test_weights_that_are_not_trained_count_without_their_gradient(model, sizes):
    """What is left is the first layer's input, whose gradient nothing needs."""
    flags = ["--model.name", model, "--model.flavor", "debugmodel", "--model.overrides", sizes]
    meta, inputs = built(*flags, "--model.converters", "lora")
    ours = flops_of_row(meta, inputs)
    materialize(meta.model, CPU)
    with torch.no_grad():
        for parameter in meta.model.parameters():
            parameter.normal_(0, 0.02)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        meta.model(**inputs).sum().backward()
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.02)


def test_operations_with_adapters_by_hand():
    sizes = '{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "hidden_dim": 24, "vocab_size": 258}'
    flags = ["--model.name", "llama3", "--model.overrides", sizes, "--model.converters", "lora"]
    meta, inputs = built(*flags, "--lora.rank", "4")
    frozen = 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24) + 16 * 258
    adapters = 2 * 4 * (2 * (16 + 16) + 2 * (16 + 8) + 3 * (16 + 24))
    attention = 12 * 2 * 16 * SEQ_LEN / 2
    assert flops_of_row(meta, inputs) == SEQ_LEN * (4 * frozen + 6 * adapters + attention)
    unknown = replace(meta, spec=replace(meta.spec, multiplied=None))
    assert counted_flops(unknown, {"tokens": (SEQ_LEN,)}, seq_len=SEQ_LEN) is None
    assert counted_flops(replace(unknown, converters=()), {}, seq_len=SEQ_LEN) == 6 * frozen + attention


# Model, flavor -> parameters that a token is multiplied by, and per layer of attention its channels (heads x
# mean of the channels of keys and values) times the keys that a query of 16,384 tokens sees on the mean.
LONG = 16_384
BY_HAND = {
    ("llama3", "8B"): (
        32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14_336) + 4096 * 128_256,
        32 * 4096 * LONG / 2,
    ),
    ("llama3", "1B"): (  # tied: the embedding is multiplied as the output, and looked up for nothing
        16 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192) + 2048 * 128_256,
        16 * 2048 * LONG / 2,
    ),
    ("qwen3", "8B"): (
        36 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 12_288) + 4096 * 151_936,
        36 * 4096 * LONG / 2,
    ),
    ("qwen3", "30B-A3B"): (  # 8 of 128 experts
        48 * (2 * 2048 * 4096 + 2 * 2048 * 512 + 2048 * 128 + 8 * 3 * 2048 * 768) + 2048 * 151_936,
        48 * 4096 * LONG / 2,
    ),
    ("llama4", "17bx16e"): (  # 1 of 16 experts and a shared one; 36 of 48 layers see chunks of 8,192
        48 * (2 * 5120**2 + 2 * 5120 * 1024 + 5120 * 16 + 2 * 3 * 5120 * 8192) + 5120 * 202_048,
        36 * 5120 * 8192 / 2 + 12 * 5120 * LONG / 2,
    ),
    ("deepseek_v3", "671B"): (  # 3 dense layers; 8 of 256 experts and a shared one in 58
        61 * (7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168)
        + 3 * 3 * 7168 * 18_432
        + 58 * (7168 * 256 + 9 * 3 * 7168 * 2048)
        + 7168 * 129_280,
        61 * 128 * (192 + 128) / 2 * LONG / 2,
    ),
    ("gpt_oss", "20b"): (  # 4 of 32 experts; every other layer sees 128 tokens
        24 * (2 * 2880 * 4096 + 2 * 2880 * 512 + 2880 * 32 + 4 * 3 * 2880 * 2880) + 2880 * 201_088,
        12 * 4096 * LONG / 2 + 12 * 4096 * (128 - 128**2 / (2 * LONG)),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("model", "flavor"), BY_HAND)
def test_operations_of_published_sizes_by_hand(model, flavor):
    spec = Plugins.discover().get(Model, model).spec.load()
    products, attention = BY_HAND[model, flavor]
    assert spec.flops_per_unit(spec.flavors[flavor], LONG) == 6 * products + 12 * attention
