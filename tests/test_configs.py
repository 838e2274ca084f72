"""Every TOML file that we ship is right, and its model can be built."""

import json
import math
import re
import tomllib
from pathlib import Path

import pytest

from hekaton.building import build_meta, make_layout
from hekaton.cli import main
from hekaton.config import load
from hekaton.config.base import LONGEST_SECONDS, walk
from hekaton.config.job import config_class
from hekaton.mesh import ParallelDims
from hekaton.plugins import Plugins
from hekaton.rules import check

ROOT = Path(__file__).parents[1]
CONFIGS = sorted(
    path
    for path in ROOT.glob("*/*/train_configs/**/*.toml")
    if not {".venv", "build", "dist"} & set(path.relative_to(ROOT).parts)
)


def test_the_repository_ships_configurations():
    assert ROOT / "model_zoo/llama3/train_configs/debug_model.toml" in CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=[str(path.relative_to(ROOT)) for path in CONFIGS])
def test_config_is_right_and_its_model_builds_on_meta(path):
    world_size = smallest_world(path)
    loaded = load([path])
    assert check(loaded, world_size=world_size, device_type="cuda", here=False) == ()
    dims = ParallelDims.of(loaded.config, world_size=world_size)
    meta = build_meta(loaded.config, loaded.plugins, dims)
    make_layout(meta, dims, loaded.config, loaded.plugins)
    assert next(meta.model.parameters()).device.type == "meta"


WITH_ALL_LAYERS = ("deepseek_v3_671b",)
"""In tests of their own."""
LARGE = [path for path in CONFIGS if not path.stem.startswith(("debug_model", *WITH_ALL_LAYERS))]


@pytest.mark.slow
@pytest.mark.parametrize("path", LARGE, ids=[path.stem for path in LARGE])
def test_a_step_as_one_of_the_gpus_that_it_names(path, capsys):
    """On fake tensors, with as many of its layers as there are before they repeat themselves."""
    (gpus,) = re.findall(r" on (\d+) GPUs\.", path.read_text().splitlines()[0])
    model = tomllib.loads(path.read_text())["model"]["name"]
    few = ["--model.overrides.n_layers", "4" if model in ("llama4", "deepseek_v3") else "2"]
    world = ["--world_size", gpus]
    status = main(["config", "show", "--parallel", str(path), *few, *world, "--json"])
    out, err = capsys.readouterr()
    assert status == 0, err
    loaded = load([path], few)
    meta = build_meta(loaded.config, loaded.plugins, ParallelDims.of(loaded.config, world_size=int(gpus)))
    numbers = sum(parameter.numel() for parameter in meta.model.parameters())
    # Of whole rows, and under tensor parallel norms are whole.
    assert json.loads(out)["held"]["parameters"] == pytest.approx(4 * numbers / int(gpus), rel=0.03)


def smallest_world(path: Path) -> int:
    """The product of the degrees that the file sets, those that take what is left counting as 8."""
    world_size = 1
    for name, degree in tomllib.loads(path.read_text()).get("parallelism", {}).items():
        if name.endswith("_degree") and not name.startswith("expert_"):  # those share out the ranks of others
            world_size *= degree if degree > 0 else 8
    return world_size


def test_no_time_to_wait_is_longer_than_a_year():
    section = config_class(Plugins.discover())[0]
    waits = {path[-1]: field for path, field, _ in walk(section) if path[-1].endswith("_seconds")}
    assert {"init_timeout_seconds", "logger_seconds", "stalled_seconds"} <= set(waits)
    for name, field in waits.items():
        assert any(getattr(its, "le", math.inf) <= LONGEST_SECONDS for its in field.metadata), name
