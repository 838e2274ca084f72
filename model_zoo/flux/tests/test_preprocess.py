"""``hekaton flux preprocess``: what it writes, a run that reads it without the encoders, and folders that do not fit."""

import gc
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hekaton
from hekaton.cli import main
from hekaton.errors import ConfigError, DataError
from hekaton.testing import run_processes
from hekaton_flux import encoded, encoder_choice, pretrained
from hekaton_flux.encoder_choice import frozen_encoders
from hekaton_flux.images import build, draw
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
    damaged = copied(folder, tmp_path / "damaged")
    (damaged / "00001-text.npy").write_bytes((folder / "00001-text.npy").read_bytes()[:500])
    with pytest.raises(DataError, match=r"cannot read '.*00001-text.npy'"):
        encoded.build(section(damaged), None)
    (damaged / "encoded.json").write_text(json.dumps({"shards": 3}))
    with pytest.raises(DataError, match=r"cannot read '.*encoded.json'"):
        encoded.build(section(damaged), None)


def copied(folder, to):
    to.mkdir()
    for path in folder.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"precision": "int8"}, "precision: Input should be 'bfloat16' or 'float32'"),
        ({"precision": "bfloat16"}, "00000-latents.npy' has .* of float32, encoded.json says .* of uint16"),
        ({"shards": [40, 9]}, r"00001-latents.npy' has \(10, 4, 4, 4\) .* says \(9, 4, 4, 4\)"),
        ({"shards": [40]}, "the files are not those of the shards and texts"),
        ({"shards": [40, 10, 1]}, "the files are not those of the shards and texts"),
        ({"files": {}}, "the files are not those of the shards and texts"),
        ({"shards": [40, "10"]}, "shards: 1: Input should be a valid integer"),
        ({"shards": [40, -10]}, "shards: 1: Input should be greater than or equal to 1"),
        ({"shards": []}, "shards: Tuple should have at least 1 item"),
        ({"texts": ["", "a red circle"]}, r"texts-text.npy' has \(3, 4, 64\) .* says \(2, 4, 64\)"),
        ({"texts": ["x", "y", "z"]}, "the first of the texts is not the empty one"),
        ({"texts": ["", "y", "y"]}, "one of the texts is there twice"),
        ({"image_size": 32.0}, "image_size: Input should be a valid integer"),
        ({"image_size": 33}, "image_size: Input should be a multiple of 16"),
        ({"text_length": 0}, "text_length: Input should be greater than or equal to 1"),
        ({"sizes": {"latent_channels": 4, "text_dim": True, "pooled_dim": 32}}, "sizes: text_dim: Input should be"),
        ({"sizes": {"latent_channels": 4, "text_dim": 63, "pooled_dim": 32}}, "texts-text.npy' has .* says"),
        ({"encoders": ""}, "encoders: String should have at least 1 character"),
        ({"more": 1}, "more: "),
    ],
)  # fmt: skip
def test_facts_that_are_not_those_of_the_files_are_rejected_before_a_run(
    facts, message, folder, tmp_path, capsys
):
    wrong = copied(folder, tmp_path / "wrong")
    content = json.loads((folder / "encoded.json").read_text())
    (wrong / "encoded.json").write_text(json.dumps(content | facts))
    with pytest.raises(DataError, match=message):
        encoded.check(section(wrong), None)


@pytest.mark.parametrize("name", ["texts-text", "texts-pooled", "00001-pooled"])
def test_arrays_of_another_shape_type_or_content_are_rejected(name, folder, tmp_path):
    wrong = copied(folder, tmp_path / "wrong")
    path = wrong / f"{name}.npy"
    values = np.load(path)
    for other in (values[:-1], values.astype(np.float64), values[None]):
        np.save(path, other)
        with pytest.raises(DataError, match=rf"{name}.npy' has .* says"):
            encoded.check(section(wrong), None)
    with path.open("wb") as opened:
        np.savez(opened, values)
    with pytest.raises(DataError, match=rf"{name}.npy': it is no array"):
        encoded.check(section(wrong), None)
    whole = (folder / f"{name}.npy").read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(
        DataError, match=rf"{name}.npy' has not the content that hekaton flux preprocess wrote"
    ):
        encoded.build(section(wrong), None)


def test_a_missing_array_and_one_too_many_are_rejected(folder, tmp_path):
    wrong = copied(folder, tmp_path / "wrong")
    (wrong / "00001-latents.npy").rename(wrong / "00002-latents.npy")
    with pytest.raises(DataError, match=r"cannot read '.*00001-latents.npy': No such file"):
        encoded.check(section(wrong), None)
    shutil.copy(wrong / "00002-latents.npy", wrong / "00001-latents.npy")
    with pytest.raises(DataError, match=r"has '00002-latents.npy', and encoded.json says 2 shards"):
        encoded.check(section(wrong), None)


