"""run_train.sh, as a user starts it: from another folder, resumed, on two processes, and with a mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TINY = [
    "--model.overrides", '{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}', "--training.seq_len", "16",
    "--training.local_batch_size", "2", "--training.global_batch_size", "4", "--lr_scheduler.total_steps", "4",
]  # fmt: skip


@pytest.fixture
def run_train(tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(*flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(ROOT / "run_train.sh"), *TINY, *flags], cwd=folder, env=environment | variables,
            capture_output=True, text=True, timeout=110, check=False,
        )  # fmt: skip

    return run


@pytest.mark.slow
def test_trains_and_resumes_on_two_processes(run_train):
    first = run_train("--training.steps", "2")
    assert first.returncode == 0, first.stderr
    assert "step      1  loss " in first.stderr
    second = run_train("--training.steps", "4", NGPU="2")
    assert second.returncode == 0, second.stderr
    assert "resumed at step 2" in second.stderr
    assert "step      4  loss " in second.stderr
    assert second.stderr.count("resumed at step 2") == 1  # told by rank 0 alone


def test_a_mistake_ends_with_status_2_and_no_traceback(run_train):
    done = run_train("--training.stepz", "2")
    assert done.returncode == 2
    assert "did you mean --training.steps?" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_process_plays_many_when_the_file_says_so(run_train, tmp_path):
    file = tmp_path / "many.toml"
    file.write_text('[model]\nname = "llama3"\ntokenizer = "byte"\n[comm]\nmode = "fake_backend"\n')
    done = run_train(NGPU="2", CONFIG_FILE=str(file))
    assert done.returncode == 0, done.stderr
    assert "one step went through as rank 0 of 2 " in done.stderr
