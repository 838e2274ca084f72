"""A run configuration without any installed plugin but the core's own: what it needs comes from one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hekaton.config import Loaded, load
from hekaton.errors import ConfigErrors
from hekaton.plugins import CORE_PLUGIN
from hekaton.plugins.discovery import installed

PLUGIN = '''
from dataclasses import dataclass

import torch

from hekaton.config import SectionModel
from hekaton.contributions import Converter, Dataset, Encoder, Logger, Model, Ref, Section, Tokenizer, hookimpl
from hekaton.init import Normal
from hekaton.parallel.plan import ParallelPlan
from hekaton.spec import TrainSpec
from pydantic import PositiveInt


@dataclass(frozen=True)
class TinyConfig:
    dim: int = 8
    n_layers: int = 2
    rope_theta: float = 1e4


class HalvesSection(SectionModel):
    """Halves every weight."""

    times: PositiveInt = 1
    """How often."""
    names: list[str] = []
    """Which."""
    gently: bool = True
    """Whether it hurts."""


class TinyModel(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(config.dim, config.dim) for _ in range(config.n_layers)
        )


class NoIds:
    vocab_size, bos_id, eos_id, fingerprint = 1, None, None, "none"
    encode_batch = decode = None


def tokenizer(section, path):
    return NoIds()


def nothing(*arguments):
    raise AssertionError("a check builds only the model, on the meta device, and the tokenizer")


spec = TrainSpec(
    name="llama3",
    model=TinyModel,
    flavors={"debugmodel": TinyConfig(), "8B": TinyConfig(dim=64), "405B": TinyConfig(dim=128)},
    plan=lambda config: ParallelPlan(block="layers.*"),
    init=lambda config: {"layers.*.{weight,bias}": Normal(1.0)},
    defaults={"8B": {"training": {"seq_len": 4096, "steps": 77}, "optimizer": {"lr": 3e-4}}},
)


@hookimpl
def hekaton_models():
    return [Model("llama3", spec=Ref("tiny_plugin:spec"), summary="not a model at all")]


@hookimpl
def hekaton_tokenizers():
    return [Tokenizer("hf", build=Ref("tiny_plugin:tokenizer"))]


@hookimpl
def hekaton_datasets():
    return [
        *[Dataset(name, build=Ref("tiny_plugin:nothing")) for name in ("c4", "c4_test", "c4_validation")],
        Dataset("pages", build=Ref("tiny_plugin:nothing"), encoder="pages"),
    ]


@hookimpl
def hekaton_encoders():
    return [Encoder("pages", build=Ref("tiny_plugin:nothing"))]


@hookimpl
def hekaton_loggers():
    return [Logger("tensorboard", build=Ref("tiny_plugin:nothing"))]


@hookimpl
def hekaton_converters():
    return [Converter("halves", build=Ref("tiny_plugin:nothing"))]


@hookimpl
def hekaton_sections():
    return [
        Section("halves", schema=Ref("tiny_plugin:HalvesSection")),
        Section("pages", schema=Ref("tiny_plugin:HalvesSection")),
    ]
'''

LoadRun = Callable[..., Loaded]
Problems = Callable[..., list[str]]


@pytest.fixture(scope="session")
def plugin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "tiny_plugin.py"
    path.write_text(PLUGIN)
    return path


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No installed plugin takes part; relative paths are in ``tmp_path``."""
    names = [info.name for _, info in installed() if info.name != CORE_PLUGIN]
    monkeypatch.setenv("HEKATON_DISABLE", ",".join(names))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plugin_flags(plugin_file: Path) -> list[str]:
    return ["--plugins.load", str(plugin_file)]


@pytest.fixture
def load_run(plugin_flags: list[str]) -> LoadRun:
    """``load_run(toml, *flags)`` loads ``run.toml`` with the plugin of this file."""

    def load_run(toml: str = "", *flags: str) -> Loaded:
        Path("run.toml").write_text(toml)
        return load(["run.toml"], [*plugin_flags, *flags])

    return load_run


@pytest.fixture
def problems(load_run: LoadRun) -> Problems:
    """``problems(toml, *flags)`` is what is wrong with a run, each as it is printed."""

    def problems(toml: str = "", *flags: str) -> list[str]:
        with pytest.raises(ConfigErrors) as caught:
            load_run(toml, *flags)
        return [str(problem) for problem in caught.value.problems]

    return problems
