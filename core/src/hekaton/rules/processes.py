"""Rules of the processes: degrees that multiply to their number, batches that they divide evenly."""

from __future__ import annotations

from collections.abc import Iterator

from hekaton.config.sections import DataloaderSection
from hekaton.errors import HekatonError
from hekaton.rules.run import Run

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
    rest = run.config.parallelism.other_degrees
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
    """Rows are distributed to workers: more workers than rows would idle."""
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


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def _list(numbers: list[int], *, last: str = ", ") -> str:
    *others, final = map(str, numbers)
    return f"{', '.join(others)}{last}{final}" if others else final
