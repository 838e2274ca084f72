"""The batches of a run: which rows of the global batch this rank reads, and from where."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from hekaton.assembly import Assembled
from hekaton.control import RunControl
from hekaton.data.loader import Loader, identity_of
from hekaton.data.mixture import Mixture
from hekaton.distributed import all_sum
from hekaton.objective import Batch
from hekaton.sources import make_stream

if TYPE_CHECKING:
    from hekaton.config.sections import DataloaderSection
    from hekaton.data import Documents
    from hekaton.data.rows import Stream


log = logging.getLogger("hekaton")


def run_loader(
    assembled: Assembled,
    dataset: str,
    documents: Documents,
    *,
    seq_len: int,
    global_batch_size: int,
    settings: DataloaderSection,
    repeat: bool = True,
    steps: int = -1,
) -> Loader:
    """The batches of a dataset, for the rows of the global batch that this rank reads.

    :param dataset: name of the dataset that ``documents`` are of.
    :param repeat: read epoch after epoch; otherwise all ranks stop together at the end of the first.
    :param steps: batches that are read where documents are read once; -1 for all.
    """
    config, device = assembled.config, assembled.process.device
    assert assembled.tokenizer is not None

    def anything_left(mine: bool) -> bool:
        left = torch.tensor(float(mine), device=device)
        return bool(all_sum(left, assembled.meshes.loss.get_group()).item())

    stream = make_stream(
        config,
        assembled.plugins,
        assembled.tokenizer,
        dataset,
        documents,
        seq_len=seq_len,
        rows=global_batch_size,
        repeat=repeat,
        steps=steps,
    )
    identity = identity_of(
        stream,
        assembled.tokenizer,
        seed=config.debug.seed or 0,
        packing=config.training.packing,
        order=config.training.order,
    )
    return Loader(
        stream,
        assembled.rows(global_batch_size),
        identity=identity,
        num_workers=settings.num_workers,
        pin_memory=settings.pin_memory is not False and device.type == "cuda",
        prefetch_factor=settings.prefetch_factor,
        anything_left=anything_left,
    )


def encoders_of(
    assembled: Assembled,
    dataset: str,
    documents: Documents,
    *,
    rows: int,
    settings: Mapping[str, Any] | None = None,
) -> str:
    """The fingerprints of what encodes the documents of a dataset.

    :param settings: values in place of those of the dataset's own section.
    """
    assert assembled.tokenizer is not None
    stream = make_stream(
        assembled.config, assembled.plugins, assembled.tokenizer, dataset, documents,
        seq_len=assembled.config.validation.seq_len, rows=rows, repeat=False, settings=settings,
    )  # fmt: skip
    return ",".join(sorted({source.encoder.fingerprint for source in stream.sources}))


def shared_batches(
    assembled: Assembled,
    dataset: str,
    documents: Documents,
    *,
    rows: int,
    steps: int,
    settings: Mapping[str, Any] | None = None,
) -> Generator[tuple[Batch, list[int]]]:
    """The sequences of one pass over a dataset, which are the same on every layout, in batches of this rank.

    :param rows: that documents are shared out to. Each rank reads some of them, or none.
    :param steps: sequences of each row; -1 for all.
    :param settings: values in place of those of the dataset's own section.
    :returns: batches of ``validation.local_batch_size`` rows, as many on each rank, and the number of each
        sequence among those of all ranks; rows that are left over are padding.
    """
    config, dims = assembled.config, assembled.dims
    assert assembled.tokenizer is not None
    size = config.validation.local_batch_size
    stream = make_stream(
        config, assembled.plugins, assembled.tokenizer, dataset, documents,
        seq_len=config.validation.seq_len, rows=rows, repeat=False, steps=steps, settings=settings,
    )  # fmt: skip
    rank, readers = assembled.meshes.batch["dp"].get_local_rank(), assembled.meshes.batch["dp"].get_group()
    mine = range(rank * rows // dims.dp, (rank + 1) * rows // dims.dp)
    sequences = _sequences(stream, mine, config.validation.dataloader, steps)
    with contextlib.closing(sequences):
        while True:
            batch = {name: torch.from_numpy(values) for name, values in stream.maker.empty(size).items()}
            numbers = [-1] * size
            for index, (number, row) in enumerate(itertools.islice(sequences, size)):
                numbers[index] = number
                for name, values in row.items():
                    batch[name][index] = values
            found = torch.tensor(float(numbers[0] >= 0), device=assembled.process.device)
            if not all_sum(found, readers).item():
                return
            yield batch, numbers


def _sequences(
    stream: Stream, rows: range, settings: DataloaderSection, steps: int
) -> Generator[tuple[int, Batch]]:
    """The sequences of some rows that are no padding, and their numbers among those of all rows."""
    if not rows:
        return
    loader = Loader(
        stream, rows, identity={}, num_workers=settings.num_workers,
        prefetch_factor=settings.prefetch_factor, anything_left=bool,
    )  # fmt: skip
    with contextlib.closing(loader):
        for step in itertools.count() if steps == -1 else range(steps):
            try:
                batch = loader.next_step()
            except StopIteration:
                return
            for index, source in enumerate(loader.sources):
                if source >= 0:
                    number = step * stream.rows + rows[index]
                    yield number, {name: values[index] for name, values in batch.items()}


def shares_of_sources(loader: Loader, readers: dist.ProcessGroup) -> dict[str, float]:
    """Of each source of a mixture the tokens, or images, that the run has read, their share, and epochs.

    :param readers: the ranks that read the rows of the global batch.
    """
    progress = loader.progress()
    if not progress:
        return {}
    mine = torch.tensor([[one.tokens, one.epochs] for one in progress], dtype=torch.float64)
    whole = all_sum(mine, readers).tolist()
    total = sum(tokens for tokens, _ in whole) or 1.0
    return {
        f"data/{one.name}/{what}": value
        for one, (tokens, epochs) in zip(progress, whole, strict=True)
        for what, value in {loader.unit: tokens, "share": tokens / total, "epochs": epochs}.items()
    }


class MixtureWatch:
    """Says when the weights of a mixture change, and when rows of this rank have read a source to its end.

    :param control: is asked to stop the run where the mixture says so, or nothing is left.
    """

    def __init__(self, loader: Loader, documents: Documents, control: RunControl) -> None:
        self._loader = loader
        self._stops = isinstance(documents, Mixture) and documents.stops
        self._control = control
        self._ended: list[str] = []

    def look(self, step: int) -> None:
        """Called after each step.

        :param step: steps that are done.
        """
        if self._loader.shares(step) != self._loader.shares(step - 1):
            log_shares(self._loader, step=step)
        new = [name for name in self._loader.ended_names() if name not in self._ended]
        self._ended += new
        for name in new:
            log.info("step %d: source '%s' is read to its end in rows of this process", step, name)
            if self._stops:
                self._control.ask(
                    save=True, stop=True, reason=f"source '{name}' is read to its end, and "
                    'mixture.when_a_source_ends = "stop"',
                )  # fmt: skip
        if self._ended and self._loader.all_ended():
            self._control.ask(
                save=True, stop=True, reason="a row has read all sources of the mixture to their end"
            )


def log_read(loader: Loader, readers: dist.ProcessGroup, *, device: torch.device) -> None:
    """Say how many documents rows of the run met since it started, or was resumed, that have no token, or no
    image; and what was read of each source of a mixture since the first step."""
    whole = int(all_sum(torch.tensor(loader.skipped, device=device), readers).item())
    if whole:
        nothing = "a token, or a target," if loader.unit == "tokens" else loader.unit
        log.info("notice: documents without %s that were skipped: %s", nothing, f"{whole:,}")
    reached = shares_of_sources(loader, readers)
    for name in [one.name for one in loader.progress()]:
        count, share, epochs = (reached[f"data/{name}/{what}"] for what in (loader.unit, "share", "epochs"))
        log.info(
            "mixture: %s %s of %s, %.2f%% of all, in %.2f epochs", f"{count:,.0f}", loader.unit, name,
            100 * share, epochs,
        )  # fmt: skip


def log_shares(loader: Loader, *, step: int) -> None:
    """Say what the next step is made of, where that is a mixture."""
    shares = loader.shares(step)
    if shares:
        each = ", ".join(f"{name} {share:.2%}" for name, share in shares.items())
        log.info("mixture from step %d on: %s of the %s", step + 1, each, loader.unit)


def batch_on(device: torch.device, batch: Batch) -> Batch:
    """The batch, on its way to the device."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
