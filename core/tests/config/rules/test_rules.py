"""Rules across sections."""

from __future__ import annotations

import pytest

from hekaton.errors import ConfigErrors
from hekaton.rules import Run, check, effects, layout, rules


@pytest.fixture(autouse=True)
def without_building(monkeypatch):
    """The model of these tests cannot be built; what a plan can do is tested with a real one."""
    others = [rule for rule in rules.RULES if rule is not layout.plan_can_be_carried_out]
    monkeypatch.setattr(rules, "RULES", others)


@pytest.fixture
def violations(load_run):
    def violations(toml: str, *, world_size: int | None = 1, device_type: str = "cpu") -> list[str]:
        with pytest.raises(ConfigErrors) as caught:
            check(load_run(toml), world_size=world_size, device_type=device_type)
        return [str(problem) for problem in caught.value.problems]

    return violations


@pytest.fixture
def notices(load_run):
    def notices(toml: str, *, world_size: int | None = 1, device_type: str = "cpu") -> tuple[str, ...]:
        return check(load_run(SHORT_WARMUP + toml), world_size=world_size, device_type=device_type)

    return notices


SHORT_WARMUP = "[lr_scheduler]\nwarmup_steps = 0\n"


@pytest.mark.parametrize(
    ("toml", "world_size", "message"),
    [
        (
            "[parallelism]\ndata_parallel_shard_degree = 3\n",
            4,
            (
                "the degrees of parallelism multiply to 3 (data_parallel_shard_degree 3), but this run "
                "has 4 processes\n  from: run.toml, line 2\n  choose data_parallel_shard_degree = 4 or "
                "-1, or start 3 processes"
            ),
        ),
        (
            "[parallelism]\ndata_parallel_replicate_degree = 2\ndata_parallel_shard_degree = 4\n",
            1,
            (
                "the degrees of parallelism multiply to 8 (data_parallel_replicate_degree 2 × "
                "data_parallel_shard_degree 4), but this run has 1 process\n  from: run.toml, line 2; "
                "run.toml, line 3\n  choose degrees that multiply to 1, or start 8 processes"
            ),
        ),
        (
            "[parallelism]\ndata_parallel_replicate_degree = 3\n",
            8,
            (
                "8 processes cannot be divided by 3 (data_parallel_replicate_degree 3)\n  from: "
                "run.toml, line 2\n  choose degrees that multiply to one of 1, 2, 4, 8"
            ),
        ),
        (
            "[parallelism]\ndata_parallel_replicate_degree = 2\ncontext_parallel_degree = 3\n"
            "[training]\nseq_len = 60\n",
            4,
            "4 processes cannot be divided by 6 (data_parallel_replicate_degree 2 × "
            "context_parallel_degree 3)\n  from: run.toml, line 2; run.toml, line 3\n"
            "  choose degrees that multiply to one of 1, 2, 4",
        ),
        (
            "[training]\nlocal_batch_size = 4\nglobal_batch_size = 20\n",
            2,
            (
                "training.global_batch_size = 20 is not divisible by local_batch_size 4 × 2 "
                "data-parallel ranks = 8\n  from: run.toml, line 3; run.toml, line 2\n  choose -1, or "
                "a multiple such as 16 or 24"
            ),
        ),
        (
            "[training]\nlocal_batch_size = 4\nglobal_batch_size = 6\n",
            None,
            (
                "training.global_batch_size = 6 is not divisible by local_batch_size 4\n  from: "
                "run.toml, line 3; run.toml, line 2\n  choose -1, or a multiple such as 4 or 8"
            ),
        ),
        (
            "[training]\nlocal_batch_size = 4\nglobal_batch_size = 2\n",
            1,
            (
                "training.global_batch_size = 2 is not divisible by local_batch_size 4 × 1 "
                "data-parallel rank = 4\n  from: run.toml, line 3; run.toml, line 2\n  choose -1, or a "
                "multiple such as 4"
            ),
        ),
        (
            (
                "[training]\nlocal_batch_size = 2\nglobal_batch_size = "
                "8\n[training.dataloader]\nnum_workers = 5\n"
            ),
            2,
            (
                "training.dataloader.num_workers = 5 is more than the 4 rows that each rank reads per "
                "step\n  from: run.toml, line 5\n  choose at most 4, or a larger batch"
            ),
        ),
        (
            ("[validation]\nenable = true\nlocal_batch_size = 1\n[validation.dataloader]\nnum_workers = 2\n"),
            1,
            (
                "validation.dataloader.num_workers = 2 is more than the 1 row that each rank reads per "
                "step\n  from: run.toml, line 5\n  choose at most 1, or a larger batch"
            ),
        ),
        (
            "[profiling]\nenable_profiling = true\nprofile_freq = 3\n",
            1,
            (
                "profiling.profiler_warmup 3 + profiler_active 1 = 4 steps do not fit into "
                "profile_freq = 3\n  from: run.toml, line 3\n  choose profiling.profile_freq = 4 or "
                "more"
            ),
        ),
        (
            "[profiling]\nenable_memory_snapshot = true\n",
            1,
            ("profiling.enable_memory_snapshot needs CUDA; this run is on cpu\n  from: run.toml, line 2"),
        ),
        (
            "[checkpoint]\nenable = true\nload_step = 10\n[training]\nsteps = 10\n",
            1,
            (
                "checkpoint.load_step = 10 leaves nothing to train: the run ends at training.steps = "
                "10\n  from: run.toml, line 3; run.toml, line 5"
            ),
        ),
    ],
)
def test_a_violation_is_reported(violations, toml, world_size, message):
    assert violations(toml, world_size=world_size) == [message]


