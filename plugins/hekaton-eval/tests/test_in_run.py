"""``[[evaluation.tasks]]``: a run that is judged between its steps."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
from hekaton.testing import run_command

RUN = """\
[model]
name = "llama3"
flavor = "debugmodel"
tokenizer = "hf"

[model.overrides]
dim = 64
n_layers = 2
n_heads = 4
n_kv_heads = 2
hidden_dim = 96

[training]
dataset = "python_stdlib"
seq_len = 64
local_batch_size = {rows}
global_batch_size = 4
steps = {steps}
mixed_precision_param = "float32"

[optimizer]
lr = 5e-3

[lr_scheduler]
warmup_steps = 0
total_steps = 4

[metrics]
log_freq = 1

[checkpoint]
enable = true
interval = 2

[parallelism]
{layout}
"""
JUDGED = """
[evaluation]
batch_size = 4

[[evaluation.tasks]]
tasks = ["choice.yaml", "rolling.yaml"]
every = 2

[[evaluation.tasks]]
tasks = ["until.yaml"]
every = 3
limit = 2
"""


@pytest.fixture(scope="module")
def judged() -> Any:
    file = Path(__file__).with_name("judged.py")
    spec = importlib.util.spec_from_file_location("judged", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def place(judged, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    judged.write_tasks(tmp_path)
    return tmp_path


def trained(
    place: Path, folder: str, *, evaluated: bool, steps: int = 4, layout: str = "", processes: int = 1
):
    """The lines of ``metrics.jsonl`` of a run."""
    rows = 4 if processes == 1 or "pipeline" in layout or "context" in layout else 2
    text = RUN.format(rows=rows, steps=steps, layout=layout) + (JUDGED if evaluated else "")
    (place / "run.toml").write_text(text)
    done = run_command(
        "train", "run.toml", "--job.dump_folder", folder, processes=processes, cwd=place, warnings="ignore"
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (place / folder / "metrics.jsonl").read_text().splitlines()]


def judgements(rows):
    return {row["step"]: kept for row in rows if (kept := _evaluation(row))}


def _evaluation(row):
    return {name: value for name, value in row.items() if name.startswith("evaluation/")}


def losses(rows):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


@pytest.mark.slow
def test_a_run_is_judged_at_its_steps_and_not_disturbed(place):
    with_it = trained(place, "with", evaluated=True)
    assert losses(with_it) == losses(trained(place, "without", evaluated=False))
    found = judgements(with_it)
    names = {
        "evaluation/tiny_choice/acc", "evaluation/tiny_choice/acc_norm",
        "evaluation/tiny_rolling/word_perplexity", "evaluation/tiny_rolling/bits_per_byte",
    }  # fmt: skip
    until = {"evaluation/tiny_until/exact_match"}
    assert {step: set(metrics) for step, metrics in found.items()} == {2: names, 3: until, 4: names | until}
    assert (
        found[4]["evaluation/tiny_rolling/bits_per_byte"] < found[2]["evaluation/tiny_rolling/bits_per_byte"]
    )

    trained(place, "resumed", evaluated=True, steps=2)
    rows = trained(place, "resumed", evaluated=True)
    assert judgements(rows) == {**found, 2: rows_at(rows, 2)}
    assert losses(rows) == losses(with_it)

    accounts = [json.loads(line) for line in (place / "with/accounting.jsonl").read_text().splitlines()]
    assert sum(line["seconds"].get("evaluation", 0) for line in accounts) > 0

    command = ["eval", "--checkpoint", "with", "--tasks", "choice.yaml,rolling.yaml", "--out", "results"]
    done = run_command(*command, "--batch_size", "2", processes=2, cwd=place, warnings="ignore")
    assert done.returncode == 0, done.stderr
    assert "tiny_rolling" in done.stdout
    assert done.ranks[1].stdout == ""
    (file,) = (place / "results" / "hekaton").glob("results_*.json")
    results = json.loads(file.read_text())
    assert results["config"]["model"] == "hekaton"
    for name, value in found[4].items():
        _, task, metric = name.split("/")
        if task != "tiny_until":
            assert results["results"][task][f"{metric},none"] == pytest.approx(value, rel=1e-5)


def rows_at(rows, step):
    return judgements(rows)[step]


@pytest.mark.slow
@pytest.mark.parametrize(
    "layout",
    [
        "pipeline_parallel_degree = 2\ntensor_parallel_degree = 2",
        "context_parallel_degree = 2\ntensor_parallel_degree = 2",
    ],
    ids=["pipeline", "context"],
)
def test_it_is_judged_alike_on_other_layouts(place, layout):
    single = judgements(trained(place, "single", evaluated=True, steps=2))
    rows = trained(place, "cut", evaluated=True, steps=2, layout=layout, processes=4)
    found = judgements(rows)
    assert found.keys() == single.keys()
    for name, value in single[2].items():
        assert found[2][name] == pytest.approx(value, rel=1e-4), name
