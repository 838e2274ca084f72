"""Flux trains from its TOML file: the loss falls, a resumed run is the same run, and so are other layouts; with
adapters, in float8, compiled, and with its blocks recomputed."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hekaton
from hekaton.testing import check_layouts, run_command
from hekaton_flux.images import draw

FILE = str(Path(__file__).parents[1] / "train_configs/debug_model.toml")
SMALL = {
    "model.overrides": {
        "dim": 48,
        "n_heads": 2,
        "n_double_blocks": 1,
        "n_single_blocks": 1,
        "axes": [4, 10, 10],
    },
    "flow_matching.image_size": 64,
    "flow_matching.sample_freq": 0,
    "training.local_batch_size": 8,
    "lr_scheduler.total_steps": 12,
    "lr_scheduler.warmup_steps": 2,
    "validation.enable": False,
    "metrics.enable_tensorboard": False,
    "metrics.log_freq": 1,
}


def train(folder, steps, **settings):
    given = {**SMALL, "job.dump_folder": str(folder), "training.steps": steps, **settings}
    return hekaton.train(FILE, **given)


def losses(run):
    return [metrics["loss"] for metrics in run.metrics]


def flag(name, value):
    section, _, field = name.rpartition(".")
    if isinstance(value, bool):
        return [f"--{section}.{field}" if value else f"--{section}.no-{field}"]
    return [f"--{name}", value if isinstance(value, str) else json.dumps(value)]


def test_the_loss_falls_and_a_resumed_run_is_bit_identical(tmp_path):
    whole = train(tmp_path / "whole", 12)
    assert sum(losses(whole)[-3:]) < 0.9 * sum(losses(whole)[:3])
    assert "images_per_second" in whole.metrics[0]
    train(tmp_path / "parts", 7)
    resumed = train(tmp_path / "parts", 12)
    assert losses(resumed) == losses(whole)[7:]
    theirs = whole.model.state_dict()
    for name, value in resumed.model.state_dict().items():
        assert torch.equal(value, theirs[name]), name
    assert not any("encoder" in name for name in theirs)


def test_a_run_reads_tar_shards(tmp_path, monkeypatch):
    from hekaton_flux import images
    from hekaton_flux.settings import FlowMatchingSection

    monkeypatch.setenv("HEKATON_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(images, "TRAINING", 24)
    drawn = images.build(FlowMatchingSection(image_size=64), None)
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for at, image in enumerate(drawn.fetch(range(24))):
            file = io.BytesIO()
            Image.fromarray(image.pixels).save(file, "PNG")
            for name, data in {f"{at}.png": file.getvalue(), f"{at}.txt": image.text.encode()}.items():
                header = tarfile.TarInfo(name)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    settings = {"checkpoint.enable": False}
    shapes = train(tmp_path / "shapes", 4, **settings)
    read = train(
        tmp_path / "tars", 4, **settings,
        **{"training.dataset": "webdataset", "training.dataset_path": str(tmp_path / "0.tar")},
    )  # fmt: skip
    # PNG keeps every pixel, and an order follows from the number of documents.
    assert losses(read) == losses(shapes)


def test_guidance_is_refused_where_the_model_takes_none(capsys):
    from hekaton.cli import main

    assert main(["config", "check", FILE, "--flow_matching.guidance", "3.5"]) == 2
    assert "flux debugmodel takes no guidance scale" in capsys.readouterr().err
    overrides = ["--model.overrides", '{"guidance": true}']
    assert main(["config", "check", FILE, "--flow_matching.guidance", "3.5", *overrides]) == 0
    assert main(["config", "check", FILE, "--flow_matching.image_size", "72"]) == 2
    assert "multiple of 16" in capsys.readouterr().err


@pytest.mark.slow
def test_replicas_of_shards_compute_what_one_process_does():
    """Layouts of two processes: tests/test_conformance.py."""
    flags = [
        FILE, "--model.overrides", '{"n_double_blocks": 1, "n_single_blocks": 1}', "--flow_matching.image_size", "64",
        "--validation.enable", "false", "--checkpoint.enable", "false", "--lr_scheduler.warmup_steps", "2",
        "--metrics.enable_tensorboard", "false", "--flow_matching.sample_freq", "0",
    ]  # fmt: skip
    check_layouts(*flags, layouts=["replicate2 shard2"])


def shown(folder):
    """The image that a run made after its last step, and the losses of its validation."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tb"))
    events.Reload()
    *_, image = events.Images("samples/a red circle")
    with Image.open(io.BytesIO(image.encoded_image_string)) as opened:
        pixels = np.asarray(opened).astype(int)
    names = ("", "/time_0.0625", "/time_0.5625")
    return pixels, [events.Scalars(f"validation_loss{name}")[-1].value for name in names]


