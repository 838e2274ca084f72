"""Rules across sections, checked before anything is built; one function each, all violations reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

from hekaton.config import checkpoint_rules, compile_rules, layout_rules, model_rules, size_rules
from hekaton.config.base import toml_value
from hekaton.config.job import JobConfig
from hekaton.config.loading import Loaded
from hekaton.config.sections import DataloaderSection
from hekaton.contributions import Check
from hekaton.errors import ConfigError, ConfigErrors, HekatonError, choices_hint
from hekaton.plugins import Plugins
from hekaton.processor import has_fast_bfloat16

if TYPE_CHECKING:
    from hekaton.build import MetaModel


@dataclass(frozen=True)
class Run:
    """A configuration, and where it is to run.

    :param world_size: number of processes, ``None`` when not known.
    :param here: whether it is to run on this machine, which then needs what the run reads.
    """

    config: JobConfig
    plugins: Plugins
    origins: Mapping[str, str]
    world_size: int | None
    device_type: str
    here: bool = True

    def violation(self, message: str, *fields: str, hint: str = "") -> ConfigError:
        """An error that says where the fields that it is about were set."""
        places = dict.fromkeys(self.origins[field] for field in fields if field in self.origins)
        return ConfigError(message, origin="; ".join(places), hint=hint)

    def is_set(self, field: str) -> bool:
        return field in self.origins

    def set_below(self, field: str) -> list[str]:
        """The keys of a table that are set."""
        return [path for path in self.origins if path.startswith(f"{field}.")]

    @cached_property
    def model(self) -> Any:
        """The model's configuration, ``None`` where it is refused, which a rule says."""
        return model_rules.model_settings(self)

    @cached_property
    def meta(self) -> MetaModel | HekatonError:
        """The model on the meta device with its tables, or why there is none."""
        return layout_rules.meta_model(self)

    @property
    def data_parallel_degree(self) -> int | None:
        """``None`` when the number of processes is not known, or does not fit the degrees."""
        if self.world_size is None or any(degrees_fit(self)):
            return None
        return self.config.data_parallel_degree(self.world_size)


Rule: TypeAlias = Callable[[Run], Iterator[HekatonError | str]]
"""Yields violations, and as plain strings notices: values that have no effect here, or less than they say."""


def check(loaded: Loaded, *, world_size: int | None, device_type: str, here: bool = True) -> tuple[str, ...]:
    """Check what single sections cannot.

    :param world_size: number of processes; ``None`` leaves out what depends on it.
    :param device_type: ``cpu`` or ``cuda``.
    :param here: whether the run is to start on this machine, and not only to be looked at: its tokenizer must
        be there and fit, and one process must have memory for the model.
    :returns: notices, one line each.
    :raises ConfigErrors: with every violation.
    """
    run = Run(loaded.config, loaded.plugins, loaded.origins, world_size, device_type, here)
    problems: list[HekatonError] = []
    notices = []
    said = set()
    contributed: list[Rule] = [one.record.rule.load() for one in loaded.plugins.all(Check).values()]
    for rule in (*RULES, *contributed):
        for found in rule(run):
            if isinstance(found, str):
                notices.append(found)
            elif found.message not in said:  # several rules may need a model that there is not
                said.add(found.message)
                problems.append(found)
    if problems:
        raise ConfigErrors(problems)
    return tuple(notices)


DEGREES = (
    "data_parallel_replicate_degree",
    "data_parallel_shard_degree",
    "pipeline_parallel_degree",
    "context_parallel_degree",
    "tensor_parallel_degree",
)


def degrees_fit(run: Run) -> Iterator[HekatonError]:
    """The degrees of parallelism multiply to the number of processes."""
    if run.world_size is None:
        return
    shard = "data_parallel_shard_degree"
    degrees = {name: getattr(run.config.parallelism, name) for name in DEGREES}
    rest = 1
    for name, degree in degrees.items():
        rest *= 1 if name == shard else degree
    fields = [f"parallelism.{name}" for name in DEGREES]
    processes = "1 process" if run.world_size == 1 else f"{run.world_size} processes"
    if degrees[shard] == -1:
        if run.world_size % rest:
            said = " × ".join(f"{n} {d}" for n, d in degrees.items() if d > 1)
            yield run.violation(
                f"{processes} cannot be divided by {rest} ({said})",
                *fields,
                hint=f"choose degrees that multiply to one of {_list(_divisors(run.world_size))}",
            )
    elif degrees[shard] * rest != run.world_size:
        said = " × ".join(f"{n} {d}" for n, d in degrees.items() if d > 1 or n == shard)
        fitting = (
            f"{shard} = {run.world_size // rest} or -1, or "
            if run.world_size % rest == 0
            else f"degrees that multiply to {run.world_size}, or "
        )
        yield run.violation(
            f"the degrees of parallelism multiply to {degrees[shard] * rest} ({said}), "
            f"but this run has {processes}",
            *fields,
            hint=f"choose {fitting}start {degrees[shard] * rest} processes",
        )


