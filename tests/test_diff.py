"""``hekaton diff``: where two runs part, and what may explain it."""

import pytest

from hekaton.cli import main
from hekaton.testing import run_command

RUN = [
    "train", "--model.name", "llama3", "--model.tokenizer", "byte", "--training.steps", "3",
    "--training.seq_len", "16", "--training.local_batch_size", "2", "--training.mixed_precision_param", "float32",
    "--activation_checkpoint.mode", "none", "--lr_scheduler.warmup_steps", "0", "--metrics.log_freq", "1",
    "--checkpoint.enable", "--checkpoint.interval", "1", "--model.overrides.dim", "16",
    "--model.overrides.n_layers", "1", "--model.overrides.n_heads", "2", "--model.overrides.n_kv_heads", "1",
    "--model.overrides.hidden_dim", "32",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two equal runs, and one that decays weights more, from the same weights."""
    path = tmp_path_factory.mktemp("runs")
    for name, *flags in (["one"], ["same"], ["decayed", "--optimizer.weight_decay", "0.5"]):
        run_command(*RUN, *flags, "--job.dump_folder", name, cwd=path)
    return path


def test_equal_runs_have_no_difference_but_their_folder(folder, capsys):
    assert main(["diff", str(folder / "one"), str(folder / "same")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[:3] == [
        "logged: equal in 3 steps that both have",
        "saved: equal in 3 steps that both have",
        "values that differ: 1",
    ]
    assert said[3:] == ["  job.dump_folder: one and same"]


def test_the_first_step_and_tensors_that_differ_are_named_with_the_value_that_explains_them(folder, capsys):
    # Weights are decayed after the gradients of step 1, and the loss of step 2 is the first to see it. At the
    # start norms are 1, the rate is 8e-4, and 0.4 more of it is taken away: 3.2e-4.
    assert main(["diff", str(folder / "one"), str(folder / "decayed"), "--all"]) == 1
    said = capsys.readouterr().out
    assert "logged: step 2 differs: loss " in said
    assert "saved: step-1 differs: " in said
    assert "  norm.weight: 16 of 16 values, by up to 0.00032\n" in said
    assert "exp_avg" not in said  # the gradients of step 1 are the same
    assert "  optimizer.weight_decay: 0.1 and 0.5\n" in said


def test_lines_and_folders_that_no_run_wrote(folder, tmp_path, capsys):
    lines = '{"step": 1, "loss": 2.5}\nnonsense\n{"step": "x", "loss": 1}\n{"step": 2'
    (tmp_path / "metrics.jsonl").write_text(lines)
    assert main(["diff", str(folder / "one"), str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}: 2 lines of metrics.jsonl are none of a run's, and skipped\nlogged: ")
    assert " and 2.5\nsaved: equal in 0 steps" in said
    assert (
        f"\nlogged by {folder / 'one'} alone: 2 steps, 2 to 3\nsaved by {folder / 'one'} alone: 3 steps, 1 to 3\n"
        in said
    )
    (tmp_path / "rank_0").mkdir()  # of metrics.save_for_all_ranks
    (tmp_path / "metrics.jsonl").rename(tmp_path / "rank_0/metrics.jsonl")
    assert main(["diff", str(folder / "one"), str(tmp_path)]) == 1
    assert capsys.readouterr().out == said
    (tmp_path / "rank_0/metrics.jsonl").rename(tmp_path / "metrics.jsonl")
    (tmp_path / "metrics.jsonl").unlink()
    assert main(["diff", str(folder / "one"), str(tmp_path)]) == 2
    assert "is no folder of a run" in capsys.readouterr().err
    assert main(["diff", str(folder / "one")]) == 2
    assert "takes two run folders" in capsys.readouterr().err
