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
    return [f"--{name}", json.dumps(value)]


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


FLAGS = [
    FILE, "--model.overrides", '{"n_double_blocks": 1, "n_single_blocks": 1}', "--flow_matching.image_size", "64",
    "--validation.enable", "false", "--checkpoint.enable", "false", "--lr_scheduler.warmup_steps", "2",
]  # fmt: skip


@pytest.mark.slow
def test_layouts_compute_what_one_process_does_on_drawn_shapes():
    flags = [*FLAGS, "--metrics.enable_tensorboard", "false", "--flow_matching.sample_freq", "0"]
    check_layouts(*flags, layouts=["shard2", "cp2", "tp2", "replicate2 shard2"])


@pytest.mark.slow
def test_images_and_validation_are_those_of_one_process_on_other_layouts(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = [
        *FLAGS, "--training.steps", "1", "--flow_matching.sample_freq", "1", "--flow_matching.sample_steps", "2",
        "--validation.enable", "true", "--validation.steps", "1", "--training.global_batch_size", "4",
        "--flow_matching.sample_prompts", "a red circle", "--training.local_batch_size",
    ]  # fmt: skip
    shown = {}
    for name, processes, layout in (
        ("one", 1, ["4", "--validation.local_batch_size", "8"]),
        ("cp2", 2, ["4", "--validation.local_batch_size", "8", "--parallelism.context_parallel_degree", "2"]),
        ("shard2", 2, ["2", "--validation.local_batch_size", "4"]),
    ):  # fmt: skip
        folder = tmp_path / name
        done = run_command("train", *flags, *layout, "--job.dump_folder", str(folder), processes=processes)
        assert done.returncode == 0, done.stderr
        events = EventAccumulator(str(folder / "tb"))
        events.Reload()
        (image,) = events.Images("samples/a red circle")
        with Image.open(io.BytesIO(image.encoded_image_string)) as opened:
            pixels = np.asarray(opened).astype(int)
        values = [
            events.Scalars(f"validation_loss{part}")[0].value for part in ("", "/time_0.0625", "/time_0.9375")
        ]
        shown[name] = pixels, values
    for name in ("cp2", "shard2"):
        assert np.abs(shown[name][0] - shown["one"][0]).max() <= 1, name
        assert shown[name][1] == pytest.approx(shown["one"][1], rel=1e-5), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's, when it compiles
def test_adapters_float8_compilation_and_recomputation_are_the_core_s_own(tmp_path):
    settings = {"checkpoint.enable": False}
    plain = losses(train(tmp_path / "plain", 3, **settings))
    recomputed = train(tmp_path / "full", 3, **settings, **{"activation_checkpoint.mode": "full"})
    assert losses(recomputed) == plain
    compiled = {"compile.enable": True, "compile.backend": "aot_eager", "activation_checkpoint.mode": "full"}
    assert losses(train(tmp_path / "compiled", 3, **settings, **compiled)) == pytest.approx(plain, rel=1e-5)
    float8 = {"model.converters": ["quantize.linear.float8"], "quantize.linear.float8.emulate": True}
    converted = train(tmp_path / "float8", 3, **settings, **float8)
    classes = {base.__name__ for module in converted.model.modules() for base in type(module).__mro__}
    assert "Float8Linear" in classes
    assert losses(converted) == pytest.approx(plain, rel=0.02)
    shared = {**SMALL, **settings, **float8, "training.steps": 3, "parallelism.tensor_parallel_degree": 2}
    flags = [word for name, value in shared.items() for word in flag(name, value)]
    done = run_command("train", FILE, *flags, "--metrics.loggers", "jsonl", processes=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run,) = hekaton.runs(tmp_path / "outputs")
    assert losses(run) == pytest.approx(losses(converted), rel=1e-4)
    adapted = train(tmp_path / "lora", 3, **settings, **{"model.converters": ["lora"], "lora.rank": 4})
    trained = [name for name, parameter in adapted.model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora" in name for name in trained)
    assert losses(adapted)[0] == plain[0]
