"""The batch script of ``hekaton launch slurm``."""

import subprocess

import pytest

from hekaton.cli import main


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "my run.toml"
    path.write_text('[model]\nname = "llama3"\ntokenizer = "byte"\n')
    return path


def test_the_script_asks_for_the_processes_of_the_run_and_quotes_its_words(file, capsys):
    words = [
        "--nodes",
        "2",
        "--gpus",
        "8",
        "--time",
        "2-00",
        "--partition",
        "big",
        "--job.description",
        "it's $HOME",
    ]
    assert main(["launch", "slurm", str(file), *words]) == 0
    script = capsys.readouterr().out
    lines = script.splitlines()
    for option in (
        "nodes=2",
        "ntasks-per-node=8",
        "gpus-per-node=8",
        "time=2-00",
        "partition=big",
        "requeue",
    ):
        assert f"#SBATCH --{option}" in lines
    assert "#SBATCH --job-name=my-run" in lines
    (started,) = [line for line in lines if line.startswith("srun ")]
    said = subprocess.run(
        ["bash", "-c", started.replace("srun --kill-on-bad-exit=1", "printf '%s\\n'").removesuffix("&")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.splitlines() == [
        "hekaton", "train", str(file), "--job.description", "it's $HOME",
    ]  # fmt: skip
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_with_restarts_torchrun_starts_the_processes_of_each_node(file, capsys):
    assert main(["launch", "slurm", str(file), "--nodes", "2", "--gpus", "8", "--restarts", "3"]) == 0
    script = capsys.readouterr().out
    assert "#SBATCH --ntasks-per-node=1\n" in script
    assert "#SBATCH --gpus-per-node=8\n" in script
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    lines = [line for line in script.splitlines() if line.startswith(("head=", "id=", "port=", "srun "))]
    said = subprocess.run(
        ["bash", "-c", "\n".join(lines).replace("srun ", "printf '%s\\n' ").removesuffix("&")],
        env={"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "30007", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "a[1-2]"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout.splitlines() == [
        "--kill-on-bad-exit=1", "python3", "-m", "hekaton.launch", "--nnodes=2", "--nproc_per_node=8", "--max-restarts=3",
        "--rdzv_backend=c10d", "--rdzv_id=30007-0", "--rdzv_endpoint=:20007", "-m", "hekaton", "train", str(file),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "notice: checkpoint.enable is not set: "),
        (["--checkpoint.enable"], "notice: fault.save_before_seconds = 0: "),
        (["--checkpoint.enable", "--fault.save_before_seconds", "60"], ""),
    ],
)
def test_what_does_not_outlive_the_time_of_a_job_is_said(flags, said, file, capsys):
    assert main(["launch", "slurm", str(file), "--nodes", "1", "--gpus", "1", *flags]) == 0
    err = capsys.readouterr().err
    assert err.startswith(said) if said else not err


BEFORE, START, AFTER = (f"2026-11-28T10:0{minute}:00" for minute in range(3))


@pytest.mark.parametrize(
    ("status", "preempted", "node", "queued"),
    [
        (0, AFTER, "mixed", False),
        (75, "None", "mixed", True),
        (143, "None", "mixed", False),
        (143, AFTER, "mixed", True),
        (143, BEFORE, "mixed", False),
        (1, "None", "mixed*", True),
        (0, "None", "mixed*", False),
    ],
)
def test_a_job_is_queued_again_by_its_status_after_preemption_and_where_a_node_does_not_answer(
    status, preempted, node, queued, file, tmp_path, capsys
):
    """By programs in place of those of SLURM. A preemption before its start was one of an earlier start."""
    assert main(["launch", "slurm", str(file), "--nodes", "1", "--gpus", "1"]) == 0
    of_slurm = f"""
        srun() {{ sleep 0; return {status}; }}
        squeue() {{ echo {AFTER}; }}
        sinfo() {{ echo mixed; echo '{node}'; }}
        scontrol() {{
            case "$*" in
                *show*) echo "JobId=7 SubmitTime={BEFORE} StartTime={START} EndTime={AFTER} PreemptTime={preempted}" ;;
                *) echo "$@" ;;
            esac
        }}
    """
    said = subprocess.run(
        ["bash", "-c", of_slurm + capsys.readouterr().out], env={"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.stdout == ("requeue 7\n" if queued else ""), said.stderr
    assert said.returncode == (75 if queued else status)


@pytest.mark.parametrize(("said", "told"), [("2026-11-28T10:00:00", "1795860000"), ("", ""), ("N/A", "")])
def test_the_run_is_told_the_end_of_the_job_where_squeue_knows_it(said, told, file, capsys):
    """GNU's date takes no date for the beginning of today, and the run would end after its first step."""
    assert main(["launch", "slurm", str(file), "--nodes", "1", "--gpus", "1"]) == 0
    of_slurm = f"squeue() {{ echo '{said}'; }}; srun() {{ echo \"told $SLURM_JOB_END_TIME\"; }}; sinfo() {{ :; }}; scontrol() {{ :; }}\n"
    done = subprocess.run(
        ["bash", "-c", of_slurm + capsys.readouterr().out],
        env={"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7", "TZ": "UTC"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == (f"told {told}\n", 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "2"], "needs --gpus"),
        (["--nodes", "0", "--gpus", "1"], "--nodes"),
        (["--nodes", "1", "--gpus", "1", "--time", "1;rm"], "is no time of SLURM"),
        (["--nodes", "1", "--gpus", "1", "--name", "a b"], "has other characters"),
        (["--nodes", "1", "--gpus", "1", "--name", "a", "--name", "b"], "more than once"),
        (["--nodes", "1", "--gpus", "3", "--parallelism.tensor_parallel_degree", "2"], "degree"),
    ],
)
def test_what_makes_no_job_is_refused(file, words, message, capsys):
    assert main(["launch", "slurm", str(file), *words]) == 2
    assert message in capsys.readouterr().err