@pytest.mark.parametrize(
    ("toml", "world_size", "device_type"),
    [
        ("", 1, "cpu"),
        ("[parallelism]\ndata_parallel_replicate_degree = 2\n", 8, "cpu"),
        ("[parallelism]\ndata_parallel_shard_degree = 4\n", 4, "cpu"),
        ("[parallelism]\ndata_parallel_shard_degree = 4\n", None, "cpu"),
        ("[training]\nlocal_batch_size = 4\nglobal_batch_size = 24\n", 2, "cpu"),
        ("[training]\nlocal_batch_size = 4\n[training.dataloader]\nnum_workers = 4\n", 2, "cpu"),
        ("[profiling]\nenable_memory_snapshot = true\n", 1, "cuda"),
        ("[checkpoint]\nenable = true\nload_step = 9\n[training]\nsteps = 200\n", 1, "cpu"),
        ("[lr_scheduler]\nwarmup_steps = 2\ndecay_ratio = 0.8\n[training]\nsteps = 10\n", 1, "cpu"),
        ('[training]\ndtype = "bfloat16"\n', 1, "cpu"),
        ("[training]\nenable_cpu_offload = true\n[training.dataloader]\npin_memory = true\n", 1, "cuda"),
        ('[parallelism]\nfsdp_reshard_after_forward = "never"\n', 2, "cpu"),
    ],
)
def test_a_sound_configuration_gives_no_notice(load_run, toml, world_size, device_type):
    steps = "" if "steps" in toml else "[lr_scheduler]\nwarmup_steps = 1\n"
    assert check(load_run(steps + toml), world_size=world_size, device_type=device_type) == ()


@pytest.mark.parametrize(
    ("degrees", "idle"),
    [
        ("data_parallel_replicate_degree = 2", True),
        ("data_parallel_shard_degree = 2", False),
        ("context_parallel_degree = 2", False),
    ],
)
def test_parameters_are_sharded_over_the_ranks_of_context_parallel_too(load_run, degrees, idle):
    loaded = load_run(f'{SHORT_WARMUP}[parallelism]\nfsdp_reshard_after_forward = "never"\n{degrees}\n')
    run = Run(loaded.config, loaded.plugins, loaded.origins, 2, "cpu")
    assert any("nothing is sharded" in notice for notice in effects.device_matters(run)) is idle


