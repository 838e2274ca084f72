"""Runs as users start them: by run_train.sh, the console script, and torchrun with one agent and with two."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODEL = ["--model.name", "llama3", "--model.flavor", "debugmodel", "--model.tokenizer", "byte"]
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


@pytest.mark.slow
def test_one_process_plays_many_when_the_file_sets_it(run_train, tmp_path):
    file = tmp_path / "many.toml"
    file.write_text('[model]\nname = "llama3"\ntokenizer = "byte"\n[comm]\nmode = "fake_backend"\n')
    done = run_train(NGPU="2", CONFIG_FILE=str(file))
    assert done.returncode == 0, done.stderr
    assert "one step ran as rank 0 of 2 " in done.stderr


@pytest.mark.slow
def test_the_console_script_trains(tmp_path):
    done = subprocess.run(
        [str(Path(sys.executable).with_name("hekaton")), "train", *MODEL, *TINY, "--training.steps", "2"],
        cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "step      2  loss " in done.stderr
    assert "1 process(es)" in done.stderr


@pytest.mark.slow
def test_torchrun_trains_with_two_agents(tmp_path):
    """Two agents with one process each find each other, as on two machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1",
        "--rdzv_backend", "c10d", "--rdzv_endpoint", f"127.0.0.1:{port}", "--rdzv_id", "of-a-test",
        "--local_addr", "127.0.0.1",
    ]  # fmt: skip
    agents = [
        subprocess.Popen(
            [*torchrun, "-m", "hekaton.train", *MODEL, *TINY, "--training.steps", "2"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for _ in range(2)
    ]  # fmt: skip
    try:
        written = [agent.communicate(timeout=110)[1] for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], written
    # Rank 0 alone tells of the run; who has it is up to the agents.
    told = [text for text in written if "step      2  loss " in text]
    assert len(told) == 1
    assert "2 process(es)" in told[0]
