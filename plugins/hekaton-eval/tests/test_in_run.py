"""``[[evaluation.tasks]]``: a run that is judged between its steps."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
import hekaton
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
local_batch_size = 4
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


def trained(place: Path, folder: str, *, evaluated: bool, steps: int, layout: str = "", processes: int = 1):
    """The lines of ``metrics.jsonl`` of a run."""
    text = RUN.format(steps=steps, layout=layout) + (JUDGED if evaluated else "")
    (place / "run.toml").write_text(text)
    done = run_command(
        "train",
        "run.toml",
        "--job.dump_folder",
        folder,
        processes=processes,
        cwd=place,
        warnings="ignore",
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (place / folder / "metrics.jsonl").read_text().splitlines()]


def judgements(rows):
    """Step -> its metrics of evaluations."""
    found = {}
    for row in rows:
        if metrics := {name: value for name, value in row.items() if name.startswith("evaluation/")}:
            found[row["step"]] = metrics
    return found


def losses(rows):
    return [(row["step"], row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


@pytest.mark.slow
def test_a_run_is_judged_at_its_steps_on_its_layout_and_not_disturbed(judged, tmp_path):
    judged.write_tasks(tmp_path)
    first = judgements(trained(tmp_path, "judged", evaluated=True, steps=2))
    rows = trained(tmp_path, "judged", evaluated=True, steps=4)  # resumes after step 2
    found = judgements(rows)
    names = {
        "evaluation/tiny_choice/acc", "evaluation/tiny_choice/acc_norm",
        "evaluation/tiny_rolling/word_perplexity", "evaluation/tiny_rolling/bits_per_byte",
    }  # fmt: skip
    until = {"evaluation/tiny_until/exact_match"}
    assert {step: set(metrics) for step, metrics in found.items()} == {
        2: names | until, 3: until, 4: names | until,
    }  # fmt: skip
    assert found[2] == first[2]
    assert (
        found[4]["evaluation/tiny_rolling/bits_per_byte"] < found[2]["evaluation/tiny_rolling/bits_per_byte"]
    )
    (past,) = hekaton.runs(tmp_path)
    assert [row["step"] for row in past.evaluations] == [2, 3, 4]
    assert past.validation == []

    assert losses(rows) == losses(trained(tmp_path, "alone", evaluated=False, steps=4))

    accounts = [json.loads(line) for line in (tmp_path / "judged/accounting.jsonl").read_text().splitlines()]
    assert [line["step"] for line in accounts if line["seconds"].get("evaluation")]

    layout = "pipeline_parallel_degree = 2\ncontext_parallel_degree = 2"
    cut = judgements(trained(tmp_path, "cut", evaluated=True, steps=2, layout=layout, processes=4))
    assert cut.keys() == first.keys()
    for name, value in first[2].items():
        assert cut[2][name] == pytest.approx(value, rel=1e-4), name
