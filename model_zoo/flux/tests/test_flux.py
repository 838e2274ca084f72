"""FLUX.1 against diffusers' FluxTransformer2DModel: velocities, gradients, tables, published sizes; and its objective."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import FluxTransformer2DModel

from hekaton.draws import Draw
from hekaton.errors import CheckpointError, ConfigError
from hekaton.mesh import ParallelDims
from hekaton.objective import ObjectiveContext
from hekaton.weights import whole
from hekaton_flux.diffusers import read_config, single_file_table, table, write_config
from hekaton_flux.model import Flux, FluxConfig, pack, patch_positions, sinusoids, unpack
from hekaton_flux.objective import FlowMatching
from hekaton_flux.settings import FlowMatchingSection
from hekaton_flux.spec import flavors, flops_per_row

TINY = FluxConfig(
    dim=48, n_heads=3, n_double_blocks=1, n_single_blocks=2, axes=(4, 8, 4), channels=12, text_dim=20, pooled_dim=10,
    guidance=True,
)  # fmt: skip


def build(config):
    """With values of which none is what it would be if it were left out."""
    torch.manual_seed(0)
    model = Flux(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.uniform_(0.5, 1.5) if "norm" in name else parameter.normal_(0, 0.2)
            else:
                parameter.normal_(0, 1.5 / math.sqrt(parameter.shape[1]))
    return model


def arguments(config, *, rows=2, height=8, width=12, n_txt=5):
    generator = torch.Generator().manual_seed(1)
    patches = height // 2 * width // 2
    return {
        "img": torch.randn(rows, patches, config.channels, generator=generator),
        "img_ids": patch_positions(height, width).expand(rows, -1, -1),
        "txt": torch.randn(rows, n_txt, config.text_dim, generator=generator),
        "times": torch.tensor([0.13, 0.87])[:rows],
        "y": torch.randn(rows, config.pooled_dim, generator=generator),
        "scales": torch.tensor([1.0, 3.5])[:rows],
    }


@pytest.mark.parametrize("guidance", [True, False])
def test_velocities_and_gradients_are_those_of_diffusers(guidance):
    config = replace(TINY, guidance=guidance)
    model, given = build(config), arguments(config)
    content = {key: value for key, value in write_config(config).items() if key != "_class_name"}
    theirs = FluxTransformer2DModel(**content)
    tensors = table(config).to_hf(
        {name: whole(value.detach()) for name, value in model.state_dict().items()}, what="x"
    )
    theirs.load_state_dict({name: tensor.read() for name, tensor in tensors.items()})
    velocity = model(
        given["img"], given["img_ids"], given["txt"], sinusoids(given["times"]), given["y"],
        sinusoids(given["scales"]) if guidance else None,
    )  # fmt: skip
    expected = theirs(
        hidden_states=given["img"], encoder_hidden_states=given["txt"], pooled_projections=given["y"],
        timestep=given["times"], guidance=given["scales"] if guidance else None,
        img_ids=given["img_ids"][0].float(), txt_ids=torch.zeros(given["txt"].shape[1], 3),
    ).sample  # fmt: skip
    assert (velocity - expected).norm() <= 1e-4 * expected.norm()
    weights = torch.linspace(-1, 1, velocity.numel()).reshape(velocity.shape)
    (velocity * weights).mean().backward()
    (expected * weights).mean().backward()
    gradients = {name: whole(parameter.grad) for name, parameter in theirs.named_parameters()}
    back = table(config).from_hf(gradients, what="gradients")
    for name, parameter in model.named_parameters():
        gradient = back.pop(name).read()
        assert gradient.abs().max() > 0, name
        assert (parameter.grad - gradient).norm() <= 1e-3 * gradient.norm(), name
    assert not back


@pytest.mark.parametrize(("flavor", "parameters"), [("dev", 11_901_408_320), ("schnell", 11_891_178_560)])
def test_the_published_models_have_these_sizes_and_every_name_of_diffusers(flavor, parameters):
    config = flavors[flavor]
    with torch.device("meta"):
        ours = dict(Flux(config).state_dict())
        content = {key: value for key, value in write_config(config).items() if key != "_class_name"}
        theirs = FluxTransformer2DModel(**content).state_dict()
    assert sum(tensor.numel() for tensor in ours.values()) == parameters
    lazy = {name: whole(tensor) for name, tensor in ours.items()}
    made = table(config).to_hf(lazy, what=flavor)
    assert {name: tensor.shape for name, tensor in made.items()} == {
        name: tuple(tensor.shape) for name, tensor in theirs.items()
    }
    assert read_config(write_config(config)) == config


def test_the_single_file_has_our_names_and_a_scale_for_each_norm():
    config = flavors["dev"]
    with torch.device("meta"):
        ours = {name: whole(tensor) for name, tensor in Flux(config).state_dict().items()}
    there = single_file_table(config).to_hf(ours, what="dev")
    # Written out from src/flux/modules/layers.py of black-forest-labs/flux.
    assert there["double_blocks.18.img_attn.norm.query_norm.scale"].shape == (128,)
    assert there["single_blocks.37.norm.key_norm.scale"].shape == (128,)
    assert there["single_blocks.0.linear1.weight"].shape == (21_504, 3_072)
    assert there["double_blocks.0.txt_mod.lin.bias"].shape == (18_432,)
    assert there["final_layer.adaLN_modulation.1.weight"].shape == (6_144, 3_072)
    assert there["guidance_in.in_layer.weight"].shape == (3_072, 256)
    assert len(there) == len(ours) == 780
    assert single_file_table(config).from_hf(there, what="dev").keys() == ours.keys()


def test_a_patch_is_two_by_two_latents_channel_first():
    latents = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6)
    packed = pack(latents)
    # The second patch of the first row of patches: columns 2 and 3 of rows 0 and 1, of each channel.
    assert packed[0, 1].tolist() == [2, 3, 8, 9, 26, 27, 32, 33, 50, 51, 56, 57]
    assert packed.shape == (2, 6, 12)
    assert torch.equal(unpack(packed, 4, 6), latents)
    assert patch_positions(4, 6)[4].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 5}, "n_heads = 5 does not divide dim = 48"),
        ({"axes": (3, 9, 4)}, "turn channels in pairs, one is odd"),
        ({"axes": (4, 8, 8)}, "have 20 channels, a head has dim / n_heads = 16"),
        ({"channels": 10}, "channels = 10: a patch has those of 2 by 2 latents"),
    ],
)
def test_sizes_that_do_not_fit_are_rejected(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(TINY, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 2}, "patch_size = 2: the model flux knows only 1"),
        ({"num_layers": True}, "no model has num_layers = True"),
        ({"axes_dims_rope": [16, 112]}, r"no model has axes_dims_rope = \[16, 112\]"),
        ({"guidance_embeds": "no"}, "no model has guidance_embeds = 'no'"),
    ],
)
def test_a_configuration_of_another_model_is_rejected(change, message):
    with pytest.raises(CheckpointError, match=message):
        read_config({**write_config(TINY), **change})


SECTION = FlowMatchingSection(image_size=64, text_length=5, text_encoder="t5")


def objective(config=TINY, section=SECTION, dtype=torch.float32):
    context = ObjectiveContext(
        device=torch.device("cpu"), dtype=dtype, dims=ParallelDims(), model=config, sequence_is_cut=False
    )
    return FlowMatching(section, context)


def batch(config=TINY, rows=2):
    generator = torch.Generator().manual_seed(2)
    text, pooled = (rows, 5, config.text_dim), (rows, config.pooled_dim)
    shapes = {
        "latents": (rows, 3, 8, 8),
        "text": text,
        "pooled": pooled,
        "empty_text": text,
        "empty_pooled": pooled,
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_the_input_lies_between_latents_and_noise_and_the_target_is_their_difference():
    given = batch(rows=256)
    draw = Draw(seed=0, step=1, rows=range(256), device=torch.device("cpu"))
    section = SECTION.model_copy(update={"logit_mean": 0.5, "logit_std": 0.8})
    inputs, targets = objective(section=section, dtype=torch.bfloat16).prepare(given, draw)
    # What the model is given of a time is computed in float32, and rounded after it.
    latents = pack(given["latents"])
    noise = targets["velocity"] + latents
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    difference = (inputs["img"].float() - latents).flatten(1)
    along = targets["velocity"].flatten(1)
    times = (difference * along).sum(1) / along.square().sum(1)
    logits = times.logit()
    assert abs(logits.mean() - 0.5) < 0.2
    assert abs(logits.std() - 0.8) < 0.15
    assert (difference - times[:, None] * along).abs().max() < 0.05
    assert (inputs["timesteps"].float() - sinusoids(times)).abs().mean() < 0.2
    dropped = (inputs["txt"] == given["empty_text"].bfloat16()).flatten(1).all(1)
    dropped_pooled = (inputs["y"] == given["empty_pooled"].bfloat16()).all(1)
    assert abs(dropped.float().mean() - 0.447) < 0.1
    assert abs(dropped_pooled.float().mean() - 0.447) < 0.1
    assert abs((dropped & dropped_pooled).float().mean() - 0.2) < 0.1
    assert torch.equal(inputs["txt"][~dropped], given["text"].bfloat16()[~dropped])


def test_rows_of_padding_do_not_count():
    draw = Draw(seed=0, step=1, rows=range(2), device=torch.device("cpu"))
    trained = objective()
    inputs, targets = trained.prepare(batch() | {"present": torch.tensor([True, False])}, draw)
    outputs = torch.zeros_like(inputs["img"])
    assert trained.count(targets)["flow_matching"] == 16 * 12
    expected = targets["velocity"][0].square().sum()
    torch.testing.assert_close(trained.loss(outputs, targets)["flow_matching"], expected)


def test_latents_are_drawn_where_the_autoencoder_has_a_distribution_of_them():
    draw = Draw(seed=0, step=1, rows=range(256), device=torch.device("cpu"))
    given = batch(rows=256) | {"latents_std": torch.full((256, 3, 8, 8), 0.5)}
    _, without = objective().prepare(batch(rows=256), draw)
    _, targets = objective().prepare(given, draw)
    drawn = without["velocity"] - targets["velocity"]
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.std() - 0.5) < 0.01


def test_rows_of_text_are_rejected():
    with pytest.raises(
        ConfigError, match="needs latents, text, pooled, and the rows of the dataset have tokens, labels"
    ):
        objective().prepare({"tokens": torch.zeros(1, 4), "labels": torch.zeros(1, 4)}, None)


def test_a_model_that_does_not_take_what_the_encoders_for_trials_give_is_rejected():
    with pytest.raises(ConfigError, match=r"text_dim = 20 \(and not 64\), pooled_dim = 10 \(and not 32\)"):
        objective(section=FlowMatchingSection(image_size=64, text_length=5))


def test_another_model_is_rejected():
    with pytest.raises(ConfigError, match="trains the model flux, not a model with a dict"):
        objective(config={})


@pytest.mark.parametrize("guidance", [True, False])
def test_flops_are_those_that_torch_counts(guidance):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = replace(flavors["debugmodel"], guidance=guidance)
    given = arguments(config, rows=1, height=12, width=12, n_txt=7)
    inputs = {"timesteps": sinusoids(given.pop("times")), "guidance": sinusoids(given.pop("scales")), **given}
    if not guidance:
        del inputs["guidance"]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        Flux(config)(**inputs).sum().backward()
    shapes = {name: tuple(value.shape[1:]) for name, value in inputs.items()}
    assert counter.get_total_flops() == pytest.approx(flops_per_row(config, shapes), rel=1e-6)
