"""``[training] objective`` takes the place of the model's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hekaton.cli import main
from hekaton.config import load
from hekaton.errors import ConfigErrors
from hekaton.testing import run_command

PLUGIN = '''
from hekaton.config import SectionModel
from hekaton.contributions import Objective, Ref, Section, hookimpl
from hekaton.loss import NextToken


class Constant(SectionModel):
    value: float = 3.0


class ConstantLoss(NextToken):
    """The same loss for every target, whatever the outputs are."""

    def __init__(self, section, context):
        super().__init__(needs_positions=context.sequence_is_cut)
        self.value = section.value

    def loss(self, outputs, targets):
        counts = self.count(targets)
        return {name: outputs.sum() * 0.0 + self.value * count for name, count in counts.items()}


class OtherTerms(ConstantLoss):
    """Counts, or sums, another term than its weights name."""

    def count(self, targets):
        counts = super().count(targets)
        return {"other": counts["next_token"]} if self.value == 1.0 else counts

    def loss(self, outputs, targets):
        return {"other": outputs.sum()}


@hookimpl
def hekaton_objectives():
    return [
        Objective("constant", build=Ref("constant_loss:ConstantLoss")),
        Objective("other_terms", section="constant", build=Ref("constant_loss:OtherTerms")),
    ]


@hookimpl
def hekaton_sections():
    return [Section("constant", schema=Ref("constant_loss:Constant"))]
'''
RUN = """
[model]
name = "llama3"
flavor = "debugmodel"
tokenizer = "byte"
overrides = {dim = 16, n_layers = 1, n_heads = 2, n_kv_heads = 2, hidden_dim = 16, vocab_size = 264}

[training]
objective = "constant"
dataset = "python_stdlib"
seq_len = 16
local_batch_size = 2
steps = 2
mixed_precision_param = "float32"

[metrics]
log_freq = 1

[constant]
value = 7.5
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    path = tmp_path_factory.mktemp("plugin") / "constant_loss.py"
    path.write_text(PLUGIN)
    return ["--plugins.load", str(path)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run.toml").write_text(RUN)
    return tmp_path / "run.toml"


def test_a_run_trains_for_it(run: Path, plugin: list[str]) -> None:
    done = run_command("train", str(run), *plugin, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    assert re.findall(r" loss (\S+)", done.stderr) == ["7.5000"] * 2
    assert 'objective = "constant"' in (run.parent / "outputs" / "config.toml").read_text()


@pytest.mark.parametrize(
    ("value", "gives"), [("1.0", "count() gives the counts"), ("2.0", "loss() gives the sums")]
)
def test_terms_without_a_weight_are_rejected(run: Path, plugin: list[str], value: str, gives: str) -> None:
    flags = ["--training.objective", "other_terms", "--constant.value", value]
    done = run_command("train", str(run), *plugin, *flags, cwd=run.parent)
    assert done.returncode == 2, done.stderr
    said = f"error: the objective OtherTerms: {gives} of ['other'], its weights are of ['next_token']"
    assert said in done.stderr


def test_an_unknown_one_is_refused_with_the_choices(run: Path, plugin: list[str]) -> None:
    with pytest.raises(ConfigErrors) as caught:
        load([run], [*plugin, "--training.objective", "next_tokn"])
    assert str(caught.value).startswith(
        "unknown objective 'next_tokn' (training.objective)\n"
        "  from: --training.objective\n"
        "  did you mean 'next_token'?\n"
        "  choose one of: constant, flow_matching, multi_token, next_token, other_terms"
    )


def test_the_models_own_is_shown_with_its_origin(run: Path, plugin: list[str], capsys) -> None:
    run.write_text(RUN.replace('objective = "constant"\n', "").replace("[constant]\nvalue = 7.5\n", ""))
    assert main(["config", "show", str(run)]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["objective", '"next_token"', "model", "llama3"] in shown


def test_the_section_of_one_that_the_run_does_not_use_has_no_effect(run: Path, plugin: list[str]) -> None:
    loaded = load([run], [*plugin, "--training.objective", "next_token"])
    assert any("[constant]" in notice and "no effect" in notice for notice in loaded.notices)
    assert not any("[constant]" in notice for notice in load([run], plugin).notices)
