"""``hekaton flux preprocess``: what it writes, a run that reads it without the encoders, and folders that do not fit."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import hekaton
from hekaton.cli import main
from hekaton.errors import ConfigError, DataError
from hekaton_flux import encoded, pretrained
from hekaton_flux.encoder_choice import frozen_encoders
from hekaton_flux.images import build
from hekaton_flux.settings import FlowMatchingSection

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
    "flow_matching.sample_freq": 0,
    "training.local_batch_size": 4,
    "training.steps": 2,
    "validation.enable": False,
    "checkpoint.enable": False,
    "metrics.enable_tensorboard": False,
    "metrics.log_freq": 1,
    "lr_scheduler.warmup_steps": 1,
}
FLAGS = ["--flow_matching.image_size", "32", "--flow_matching.sample_prompts", "a red circle,a blue square"]


def preprocess(folder, *words):
    return main(["flux", "preprocess", FILE, "--out", str(folder), *FLAGS, *words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """In float32, in shards of 40 and 10 images."""
    folder = tmp_path_factory.mktemp("encoded") / "set"
    images = pytest.MonkeyPatch()
    images.setattr("hekaton_flux.images.TRAINING", 50)
    try:
        assert preprocess(folder, "--precision", "float32", "--shard_images", "40") == 0
    finally:
        images.undo()
    return folder


def section(folder, **settings):
    return FlowMatchingSection(**{"image_size": 32, "text_length": 4, "encoded": str(folder), **settings})


def test_what_is_read_is_what_the_encoders_gave(folder):
    found = encoded.build(section(folder), None)
    assert [path.name for path in sorted(folder.glob("*latents.npy"))] == [
        "00000-latents.npy",
        "00001-latents.npy",
    ]
    assert len(found) == 50
    shapes = build(section(folder, encoded=""), None)
    encoders = frozen_encoders(section(folder, encoded=""))
    for at, image in zip((45, 3), found.fetch([45, 3]), strict=True):
        (drawn,) = shapes.fetch([at])
        latents, std = encoders.image(drawn.pixels)
        text, pooled = encoders.text(drawn.text)
        for ours, theirs in zip(
            (image.latents, image.latents_std, image.text, image.pooled),
            (latents, std, text, pooled),
            strict=True,
        ):
            assert np.array_equal(ours, theirs)
    stored = frozen_encoders(section(folder))
    assert stored.fingerprint == encoders.fingerprint
    for text in ("", "a blue square"):
        assert np.array_equal(stored.text(text)[0], encoders.text(text)[0])
    with pytest.raises(ConfigError, match="has no encoding of the text 'a cat'"):
        stored.text("a cat")


def test_a_run_on_it_is_the_run_with_the_encoders(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("hekaton_flux.images.TRAINING", 50)
    whole = hekaton.train(FILE, **SMALL, **{"job.dump_folder": str(tmp_path / "a")})
    monkeypatch.setattr(pretrained, "PretrainedEncoders", None)
    monkeypatch.setattr("hekaton_flux.encoder_choice.TrialEncoders", None)
    run = hekaton.train(
        FILE, **SMALL,
        **{"job.dump_folder": str(tmp_path / "b"), "training.dataset": "encoded_images", "flow_matching.encoded": str(folder)},
    )  # fmt: skip
    assert [one["loss"] for one in run.metrics] == [one["loss"] for one in whole.metrics]


def test_bfloat16_is_rounded_as_torch_does():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    ours = encoded.from_bits(encoded.to_bits(values, "bfloat16"))
    assert np.array_equal(ours, torch.from_numpy(values).bfloat16().float().numpy())
    assert encoded.to_bits(values, "bfloat16").nbytes == values.nbytes // 2


def test_folders_that_do_not_fit_are_rejected(folder, tmp_path, capsys):
    with pytest.raises(
        DataError, match=r"has no encoded.json: it is not what hekaton flux preprocess writes, or not whole"
    ):
        encoded.check(section(tmp_path), None)
    with pytest.raises(DataError, match=r"with flow_matching.image_size = 32, and the run has 64"):
        encoded.check(section(folder, image_size=64), None)
    with pytest.raises(DataError, match=r"needs flow_matching.encoded"):
        encoded.check(section(""), None)
    assert preprocess(folder) == 2
    assert "has been written already" in capsys.readouterr().err
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in folder.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / "00001-text.npy").write_bytes((folder / "00001-text.npy").read_bytes()[:500])
    with pytest.raises(DataError, match=r"cannot read '.*00001-text.npy'"):
        encoded.build(section(damaged), None)
    (damaged / "encoded.json").write_text(json.dumps({"shards": 3}))
    with pytest.raises(DataError, match=r"cannot read '.*encoded.json'"):
        encoded.build(section(damaged), None)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--training.dataset", "shapes"], "the images of dataset 'shapes' are to be encoded, and flow_matching.encoded"),
        (["--training.dataset", "encoded_images", "--flow_matching.sample_freq", "5", "--flow_matching.sample_prompts", "a cat"],
         "has no encoding of the prompt 'a cat'"),
    ],
)  # fmt: skip
def test_a_configuration_that_needs_the_encoders_is_rejected(flags, message, folder, capsys):
    words = [
        "config",
        "check",
        FILE,
        *FLAGS[:2],
        "--validation.no-enable",
        "--flow_matching.encoded",
        str(folder),
    ]
    assert main([*words, *flags]) == 2
    assert message in capsys.readouterr().err


def test_preprocess_says_what_it_needs(capsys, tmp_path):
    assert main(["flux", "preprocess", FILE]) == 2
    assert "--out FOLDER is missing" in capsys.readouterr().err
    assert preprocess(tmp_path / "x", "--precision", "int8") == 2
    assert "one of bfloat16, float32 was expected" in capsys.readouterr().err
    assert main(["flux", "generat"]) == 2
    assert "did you mean 'generate'?" in capsys.readouterr().err