def batch_is_divisible(run: Run) -> Iterator[HekatonError]:
    """Every rank computes the same number of whole microbatches per step."""
    training = run.config.training
    ranks = run.data_parallel_degree
    unit = training.local_batch_size * (ranks or 1)
    total = training.global_batch_size
    if total == -1 or total % unit == 0:
        return
    said = f"local_batch_size {training.local_batch_size}"
    if ranks is not None:
        said += f" × {ranks} data-parallel rank{'s' if ranks > 1 else ''} = {unit}"
    nearest = sorted({max(1, total // unit) * unit, -(-total // unit) * unit})
    yield run.violation(
        f"training.global_batch_size = {total} is not divisible by {said}",
        "training.global_batch_size",
        "training.local_batch_size",
        hint=f"choose -1, or a multiple such as {_list(nearest, last=' or ')}",
    )


def workers_have_rows(run: Run) -> Iterator[HekatonError]:
    """Rows are dealt out to workers: more workers than rows would idle."""
    ranks = run.data_parallel_degree
    training, validation = run.config.training, run.config.validation
    rows = (
        training.local_batch_size
        if ranks is None or training.global_batch_size == -1
        else training.global_batch_size // ranks
    )
    if ranks is not None or training.global_batch_size == -1:
        yield from _workers(run, "training", training.dataloader, rows)
    if validation.enable:
        yield from _workers(run, "validation", validation.dataloader, validation.local_batch_size)


def _workers(run: Run, section: str, loader: DataloaderSection, rows: int) -> Iterator[HekatonError]:
    if loader.num_workers > rows > 0:
        yield run.violation(
            f"{section}.dataloader.num_workers = {loader.num_workers} is more than the {rows} "
            f"row{'s' if rows > 1 else ''} that each rank reads per step",
            f"{section}.dataloader.num_workers",
            hint=f"choose at most {rows}, or a larger batch",
        )


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


def backend_exists(run: Run) -> Iterator[HekatonError | str]:
    """torch.compile has the backend; asking it costs a second or two."""
    settings = run.config.compile
    if not settings.enable:
        return
    if not settings.components:
        yield "compile.enable has no effect: compile.components is empty"
        return
    import torch._dynamo

    if settings.backend not in torch._dynamo.list_backends(exclude_tags=()):
        yield run.violation(
            f"unknown backend '{settings.backend}' (compile.backend)",
            "compile.backend",
            hint=choices_hint(settings.backend, torch._dynamo.list_backends()),
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
    same = (training.dataset, training.dataset_path) == (validation.dataset, validation.dataset_path)
    if validation.enable and same:
        yield f"validation.dataset = {toml_value(validation.dataset)} is the data that is trained on"


def loggers_are_there(run: Run) -> Iterator[str]:
    """Settings of loggers when there is none."""
    metrics = run.config.metrics
    if metrics.enable_tensorboard or metrics.loggers:
        return
    for field in ("metrics.save_tb_folder", "metrics.save_for_all_ranks"):
        if run.is_set(field) and _differs(metrics, field):
            yield f"{field}: no effect: the run has no loggers (metrics.enable_tensorboard, metrics.loggers)"


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
    "comm.trace_buf_size": "the flight recorder is NCCL's",
    "comm.save_traces_folder": "the flight recorder is NCCL's",
    "comm.save_traces_file_prefix": "the flight recorder is NCCL's",
}

RULES: tuple[Rule, ...] = (
    degrees_fit,
    model_rules.model_accepts,
    model_rules.optimizer_groups_match,
    layout_rules.model_divides,
    layout_rules.sequence_divides,
    layout_rules.microbatches_fit,
    layout_rules.split_backward_keeps_parameters,
    layout_rules.layout_is_said_once,
    layout_rules.plan_can_be_carried_out,
    size_rules.batch_is_in_bounds,
    size_rules.weight_decay_shrinks,
    size_rules.tokenizer_fits,
    size_rules.model_fits_memory,
    batch_is_divisible,
    workers_have_rows,
    schedule_fits,
    profile_fits,
    backend_exists,
    compile_rules.operators_can_be_kept,
    compile_rules.memory_budget_is_compiled,
    compile_rules.async_tensor_parallel_can_run,
    checkpoint_rules.seed_is_the_start,
    checkpoint_rules.something_is_loaded,
    checkpoint_rules.something_is_saved,
    checkpoint_rules.folders_can_be_reached,
    checkpoint_rules.hugging_face_knows_the_model,
    precision_is_used,
    validation_is_other_data,
    loggers_are_there,
    device_matters,
)


def _differs(section: object, field: str) -> bool:
    name = field.rpartition(".")[2]
    return bool(getattr(section, name) != getattr(type(section)(), name))


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _list(numbers: list[int], *, last: str = ", ") -> str:
    *others, final = map(str, numbers)
    return f"{', '.join(others)}{last}{final}" if others else final
