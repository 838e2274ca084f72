"""``[[optimizer.groups]]`` in a run file: checked, written out again, and each group's rate logged."""

import json

import pytest

from hekaton.cli import main
from hekaton.config import load, to_toml

RUN = """
[model]
tokenizer = "byte"
overrides = {dim = 16, n_layers = 2, n_heads = 2, n_kv_heads = 1, vocab_size = 258}

[optimizer]
name = "Muon"
lr = 0.01

[[optimizer.groups]]
match = "*norm*"
weight_decay = 0.0

[[optimizer.groups]]
match = "tok_embeddings*"
lr_factor = 0.25

[lr_scheduler]
warmup_steps = 0
min_lr_factor = 1.0

[training]
steps = 2
seq_len = 16
local_batch_size = 2

[metrics]
loggers = ["kept"]
log_freq = 1
"""
LOGGER = """
import json

from hekaton.contributions import Logger, Ref, hookimpl


class Kept:
    def __init__(self, section, folder):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "kept.jsonl").open("a")

    def log(self, step, metrics):
        self.file.write(json.dumps(dict(metrics)) + chr(10))

    def close(self):
        self.file.close()


@hookimpl
def hekaton_loggers():
    return [Logger("kept", build=Ref("keeps_metrics:Kept"))]
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    path = tmp_path_factory.mktemp("plugin") / "keeps_metrics.py"
    path.write_text(LOGGER)
    return ["--plugins.load", str(path)]


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.toml").write_text(RUN)
    return tmp_path / "run.toml"


def test_every_group_has_its_rate_logged(run, plugin):
    assert main(["train", str(run), *plugin]) == 0
    (kept,) = run.parent.rglob("kept.jsonl")
    for line in kept.read_text().splitlines():
        metrics = json.loads(line)
        rates = {name: rate for name, rate in metrics.items() if name.split("/")[0] == "lr"}
        assert rates == pytest.approx({"lr": 0.01, "lr/*norm*": 0.01, "lr/tok_embeddings*": 0.0025})


def test_groups_are_written_out_as_they_were_read(run, plugin):
    loaded = load([run], plugin)
    again = run.with_name("again.toml")
    again.write_text(to_toml(loaded.config))
    assert load([again]).config.optimizer == loaded.config.optimizer


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("lr_factor", "lr_facto"), "unknown field 'lr_facto' in [[optimizer.groups]]"),
        (
            ("*norm*", "*nrom*"),
            "optimizer.groups: entry '*nrom*' matches nothing: no trained parameter of llama3",
        ),
    ],
)
def test_wrong_rows_are_refused(run, plugin, capsys, wrong, message):
    run.write_text(RUN.replace(*wrong))
    assert main(["config", "check", str(run), *plugin]) == 2
    said = capsys.readouterr().err
    assert f"error: {message}" in said
    assert "run.toml, line 10" in said
