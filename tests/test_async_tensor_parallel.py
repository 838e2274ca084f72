"""Asynchronous tensor parallel: refused where it cannot be, and training where it can."""

import pytest

from hekaton.config import load
from hekaton.errors import ConfigErrors
from hekaton.rules import check
from hekaton.testing import run_command

FLAGS = [
    "--model.flavor", "debugmodel", "--parallelism.tensor_parallel_degree", "2", "--compile.enable",
    "--parallelism.enable_async_tensor_parallel",
]  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "device_type", "reason"),
    [
        ([], "cpu", "CUDA; this run is on cpu"),
        (["--compile.no-enable"], "cuda", "compilation of the model (compile.enable)"),
        (["--compile.components", '["loss"]'], "cuda", "compilation of the model (compile.enable)"),
        (["--parallelism.tensor_parallel_degree", "1"], "cuda", "parallelism.tensor_parallel_degree above 1"),
        (["--parallelism.no-sequence_parallel"], "cuda", "parallelism.sequence_parallel = true"),
        (["--compile.backend", "aot_eager"], "cuda", 'compile.backend = "inductor"'),
    ],
)
def test_async_tensor_parallel_is_rejected_where_it_cannot_run(flags, device_type, reason):
    with pytest.raises(ConfigErrors) as caught:
        check(load([], [*FLAGS, *flags]), world_size=2, device_type=device_type)
    (problem,) = caught.value.problems
    assert problem.message == f"parallelism.enable_async_tensor_parallel needs {reason}"


def test_async_tensor_parallel_is_accepted_on_cuda():
    check(load([], FLAGS), world_size=2, device_type="cuda")


@pytest.mark.cuda(devices=2)
def test_async_tensor_parallel_trains(tmp_path):
    flags = [
        "--training.steps", "3", "--lr_scheduler.warmup_steps", "0", "--training.seq_len", "512",
        "--job.dump_folder", str(tmp_path),
    ]  # fmt: skip
    done = run_command("train", *FLAGS, *flags, processes=2, timeout=110, warnings="")
    assert done.returncode == 0, done.stderr
