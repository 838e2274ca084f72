"""The file that FLUX.1 was published in, as a format of weights."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import hekaton
from hekaton.cli import main
from hekaton.errors import CheckpointError
from hekaton.weights import whole
from hekaton.weights.format import Weights, WriteOptions
from hekaton_flux.diffusers import read_config, table, write_config
from hekaton_flux.model import Flux, FluxConfig
from hekaton_flux.single_file import NAME, SingleFile, config_of
from hekaton_flux.spec import flavors

CONFIG = FluxConfig(
    dim=64, n_heads=2, n_double_blocks=2, n_single_blocks=1, axes=(4, 14, 14), channels=16, text_dim=20, pooled_dim=10,
    guidance=True,
)  # fmt: skip


def published(path):
    """A file with names as black-forest-labs/flux has them: ours, and ``scale`` for the weight of a norm."""
    torch.manual_seed(0)
    model = Flux(CONFIG)
    tensors = {
        name.replace("query_norm.weight", "query_norm.scale").replace(
            "key_norm.weight", "key_norm.scale"
        ): value
        for name, value in model.state_dict().items()
    }
    save_file(tensors, path)
    return model.state_dict(), tensors


def test_it_is_read_as_diffusers_has_it_and_written_as_it_was(tmp_path):
    ours, file = published(tmp_path / "flux1-dev.safetensors")
    save_file({"decoder.conv_in.weight": torch.zeros(1)}, tmp_path / "ae.safetensors")
    weights = SingleFile().open(tmp_path)
    assert read_config(weights.config) == CONFIG
    back = table(CONFIG).from_hf(weights.tensors, what="x")
    assert back.keys() == ours.keys()
    assert all(torch.equal(tensor.read(), ours[name]) for name, tensor in back.items())
    (tmp_path / "out").mkdir()
    SingleFile().write(tmp_path / "out", weights, WriteOptions())
    written = load_file(tmp_path / "out" / NAME)
    assert written.keys() == file.keys()
    assert all(torch.equal(tensor, file[name]) for name, tensor in written.items())


@pytest.mark.parametrize("flavor", ["dev", "schnell"])
def test_its_shapes_tell_the_published_configurations(flavor):
    with torch.device("meta"):
        state = Flux(flavors[flavor]).state_dict()
    shapes = {
        name.replace("_norm.weight", "_norm.scale"): tuple(value.shape) for name, value in state.items()
    }
    assert config_of(shapes) == flavors[flavor]
    lazy = {name: whole(value) for name, value in state.items()}
    assert write_config(config_of(shapes))["guidance_embeds"] == (flavor == "dev")
    assert len(lazy) == len(shapes)


def test_folders_without_one_transformer_are_rejected(tmp_path):
    with pytest.raises(CheckpointError, match=r"has not one file of a FLUX.1 transformer, but none"):
        SingleFile().open(tmp_path)
    published(tmp_path / "a.safetensors")
    published(tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"but a.safetensors, b.safetensors"):
        SingleFile().open(tmp_path)
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"cannot read '.*b.safetensors'"):
        SingleFile().open(tmp_path)


def test_axes_that_the_shapes_do_not_tell_are_refused(tmp_path):
    config = write_config(replace(CONFIG, axes=(8, 12, 12)))
    with pytest.raises(CheckpointError, match=r"cannot say axes = \[8, 12, 12\]: .* of the 32 channels"):
        SingleFile().write(tmp_path, Weights(config=config, tensors={}), WriteOptions(rank=1, ranks=2))
    assert not list(tmp_path.iterdir())


def test_the_commands_convert_a_checkpoint_there_and_back(tmp_path):
    run = hekaton.train(
        model={"name": "flux", "flavor": "debugmodel", "tokenizer": "byte"},
        training={
            "dataset": "shapes",
            "packing": "images",
            "objective": "flow_matching",
            "steps": 1,
            "local_batch_size": 1,
        },
        flow_matching={"image_size": 32, "text_length": 4},
        checkpoint={"enable": True},
        job={"dump_folder": str(tmp_path / "run")},
    )
    step, file, back = tmp_path / "run/checkpoint/step-1", tmp_path / "file", tmp_path / "back"
    assert main(["convert", "to-flux_file", str(step), str(file)]) == 0
    assert [path.name for path in file.iterdir()] == ["flux1.safetensors"]
    words = [
        "convert",
        "from-flux_file",
        str(file),
        str(back),
        "--model_name",
        "flux",
        "--model_flavor",
        "debugmodel",
    ]
    assert main(words) == 0
    found = hekaton.load(back).model.state_dict()  # without a tokenizer, which the model has no use for
    assert all(torch.equal(found.pop(name), value) for name, value in run.model.state_dict().items())
    assert not found