def test_an_array_that_is_cut_short_during_a_run_is_an_error(folder, tmp_path):
    whole = copied(folder, tmp_path / "whole")
    images = encoded.build(section(whole), None)
    images.fetch([41])
    with (whole / "00001-text.npy").open("r+b") as opened:
        opened.truncate(200)
    with pytest.raises(DataError, match=r"00001-text.npy' changed since the run started"):
        images.fetch([49])
    assert len(images.fetch([39])) == 1


def test_values_that_rounding_makes_infinite_are_not_written(tmp_path):
    image = encoded.EncodedImage(*(np.full(2, 3.4e38, np.float32) for _ in range(4)))
    with pytest.raises(DataError, match="latents that are not finite in bfloat16"):
        encoded.write_shard(tmp_path, 0, [image], "bfloat16")
    encoded.write_shard(tmp_path, 0, [image], "float32")


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


def encode(words, report):
    """Run by the next test on two processes."""
    assert main(["flux", "preprocess", *words, "--out", f"{report}/out"]) == 0
    (encoders,) = [one for one in gc.get_objects() if isinstance(one, pretrained.PretrainedEncoders)]
    t5 = encoders.of_texts[0]
    parameters = list(t5.parameters())
    sizes = [
        sum(of(one).numel() for one in parameters) for of in (lambda one: one.to_local(), lambda one: one)
    ]
    Path(report, os.environ["RANK"]).write_text(json.dumps(sizes))
    encoder_choice._pretrained.cache_clear()
    none_bad = ["--out", f"{report}/no", "--flow_matching.max_bad_images", "0"]
    assert main(["flux", "preprocess", *words, *none_bad]) == 2


@pytest.mark.slow
def test_processes_share_out_the_images_and_what_the_encoders_are_made_of(folders, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for at in range(9):
        Image.fromarray(draw("red", "circle", size=32, center=(0.5, 0.1 * at), radius=0.3)).save(
            images / f"{at}.png"
        )
        (images / f"{at}.txt").write_text("a red circle" if at % 2 else "a blue circle")
    (images / "4.png").write_bytes(b"no image")
    names = {"text_encoder": "t5", "pooled_encoder": "clip", "autoencoder": "autoencoder"}
    paths = [
        word for name, path in names.items() for word in (f"--flow_matching.{name}", f"{folders[0] / path}")
    ]
    words = [
        FILE, *FLAGS, *paths, "--flow_matching.text_length", "4", "--flow_matching.max_bad_images", "1",
        "--training.dataset", "image_folder", "--training.dataset_path", f"{images}", "--validation.no-enable",
        "--shard_images", "5",
    ]  # fmt: skip
    assert main(["flux", "preprocess", *words, "--out", str(tmp_path / "one")]) == 0
    ranks = run_processes(__file__, "encode", processes=2, words=words, report=str(tmp_path), cwd=tmp_path)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(encoded.build(section(tmp_path / "out"), None)) == 8
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "out" / file).read_bytes(), file
    assert "4.png: it cannot be read as an image" in ranks[0].stderr
    (first, whole), (second, _) = (json.loads((tmp_path / f"{rank}").read_text()) for rank in (0, 1))
    assert first + second == whole
    assert first < 0.7 * whole


def test_preprocess_says_what_it_needs(capsys, tmp_path):
    assert main(["flux", "preprocess", FILE]) == 2
    assert "--out FOLDER is missing" in capsys.readouterr().err
    assert preprocess(tmp_path / "x", "--precision", "int8") == 2
    assert "one of bfloat16, float32 was expected" in capsys.readouterr().err
    assert main(["flux", "generat"]) == 2
    assert "did you mean 'generate'?" in capsys.readouterr().err


def test_one_process_writes_into_a_folder_and_only_into_one_of_its_own(folder, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    assert preprocess(mine) == 2
    assert "mine' is not empty" in capsys.readouterr().err
    assert preprocess(mine / "notes.txt") == 2
    assert "notes.txt' is no folder" in capsys.readouterr().err
    new = tmp_path / "new"
    with pytest.raises(KeyboardInterrupt), encoded.claimed(new):
        (new / "00007-text.npy").write_bytes(b"of an interrupted call")
        assert preprocess(new) == 2
        assert "another process is writing into '" in capsys.readouterr().err
        raise KeyboardInterrupt
    with encoded.claimed(new):
        assert not (new / "00007-text.npy").exists()
    assert not list(new.iterdir())
