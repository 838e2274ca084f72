"""Images from noise: steps of the velocity against diffusers' scheduler and transformer, and ``hekaton flux generate``."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from PIL import Image

import hekaton
from hekaton.cli import main
from hekaton.draws import Draw
from hekaton.errors import ConfigError
from hekaton.weights import whole
from hekaton_flux.diffusers import table, write_config
from hekaton_flux.model import patch_positions
from hekaton_flux.sampling import ImageSampling, grid, make_images, times

sys.path.insert(0, str(Path(__file__).parent))
from test_flux import TINY, build

SIDE = (4, 6)
CPU = torch.device("cpu")


class Latents:
    """Encoders of texts that are known, and latents in place of images."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        self.texts = {
            text: (torch.randn(5, 20, generator=generator), torch.randn(10, generator=generator))
            for text in ("a red circle", "two", "")
        }

    def text(self, text):
        return tuple(one.numpy() for one in self.texts[text])

    def pixels(self, latents):
        return latents


def sampled(model, prompts, *, rows=8, **settings):
    sampling = ImageSampling(**{"steps": 3, "guidance": 3.5, "seed": 7, "size": (32, 48), **settings})
    with torch.no_grad():
        return list(
            make_images(
                lambda inputs: model(**inputs), model.config, Latents(), prompts, sampling, device=CPU,
                dtype=torch.float32, rows=rows,
            )
        )  # fmt: skip


def of_diffusers(model, prompt, *, guidance):
    """The same with diffusers' transformer, its scheduler, and noise as its pipeline packs it."""
    config = model.config
    content = {key: value for key, value in write_config(config).items() if key != "_class_name"}
    theirs = FluxTransformer2DModel(**content)
    tensors = {name: whole(value.detach()) for name, value in model.state_dict().items()}
    made = table(config).to_hf(tensors, what="x")
    theirs.load_state_dict({name: tensor.read() for name, tensor in made.items()})
    # scheduler_config.json of FLUX.1-dev, and of FLUX.1-schnell.
    settings = {"use_dynamic_shifting": True, "shift": 3.0} if config.guidance else {"shift": 1.0}
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256, base_shift=0.5, max_image_seq_len=4096, max_shift=1.15, **settings
    )
    patches = SIDE[0] // 2 * (SIDE[1] // 2)
    mu = calculate_shift(patches) if config.guidance else None
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 3, 3), mu=mu)
    latents = Draw(seed=7, step=0, rows=[0], device=CPU, purpose="images").normal(
        "noise", (patches, config.channels)
    )

    def velocity(text, at):
        states, pooled = Latents().texts[text]
        return theirs(
            hidden_states=latents, encoder_hidden_states=states[None], pooled_projections=pooled[None],
            timestep=at, guidance=torch.tensor([guidance]) if config.guidance else None,
            img_ids=patch_positions(*SIDE).float(), txt_ids=torch.zeros(5, 3),
        ).sample  # fmt: skip

    with torch.no_grad():
        for step in scheduler.timesteps:
            found = velocity(prompt, step[None] / 1000)
            if not config.guidance and guidance != 1:
                empty = velocity("", step[None] / 1000)
                found = empty + guidance * (found - empty)
            latents = scheduler.step(found, step, latents).prev_sample
    from diffusers import FluxPipeline

    return FluxPipeline._unpack_latents(latents, 8 * SIDE[0], 8 * SIDE[1], 8)[0].numpy()


@pytest.mark.parametrize(("takes_scale", "guidance"), [(True, 3.5), (False, 2.0), (False, 1.0)])
def test_steps_of_the_velocity_are_those_of_diffusers(takes_scale, guidance):
    model = build(replace(TINY, guidance=takes_scale))
    (ours,) = sampled(model, ["a red circle"], guidance=guidance)
    theirs = of_diffusers(model, "a red circle", guidance=guidance)
    assert ours.shape == theirs.shape == (3, 4, 6)
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_an_image_does_not_depend_on_those_beside_it():
    model = build(replace(TINY, guidance=False))
    alone = sampled(model, ["a red circle", "two", "two"], rows=1)
    together = sampled(model, ["a red circle", "two", "two"], rows=3)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)
    assert not np.allclose(alone[1], alone[2]), "two images of a prompt have noise of their own"
    assert not np.allclose(sampled(model, ["two"], seed=8)[0], sampled(model, ["two"])[0])