def test_all_violations_at_once(violations):
    found = violations(
        "[parallelism]\ndata_parallel_shard_degree = 3\n"
        "[training]\nlocal_batch_size = 4\nglobal_batch_size = 6\n"
        "[profiling]\nenable_memory_snapshot = true\n",
        world_size=4,
    )
    assert [problem.split()[0] for problem in found] == [
        "the",
        "training.global_batch_size",
        "profiling.enable_memory_snapshot",
    ]


def test_the_compile_backend_exists(violations):
    (message,) = violations('[compile]\nenable = true\nbackend = "inductr"\n')
    assert message.startswith(
        "unknown backend 'inductr' (compile.backend)\n  from: run.toml, line 3\n  did you mean 'inductor'?"
    )


def test_an_existing_backend_is_accepted(notices):
    assert notices('[compile]\nenable = true\nbackend = "aot_eager"\n') == ()


@pytest.mark.parametrize(
    ("toml", "notice"),
    [
        (
            '[training]\ndtype = "bfloat16"\nmixed_precision_param = "float32"\n',
            (
                'training.mixed_precision_param = "float32" computes in float32 with weights that '
                "training.dtype rounds to bfloat16; the other way round is usual"
            ),
        ),
        (
            '[validation]\nenable = true\ndataset = "python_stdlib"\n',
            'validation.dataset = "python_stdlib" is the data that is trained on',
        ),
        (
            "[compile]\nenable = true\ncomponents = []\n",
            "compile.enable has no effect: compile.components is empty",
        ),
        (
            "[checkpoint]\nenable = true\nload_only = true\ninterval = 3\n",
            "checkpoint.interval: no effect: checkpoint.load_only saves nothing",
        ),
        (
            '[metrics]\nsave_tb_folder = "there"\n',
            ("metrics.save_tb_folder: no effect: the run has no logger that writes there (metrics.loggers)"),
        ),
        (
            "[training.dataloader]\npin_memory = true\n",
            "training.dataloader.pin_memory: no effect on cpu: it speeds up copies to CUDA",
        ),
        (
            "[training]\nenable_cpu_offload = true\n",
            "training.enable_cpu_offload: no effect on cpu: everything is in the memory of the host",
        ),
        (
            '[comm]\nsave_traces_folder = "traces"\n',
            "comm.save_traces_folder: no effect on cpu: NCCL writes them",
        ),
        (
            '[parallelism]\nfsdp_reshard_after_forward = "never"\n',
            "parallelism.fsdp_reshard_after_forward: no effect: nothing is sharded",
        ),
    ],
)
def test_settings_without_effect_give_a_notice(notices, toml, notice):
    assert notices(toml) == (notice,)


@pytest.mark.parametrize(
    ("schedule", "notice"),
    [
        (
            "warmup_steps = 40",
            (
                "lr_scheduler.warmup_steps = 40 is more than the 10 steps: the rate rises to 25% of "
                "optimizer.lr and never falls"
            ),
        ),
        (
            "warmup_steps = 4\ndecay_ratio = 0.8",
            (
                "lr_scheduler.decay_ratio = 0.8 asks for 8 of 10 steps, warmup_steps = 4 leave 6: the "
                "rate falls over those"
            ),
        ),
        (
            "warmup_steps = 1\ntotal_steps = 7\nmin_lr_factor = 0.1",
            (
                "lr_scheduler.total_steps = 7 is less than training.steps = 10: the last 3 steps train "
                "at min_lr_factor = 0.1"
            ),
        ),
    ],
)
def test_a_schedule_that_does_not_fit_the_steps_gives_a_notice(load_run, schedule, notice):
    loaded = load_run(f"[training]\nsteps = 10\n[lr_scheduler]\n{schedule}\n")
    assert check(loaded, world_size=1, device_type="cpu") == (notice,)


def test_derived_numbers_are_computed(load_run):
    config = load_run(
        "[training]\nlocal_batch_size = 3\n[parallelism]\ndata_parallel_replicate_degree = 2\n"
        "tensor_parallel_degree = 2\n"
    ).config
    assert config.data_parallel_degree(8) == 4
    assert config.global_batch_size(8) == 12
    assert load_run("[training]\nglobal_batch_size = 24\n").config.global_batch_size(3) == 24