@pytest.mark.slow
def test_images_and_validation_are_those_of_one_process_on_other_layouts(tmp_path):
    """Of five images to validate on, which no number of rows divides."""
    data = tmp_path / "data"
    data.mkdir()
    for at in range(5):
        pixels = draw("red", "circle", size=64, center=(0.5, 0.3 + 0.1 * at), radius=0.3)
        Image.fromarray(pixels).save(data / f"{at}.png")
        (data / f"{at}.txt").write_text("a red circle")
    shared = {
        **SMALL, "model.overrides": {"n_double_blocks": 1, "n_single_blocks": 1}, "training.steps": 2,
        "flow_matching.sample_freq": 2, "flow_matching.sample_steps": 2, "flow_matching.sample_prompts": ["a red circle"],
        "training.global_batch_size": 4, "training.local_batch_size": 4, "checkpoint.enable": False,
        "metrics.enable_tensorboard": True, "validation.enable": True, "validation.dataset": "image_folder",
        "validation.dataset_path": str(data), "validation.steps": -1, "validation.local_batch_size": 4,
    }  # fmt: skip
    hekaton.train(FILE, **shared, **{"job.dump_folder": str(tmp_path / "one")})
    pixels, losses = shown(tmp_path / "one")
    for name, settings in {
        "tp2": {"parallelism.tensor_parallel_degree": 2},
        "cp2": {"parallelism.context_parallel_degree": 2, "validation.local_batch_size": 3},
        "shard2": {"training.local_batch_size": 2, "validation.local_batch_size": 1},
    }.items():
        given = {**shared, **settings, "job.dump_folder": str(tmp_path / name)}
        flags = [word for field, value in given.items() for word in flag(field, value)]
        done = run_command("train", FILE, *flags, processes=2)
        assert done.returncode == 0, done.stderr
        here, validated = shown(tmp_path / name)
        assert np.abs(here - pixels).max() <= 1, name
        assert validated == pytest.approx(losses, rel=1e-5), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's, when it compiles
def test_adapters_float8_compilation_and_recomputation_are_the_core_s_own(tmp_path):
    settings = {"checkpoint.enable": False}
    plain = losses(train(tmp_path / "plain", 3, **{"checkpoint.interval": 3}))
    recomputed = train(tmp_path / "full", 3, **settings, **{"activation_checkpoint.mode": "full"})
    assert losses(recomputed) == plain
    compiled = {"compile.enable": True, "compile.backend": "aot_eager", "activation_checkpoint.mode": "full"}
    assert losses(train(tmp_path / "compiled", 3, **settings, **compiled)) == pytest.approx(plain, rel=1e-5)
    float8 = {"quantize.linear.float8.emulate": True, "quantize.linear.float8.recipe_name": "rowwise"}
    converted = train(
        tmp_path / "float8", 3, **settings, **float8, **{"model.converters": ["quantize.linear.float8"]}
    )
    classes = {base.__name__ for module in converted.model.modules() for base in type(module).__mro__}
    assert "Float8Linear" in classes
    assert losses(converted) == pytest.approx(plain, rel=0.02)
    # Adapters start from a trained model: the last layer of a new one is 0, and so would their gradients be.
    adapters = {
        "model.converters": ["quantize.linear.float8", "lora"], "lora.rank": 4, "training.steps": 3,
        "checkpoint.initial_load_path": str(tmp_path / "plain/checkpoint/step-3"), "checkpoint.interval": 3,
    }  # fmt: skip
    adapted = train(tmp_path / "adapted", 3, **float8, **adapters)
    trained = [name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    assert all(metrics["grad_norm"] > 0 for metrics in adapted.metrics)
    shared = {**SMALL, **float8, **adapters, "parallelism.tensor_parallel_degree": 2}
    flags = [word for name, value in shared.items() for word in flag(name, value)]
    done = run_command("train", FILE, *flags, "--metrics.loggers", "jsonl", processes=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = hekaton.runs(tmp_path / "outputs")
    assert losses(run) == pytest.approx(losses(adapted), rel=1e-4)


def test_a_mixture_is_of_images(tmp_path, capsys):
    from hekaton.cli import main

    toml = tmp_path / "mixture.toml"
    toml.write_text(
        '[training]\ndataset = "mixture"\n'
        '[[mixture.sources]]\ndataset = "shapes"\nweight = 0.5\n'
        '[[mixture.sources]]\ndataset = "shapes_validation"\nweight = 0.5\n'
    )
    flags = ["--flow_matching.image_size", "32", "--training.local_batch_size", "4", "--training.steps", "2"]
    flags += ["--validation.no-enable", "--checkpoint.no-enable", "--flow_matching.sample_freq", "0"]
    flags += ["--lr_scheduler.warmup_steps", "0", "--metrics.log_freq", "1"]
    done = run_command("train", FILE, str(toml), *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "mixture from step 1 on: shapes 50.00%, shapes_validation 50.00% of the images" in done.stderr
    assert "mixture: 4 images of shapes, 50.00% of all" in done.stderr
    assert "token" not in done.stderr
    rows = [json.loads(line) for line in (tmp_path / "outputs/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["data/shapes/images"] == 4
    assert main(["data", "stats", FILE, "--documents", "3"]) == 0
    assert "shapes: 3 documents (of 10,000), 3 images, 1.0 in each\n  0 empty\n" in capsys.readouterr().out
