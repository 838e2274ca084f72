"""Folders of encoders that are damaged, incomplete or of something else: errors with the folder's name."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import hekaton
from hekaton.cli import main
from hekaton.errors import ConfigError, DataError
from hekaton_flux import encoder_choice
from hekaton_flux.objective import FlowMatching
from hekaton_flux.pretrained import PretrainedEncoders
from hekaton_flux.settings import FlowMatchingSection
from hekaton_flux.spec import flavors

FILE = str(Path(__file__).parents[1] / "train_configs/debug_model.toml")


def opened(folder, **others):
    names = {"text_encoder": "t5", "pooled_encoder": "clip", "autoencoder": "autoencoder"} | others
    return PretrainedEncoders(
        FlowMatchingSection(text_length=4, **{field: str(folder / name) for field, name in names.items()})
    )


@pytest.fixture
def folder(folders, tmp_path):
    shutil.copytree(folders[0], tmp_path / "encoders")
    return tmp_path / "encoders"


def without_a_weight(path):
    tensors = load_file(path)
    del tensors[min(tensors)]
    save_file(tensors, path, metadata={"format": "pt"})


def set_in(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def with_an_id(path, number):
    content = json.loads(path.read_text())
    content["model"]["vocab"]["circle"] = number
    path.write_text(json.dumps(content))


def without_a_tokenizer(folder):
    for path in folder.glob("token*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda at: (at / "t5/model.safetensors").write_bytes(b"cut"), r"'.*/t5' is no T5EncoderModel: Error while des"),
        (lambda at: without_a_weight(at / "t5/model.safetensors"), "/t5' is no T5EncoderModel: its weights lack encoder.bl"),
        (lambda at: without_a_weight(at / "autoencoder/diffusion_pytorch_model.safetensors"), "its weights lack decoder.conv_in.bias"),
        (lambda at: (at / "clip/config.json").write_text("[]"), "/clip' is no CLIPTextModel"),
        (lambda at: set_in(at / "t5/config.json", d_model="x"), "/t5' is no T5EncoderModel"),
        (lambda at: without_a_tokenizer(at / "t5"), r"text_encoder in '.*/t5' is missing: there is none of .*tokenizer.json"),
        (lambda at: set_in(at / "t5/tokenizer_config.json", pad_token=None), r"/t5' has no pad_token"),
        (lambda at: with_an_id(at / "clip/tokenizer.json", 99), "has ids up to 99, the model 6"),
        (lambda at: set_in(at / "autoencoder/config.json", scaling_factor=0), "and scaling_factor = 0, where"),
    ],
)  # fmt: skip
def test_damaged_and_incomplete_folders_are_rejected(damage, message, folder):
    damage(folder)
    with pytest.raises(ConfigError, match=message):
        opened(folder)


def test_all_encoders_that_are_missing_are_named(tmp_path, capsys):
    (tmp_path / "clip").mkdir()
    given = {"text_encoder": "google/t5", "pooled_encoder": str(tmp_path / "clip"), "autoencoder": "none"}
    flags = [word for field, path in given.items() for word in (f"--flow_matching.{field}", path)]
    assert main(["config", "check", FILE, *flags]) == 2
    err = capsys.readouterr().err
    assert "flow_matching.text_encoder = 'google/t5' is no folder; flow_matching.pooled_encoder = '" in err
    assert "clip' has no config.json; flow_matching.autoencoder = 'none' is no folder\n" in err
    assert "hf download google/t5 --local-dir FOLDER" in err


def test_encoders_in_the_place_of_others_are_rejected(folders):
    """Their weights would be random."""
    with pytest.raises(ConfigError, match=r"/clip' is no T5EncoderModel: its weights lack .* and \d+ more"):
        opened(folders[0], text_encoder="clip", pooled_encoder="t5")


def test_an_encoder_is_known_by_what_is_read_of_its_folder(folder):
    def parts():
        encoder_choice._pretrained.cache_clear()
        return dict(part.split() for part in opened(folder).fingerprint.split(", "))

    before = parts()
    (folder / "t5/.cache/huggingface").mkdir(parents=True)
    (folder / "t5/.cache/huggingface/model.safetensors.metadata").write_text("downloaded at 12:00")
    (folder / "t5/README.md").write_text("T5")
    assert parts() == before
    for field, name in (("text_encoder", "t5"), ("pooled_encoder", "clip"), ("autoencoder", "autoencoder")):
        set_in(folder / name / "config.json", note=1)
        now = parts()
        assert {one for one in before if now[one] != before[one]} == {field}
        before = now


def test_a_run_that_resumes_with_another_encoder_is_refused_by_its_name(folder, tmp_path):
    names = {"text_encoder": "t5", "pooled_encoder": "clip", "autoencoder": "autoencoder"}
    settings = {
        "model.overrides": {
            "dim": 48, "n_heads": 2, "n_double_blocks": 1, "n_single_blocks": 1, "axes": [4, 10, 10],
            "channels": 12, "text_dim": 12, "pooled_dim": 8,
        },
        **{f"flow_matching.{field}": str(folder / name) for field, name in names.items()},
        "flow_matching.image_size": 16, "flow_matching.sample_freq": 0, "training.local_batch_size": 1,
        "validation.enable": False, "metrics.enable_tensorboard": False, "lr_scheduler.warmup_steps": 1,
        "lr_scheduler.total_steps": 2, "job.dump_folder": str(tmp_path / "run"),
    }  # fmt: skip
    hekaton.train(FILE, **settings, **{"training.steps": 1})
    was = opened(folder).fingerprint
    set_in(folder / "clip/config.json", layer_norm_eps=1e-3)
    encoder_choice._pretrained.cache_clear()
    now = opened(folder).fingerprint
    assert [one.split()[0] for one in was.split(", ") if one not in now] == ["pooled_encoder"]
    with pytest.raises(DataError, match=rf"\({re.escape(was)}, .* and is now .*\({re.escape(now)}, "):
        hekaton.train(FILE, **settings, **{"training.steps": 2})


def test_texts_that_are_no_unicode_are_encoded(folders):
    found, expected = (opened(folders[0]).text(text)[0] for text in ("a red \ud800", "a red ?"))
    assert (found == expected).all()


def test_encoders_of_another_model_are_named_with_their_sizes():
    objective = object.__new__(FlowMatching)
    objective._model = flavors["debugmodel"]
    shapes = {"latents": (3, 4, 4), "text": (4, 64), "pooled": (32,)}
    with pytest.raises(ConfigError, match=r"the model has channels = 16 \(and not 12\), which the encoders"):
        objective.prepare({name: torch.zeros(2, *shape) for name, shape in shapes.items()}, None)
