"""Rules of settings that reach less than they say, or nothing, in this run or on this device."""

from __future__ import annotations

from collections.abc import Iterator

from hekaton.config.base import toml_value
from hekaton.contributions import Logger
from hekaton.errors import HekatonError
from hekaton.processor import has_fast_bfloat16
from hekaton.rules.run import Run


def schedule_fits(run: Run) -> Iterator[str]:
    """The rate reaches what it is meant to reach."""
    schedule, steps = run.config.lr_scheduler, run.config.training.steps
    if schedule.name != "warmup_stable_decay":
        return
    total = schedule.total_steps or steps
    warmup = schedule.warmup_steps
    if schedule.total_steps is not None and total < steps:
        yield (
            f"lr_scheduler.total_steps = {total} is less than training.steps = {steps}: the last "
            f"{steps - total} steps train at min_lr_factor = {schedule.min_lr_factor:g}"
        )
    if warmup > min(total, steps):
        reached = min(total, steps)
        yield (
            f"lr_scheduler.warmup_steps = {warmup} is more than the {reached} steps: the rate rises to "
            f"{reached / warmup:.0%} of optimizer.lr and never falls"
        )
    elif schedule.decay_ratio is not None and round(total * schedule.decay_ratio) > total - warmup:
        decay = round(total * schedule.decay_ratio)
        yield (
            f"lr_scheduler.decay_ratio = {schedule.decay_ratio:g} asks for {decay} of {total} steps, "
            f"warmup_steps = {warmup} leave {total - warmup}: the rate falls over those"
        )


def profile_fits(run: Run) -> Iterator[HekatonError]:
    """Warmup and trace lie within the steps from one trace to the next; snapshots are of CUDA's allocator."""
    profiling = run.config.profiling
    needed = profiling.profiler_warmup + profiling.profiler_active
    if profiling.enable_profiling and needed > profiling.profile_freq:
        yield run.violation(
            f"profiling.profiler_warmup {profiling.profiler_warmup} + profiler_active "
            f"{profiling.profiler_active} = {needed} steps do not fit into profile_freq = "
            f"{profiling.profile_freq}",
            *[f"profiling.{name}" for name in ("profiler_warmup", "profiler_active", "profile_freq")],
            hint=f"choose profiling.profile_freq = {needed} or more",
        )
    if profiling.enable_memory_snapshot and run.device_type != "cuda":
        yield run.violation(
            f"profiling.enable_memory_snapshot needs CUDA; this run is on {run.device_type}",
            "profiling.enable_memory_snapshot",
        )


def precision_is_used(run: Run) -> Iterator[str]:
    """Computing more precisely than weights are kept costs memory and time and gains little, and so does a
    precision that the device has no instructions for."""
    training = run.config.training
    fields = [name for name in ("dtype", "mixed_precision_param") if getattr(training, name) == "bfloat16"]
    if fields and run.here and run.device_type == "cpu" and not has_fast_bfloat16():
        yield (
            f'training.{fields[-1]} = "bfloat16": this CPU has no instructions for it (AVX512-BF16, AMX), '
            "and takes about ten times as long as in float32"
        )
    if training.dtype == "bfloat16" and training.mixed_precision_param == "float32":
        yield (
            'training.mixed_precision_param = "float32" computes in float32 with weights that training.dtype '
            "rounds to bfloat16; the other way round is usual"
        )


def validation_is_other_data(run: Run) -> Iterator[str]:
    """A loss on data that was trained on says little."""
    training, validation = run.config.training, run.config.validation
    trained = (training.dataset, training.dataset_path)
    if not validation.enable:
        return
    for number, one in enumerate(validation.sets, 1):
        if (one.dataset, one.dataset_path) == trained:
            yield f"entry {number} of [[validation.sets]] is the data that is trained on"
    if not validation.sets and (validation.dataset, validation.dataset_path) == trained:
        yield f"validation.dataset = {toml_value(validation.dataset)} is the data that is trained on"


def loggers_are_there(run: Run) -> Iterator[str]:
    """Settings of loggers that no logger of the run reads."""
    config = run.config
    names = config.logger_names()
    in_logs = [name for name in names if run.plugins.get(Logger, name).place == "logs"]
    for field, loggers, what in (
        ("metrics.save_tb_folder", in_logs, "no logger that writes there"),
        ("metrics.save_for_all_ranks", names, "no loggers"),
    ):
        if not loggers and run.is_set(field) and _differs(config.metrics, field):
            yield f"{field}: no effect: the run has {what} (metrics.loggers)"


def device_matters(run: Run) -> Iterator[str]:
    """Settings that the device, or the number of processes, leaves without effect."""
    config = run.config
    if run.device_type != "cuda":
        for field, why in ONLY_CUDA.items():
            section, _, _ = field.rpartition(".")
            on = section != "validation.dataloader" or config.validation.enable
            value = getattr(config.section(section), field.rpartition(".")[2])
            if on and run.is_set(field) and value is not False and _differs(config.section(section), field):
                yield f"{field}: no effect on {run.device_type}: {why}"
    ranks = run.data_parallel_degree
    reshard = config.parallelism.fsdp_reshard_after_forward
    copies = config.parallelism.data_parallel_replicate_degree
    alone = ranks == copies and config.parallelism.context_parallel_degree == 1
    if alone and reshard != "default":
        yield "parallelism.fsdp_reshard_after_forward: no effect: nothing is sharded"


ONLY_CUDA = {
    "training.dataloader.pin_memory": "it speeds up copies to CUDA",
    "validation.dataloader.pin_memory": "it speeds up copies to CUDA",
    "training.enable_cpu_offload": "everything is in the memory of the host",
    "comm.save_traces_folder": "NCCL writes them",
    "comm.save_traces_file_prefix": "NCCL writes them",
}


def _differs(section: object, field: str) -> bool:
    name = field.rpartition(".")[2]
    return bool(getattr(section, name) != getattr(type(section)(), name))