def test_published_schedules():
    assert times(4, 4096, shifted=False).tolist() == [1, 0.75, 0.5, 0.25, 0]
    # exp(1.15) / (exp(1.15) + 1 / t - 1), of the paper's largest images.
    shift = math.exp(1.15)
    expected = [shift / (shift + 1 / t - 1) for t in (1, 0.75, 0.5, 0.25)]
    assert times(4, 4096, shifted=True).tolist() == pytest.approx([*expected, 0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": (40, 64)}, "a multiple of 16, and at most 4096\n  the nearest is 32"),
        ({"size": (64, 8192)}, "an image side of 8192 pixels"),
        ({"steps": 0}, "steps = 0"),
        ({"guidance": -1.0}, "a scale from 0 to 100"),
    ],
)
def test_images_that_cannot_be_made_are_rejected(wrong, message):
    with pytest.raises(ConfigError, match=message):
        ImageSampling(**{"steps": 3, "guidance": 1.0, "seed": 0, "size": (64, 64), **wrong})


def test_a_grid_has_images_row_by_row():
    images = [np.full((2, 3, 3), value, np.uint8) for value in (1, 2, 3)]
    whole_grid = grid(images, columns=2, gap=1)
    assert whole_grid[..., 0].tolist() == [
        [1, 1, 1, 255, 2, 2, 2], [1, 1, 1, 255, 2, 2, 2], [255] * 7,
        [3, 3, 3, 255, 255, 255, 255], [3, 3, 3, 255, 255, 255, 255],
    ]  # fmt: skip


