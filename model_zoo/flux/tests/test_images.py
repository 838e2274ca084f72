"""Images with texts: the drawn shapes, the frozen encoders, and rows of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hekaton.cli import main
from hekaton.errors import ConfigError, DataError
from hekaton_flux import images
from hekaton_flux.encoder_choice import frozen_encoders
from hekaton_flux.encoders import TrialEncoders
from hekaton_flux.images import BACKGROUND, COLORS, CaptionedImage, draw
from hekaton_flux.rows import ImageEncoder
from hekaton_flux.settings import FlowMatchingSection

SECTION = FlowMatchingSection(image_size=32, text_length=4)
ENCODERS = TrialEncoders(4)


def test_a_shape_has_its_color_and_area():
    areas = {"circle": np.pi * 0.25**2, "square": (2 * 0.85 * 0.25) ** 2, "triangle": 1.8 * 0.99 * 0.25**2}
    for shape, area in areas.items():
        pixels = draw("red", shape, size=200, center=(0.5, 0.5), radius=0.25)
        inside = (pixels == COLORS["red"]).all(axis=-1)
        assert ((pixels == BACKGROUND).all(axis=-1) | inside).all()
        assert inside.mean() == pytest.approx(area, rel=0.03), shape


def test_an_image_follows_from_its_index():
    shapes = images.build(SECTION, None)
    three, again = shapes.fetch([3])[0], shapes.fetch([9, 3])[1]
    assert three.text == again.text
    assert np.array_equal(three.pixels, again.pixels)
    some = shapes.fetch(range(200))
    assert len({image.text for image in some}) == len(COLORS) * 3
    for image in some:
        there = [name for name, color in COLORS.items() if (image.pixels == color).all(axis=-1).any()]
        assert there == [image.text.split()[1]]
    other = images.build_validation(SECTION, None)
    assert [image.text for image in other.fetch(range(20))] != [image.text for image in some[:20]]
    with pytest.raises(DataError, match="take no dataset_path, but it is set to 'there'"):
        images.check(SECTION, "there")


def test_latents_of_the_encoders_for_trials_are_mean_colors_and_edges():
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :4] = 255
    latents, std = ENCODERS.image(pixels)
    assert latents.shape == (4, 2, 2)
    assert not std.any()
    # Half of the first block is 1, half of it -1; its left half is brighter by 2.
    assert latents[:, 0, 0].tolist() == [0, 0, 0, 2]
    assert latents[:, 1, 1].tolist() == [-1, -1, -1, 0]
    green = np.broadcast_to(np.array(COLORS["green"], np.uint8), (16, 16, 3))
    assert np.array_equal(ENCODERS.pixels(ENCODERS.image(green)[0]), green)


def test_texts_of_the_encoders_for_trials_differ_by_words_and_their_order():
    red, blue = ENCODERS.text("a red circle")[0], ENCODERS.text("a blue circle")[0]
    assert np.array_equal(red[[0, 2, 3]], blue[[0, 2, 3]])
    assert not np.array_equal(red[1], blue[1])
    assert not np.array_equal(ENCODERS.text("circle red")[0], ENCODERS.text("red circle")[0])
    assert not any(values.any() for values in ENCODERS.text(""))


def test_an_image_of_another_size_is_rejected():
    encoder = ImageEncoder(ENCODERS, SECTION)
    image = CaptionedImage(np.zeros((16, 32, 3), np.uint8), "")
    with pytest.raises(
        DataError, match=r"an image has the shape \(16, 32, 3\), flow_matching.image_size is 32"
    ):
        encoder.encode(list(encoder.cut(image)))


def test_encoders_are_named_all_or_none(tmp_path):
    with pytest.raises(ConfigError, match="names some encoders, and not pooled_encoder, autoencoder"):
        frozen_encoders(FlowMatchingSection(text_encoder=str(tmp_path)))
    missing = str(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"flow_matching.text_encoder = '.*missing' is no folder"):
        frozen_encoders(
            FlowMatchingSection(text_encoder=missing, pooled_encoder=missing, autoencoder=missing)
        )


def test_pretrained_encoders_give_what_transformers_and_diffusers_do(folders):
    folder, t5, clip, autoencoder = folders
    paths = {"text_encoder": "t5", "pooled_encoder": "clip", "autoencoder": "autoencoder"}
    section = FlowMatchingSection(text_length=4, **{name: str(folder / path) for name, path in paths.items()})
    encoders = frozen_encoders(section)
    assert encoders is frozen_encoders(section)
    states, pooled = encoders.text("a red circle")
    with torch.no_grad():
        assert torch.equal(torch.from_numpy(states), t5(torch.tensor([[2, 3, 5, 0]])).last_hidden_state[0])
        ids = torch.tensor([[2, 3, 5, 0, 0, 0, 0]])
        assert torch.equal(torch.from_numpy(pooled), clip(ids).pooler_output[0])
        pixels = draw("blue", "circle", size=32, center=(0.5, 0.5), radius=0.3)
        found = autoencoder.encode(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1).latent_dist
    latents, std = map(torch.from_numpy, encoders.image(pixels))
    assert latents.shape == (3, 4, 4)
    torch.testing.assert_close(latents, 0.3611 * (found.mean[0] - 0.1159))
    torch.testing.assert_close(std, 0.3611 * found.std[0])
    assert (encoders.sizes.latent_channels, encoders.sizes.text_dim, encoders.sizes.pooled_dim) == (3, 12, 8)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--training.packing", "documents"],
            "makes rows of tokens, and dataset 'shapes' gives images with texts",
        ),
        (
            ["--training.dataset", "python_stdlib"],
            "rows of images with texts, and dataset 'python_stdlib' gives tokens",
        ),
        (
            ["--model.name", "llama3"],
            "makes rows of images with texts, and objective 'next_token' is computed from tokens",
        ),
        (
            ["--model.name", "llama3", "--training.objective", "flow_matching"],
            "objective 'flow_matching' trains the model flux",
        ),
    ],
)
def test_what_is_made_for_images_is_refused_with_what_is_made_for_texts(flags, said, capsys):
    file = str(Path(__file__).parents[1] / "train_configs/debug_model.toml")
    assert main(["config", "check", file, *flags]) == 2
    assert said in capsys.readouterr().err


CP, TP = (f"--parallelism.{name}_parallel_degree" for name in ("context", "tensor"))


@pytest.mark.parametrize(
    ("flags", "said", "hint"),
    [
        (
            [CP, "3", "--training.seq_len", "60"],
            "'img' has a sequence of 16, which is not divisible by context_parallel_degree = 3 (twice",
            "choose a flow_matching.image_size with which it is a multiple of 6",
        ),
        (
            [CP, "2", "--flow_matching.text_length", "5"],
            "'txt' has a sequence of 5, which is not divisible by context_parallel_degree = 2",
            "from: --flow_matching.text_length; ",
        ),
        (
            [TP, "5"],
            "parallelism.tensor_parallel_degree = 5 does not divide n_heads = 4",
            "choose one of 1, 2, 4",
        ),
    ],
)
def test_sequences_that_cannot_be_cut_are_those_of_images_and_texts(flags, said, hint, capsys):
    file = str(Path(__file__).parents[1] / "train_configs/debug_model.toml")
    assert main(["config", "check", file, *flags]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert hint in err
    assert "seq_len" not in err


def test_text_lengths_do_not_matter_to_a_layout_of_images(capsys):
    file = str(Path(__file__).parents[1] / "train_configs/debug_model.toml")
    sizes = ["--training.seq_len", "63", "--validation.seq_len", "63", CP, "2", TP, "2"]
    assert main(["config", "check", file, *sizes]) == 0, capsys.readouterr().err