FILE = str(Path(__file__).parents[1] / "train_configs/debug_model.toml")
SMALL = {
    "model.overrides": {
        "dim": 48,
        "n_heads": 2,
        "n_double_blocks": 1,
        "n_single_blocks": 1,
        "axes": [4, 10, 10],
    },
    "flow_matching.image_size": 32,
    "flow_matching.sample_freq": 2,
    "flow_matching.sample_steps": 2,
    "flow_matching.sample_prompts": ["a red circle", "a blue square"],
    "training.local_batch_size": 4,
    "training.steps": 3,
    "validation.freq": 3,
    "validation.local_batch_size": 4,
    "validation.steps": 4,
    "lr_scheduler.warmup_steps": 1,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = hekaton.train(FILE, **SMALL, **{"job.dump_folder": str(folder)})
    return folder, run


def test_a_run_shows_images_of_its_prompts_in_tensorboard(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = trained
    events = EventAccumulator(str(folder / "tb"))
    events.Reload()
    assert events.Tags()["images"] == ["samples/a red circle", "samples/a blue square"]
    shown = events.Images("samples/a red circle")
    assert [image.step for image in shown] == [2, 3]
    assert (shown[0].width, shown[0].height) == (32, 32)


def test_a_validation_says_the_loss_at_each_time(trained):
    _, run = trained
    (metrics,) = [one for one in run.metrics if "validation_loss" in one]
    parts = [metrics[f"validation_loss/time_{(part + 0.5) / 8:.4f}"] for part in range(8)]
    # 16 rows, two at each time: the loss as a whole is the mean of the parts.
    assert metrics["validation_loss"] == pytest.approx(sum(parts) / 8, rel=1e-5)
    assert all(part > 0 for part in parts)
    assert not any(
        "time_" in name for one in run.metrics for name in one if not name.startswith("validation")
    )


def test_a_validation_does_not_depend_on_how_many_images_are_in_a_batch(tmp_path, monkeypatch):
    monkeypatch.setattr("hekaton_flux.images.VALIDATION", 5)
    found = []
    for rows in (8, 2):
        settings = {
            **SMALL, "job.dump_folder": str(tmp_path / str(rows)), "training.steps": 1, "validation.freq": 1,
            "flow_matching.sample_freq": 0, "validation.local_batch_size": rows, "validation.steps": -1,
            "checkpoint.enable": False, "metrics.enable_tensorboard": False, "training.local_batch_size": 1,
        }  # fmt: skip
        metrics = hekaton.train(FILE, **settings).metrics[-1]
        found.append({name: value for name, value in metrics.items() if name.startswith("validation_loss")})
    # Of five images none has one of the last three times.
    assert [name for name in found[0] if "time_" in name] == [
        f"validation_loss/time_{(part + 0.5) / 8:.4f}" for part in range(5)
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-5)


def test_a_validation_with_bad_images_does_not_depend_on_it_either(tmp_path):
    for number in range(7):
        Image.fromarray(np.full((32, 32, 3), 30 * number, np.uint8)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a square")
    for number in (1, 2, 5):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    found = {}
    for rows, steps in ((3, 2), (1, 6), (7, -1), (2, -1)):
        settings = {
            **SMALL, "job.dump_folder": str(tmp_path / f"{rows}"), "training.steps": 1, "validation.freq": 1,
            "flow_matching.sample_freq": 0, "validation.local_batch_size": rows, "validation.steps": steps,
            "checkpoint.enable": False, "metrics.enable_tensorboard": False, "training.local_batch_size": 1,
            "validation.dataset": "image_folder", "validation.dataset_path": str(tmp_path),
            "flow_matching.max_bad_images": 3,
        }  # fmt: skip
        found[rows] = hekaton.train(FILE, **settings).metrics[-1]["validation_loss"]
    assert found[3] == pytest.approx(found[1], rel=1e-5)
    assert found[7] == pytest.approx(found[2], rel=1e-5)
    assert found[7] != pytest.approx(found[1], rel=1e-5)


def pixels(path):
    with Image.open(path) as opened:
        return np.asarray(opened).astype(int)


def test_generate_writes_images_of_a_run(trained, tmp_path, capsys):
    folder, _ = trained
    words = [
        "flux",
        "generate",
        "--checkpoint",
        str(folder),
        "--prompt",
        "a red circle",
        "--steps",
        "2",
        "--device",
        "cpu",
    ]
    assert main([*words, "--count", "3", "--out", str(tmp_path / "a.png")]) == 0
    assert "3 image(s) by " in capsys.readouterr().out
    assert pixels(tmp_path / "a.png").shape == (2 * 32 + 2, 2 * 32 + 2, 3)
    assert main([*words, "--count", "3", "--out", str(tmp_path / "b.png"), "--batch_size", "1"]) == 0
    assert main([*words, "--count", "3", "--out", str(tmp_path / "c.png"), "--seed", "1"]) == 0
    a, b, c = (pixels(tmp_path / f"{name}.png") for name in "abc")
    assert np.abs(a - b).max() <= 1
    assert np.abs(a - c).max() > 1
    assert main([*words, "--size", "48x16", "--out", str(tmp_path / "d.png")]) == 0
    assert pixels(tmp_path / "d.png").shape == (16, 48, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "x.jpg"], "the name of a .png file was expected"),
        (["--out", "missing/x.png"], "there is no folder"),
        (["--out", "."], "the name of a .png file was expected"),
        (["--out", "folder.png"], "it is a folder"),
        (["--guidance", "-1"], "--guidance -1: a scale from 0 to 100 was expected"),
        (["--seed", "-1"], "--seed -1: a number from 0 to 18,446,744,073,709,551,615 was"),
        (["--text_length", "5000"], "--text_length 5000: a number from 1 to 4,096 was expected"),
        (["--size", "big"], "WIDTHxHEIGHT was expected"),
        (["--size", "40x40"], "multiple of 16"),
        (["--count", "5000"], "--count 5000: a number from 1 to 4,096 was expected"),
        (
            ["--count", "17", "--size", "4096x4096"],
            "17 images of 4096x4096 pixels are too many for one file: at most 16",
        ),
        (["--text_encoder", "missing"], "names some encoders, and not pooled_encoder, autoencoder"),
    ],
)
def test_generate_rejects_what_it_cannot_do(words, message, trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    folder, _ = trained
    given = dict(zip(words[::2], words[1::2], strict=True))
    out = [] if "--out" in given else ["--out", "x.png"]
    assert main(["flux", "generate", "--checkpoint", str(folder), "--prompt", "a", *out, *words]) == 2
    assert message in capsys.readouterr().err


def test_a_file_of_too_many_images_is_an_error_before_anything_is_loaded(tmp_path, capsys):
    words = ["--prompt", "a", "--prompt", "b", "--out", str(tmp_path / "x.png"), "--count", "200"]
    assert main(["flux", "generate", "--hf", "missing", *words]) == 2
    assert "400 images of 1024x1024 pixels are too many for one file: at most 256" in capsys.readouterr().err


def test_generate_makes_the_image_of_diffusers_from_a_folder_as_flux_is_published_in(folders, tmp_path):
    from diffusers import FluxPipeline
    from transformers import AutoTokenizer

    folder, t5, clip, autoencoder = folders
    model = build(replace(TINY, guidance=False, channels=12, text_dim=12, pooled_dim=8))
    content = {key: value for key, value in write_config(model.config).items() if key != "_class_name"}
    transformer = FluxTransformer2DModel(**content)
    tensors = {name: whole(value.detach()) for name, value in model.state_dict().items()}
    made = table(model.config).to_hf(tensors, what="x")
    transformer.load_state_dict({name: tensor.read() for name, tensor in made.items()})
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0), vae=autoencoder, transformer=transformer,
        text_encoder=clip, tokenizer=AutoTokenizer.from_pretrained(folder / "clip"),
        text_encoder_2=t5, tokenizer_2=AutoTokenizer.from_pretrained(folder / "t5"),
    )  # fmt: skip
    published = tmp_path / "published"
    pipeline.save_pretrained(published)
    assert not (published / "text_encoder_2/tokenizer.json").exists()
    words = [
        "flux", "generate", "--hf", str(published), "--prompt", "a red circle", "--out", str(tmp_path / "x.png"),
        "--steps", "3", "--size", "48x32", "--text_length", "4", "--seed", "7", "--device", "cpu",
    ]  # fmt: skip
    assert main(words) == 0
    noise = Draw(seed=7, step=0, rows=[0], device=CPU, purpose="images").normal("noise", (2 * 3, 12))
    (theirs,) = pipeline(
        "a red circle", height=32, width=48, num_inference_steps=3, guidance_scale=0.0, latents=noise,
        max_sequence_length=4,
    ).images  # fmt: skip
    ours = np.asarray(Image.open(tmp_path / "x.png")).astype(int)
    assert ours.shape == (32, 48, 3)
    assert ours.std() > 1
    assert np.abs(ours - np.asarray(theirs)).max() <= 1


def test_guidance_needs_a_model_that_knows_it(trained, tmp_path, capsys):
    """As schnell: without the scale as an input, and not trained with dropped texts."""
    folder, run = trained
    assert (
        main(["convert", "to-hf", str(folder / "checkpoint/step-3"), str(tmp_path / "hf/transformer")]) == 0
    )
    words = [
        "flux",
        "generate",
        "--hf",
        str(tmp_path / "hf"),
        "--prompt",
        "a",
        "--out",
        str(tmp_path / "x.png"),
        "--device",
        "cpu",
    ]
    capsys.readouterr()
    assert main([*words, "--guidance", "3"]) == 2
    assert "takes no guidance scale, and was not trained with dropped texts" in capsys.readouterr().err
    assert main(words) == 2
    assert "the encoders are missing" in capsys.readouterr().err
    # The folder is one that diffusers reads.
    theirs = FluxTransformer2DModel.from_pretrained(tmp_path / "hf/transformer")
    assert sum(one.numel() for one in theirs.parameters()) == sum(
        one.numel() for one in run.model.parameters()
    )
