"""The loss on data that is not trained on."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from hekaton.assembly import Assembled
from hekaton.data import CountsBytes, Documents
from hekaton.distributed import all_sum
from hekaton.draws import Draw
from hekaton.errors import about
from hekaton.loss import IGNORE_INDEX
from hekaton.metrics import OF_SET
from hekaton.objective import Batch, MakesImages, validated_by
from hekaton.reading import batch_on, encoders_of, run_loader, shared_batches
from hekaton.sources import open_dataset

_HIGHEST = 700.0
"""Losses above it have no perplexity that a float holds."""


class Validation(Protocol):
    """What a run asks after every step."""

    @property
    def documents(self) -> Mapping[str, Documents]:
        """What it validates on, by what that is called."""

    @property
    def encoders(self) -> Mapping[str, str]:
        """The fingerprint of what encodes each of these."""

    def due(self, step: int) -> bool:
        """Whether the run is validated after this step."""

    def __call__(self) -> dict[str, float]:
        """:returns: the metrics of a validation."""


def make_validation(assembled: Assembled) -> Validation:
    """The validation that the configuration asks for; where it asks for none, one that is never due."""
    settings = assembled.config.validation
    if not settings.enable:
        return NoValidation()
    if not settings.sets:
        return LossOnData(
            assembled, [_Data("", settings.dataset, settings.dataset_path, steps=settings.steps)]
        )
    return LossOnData(
        assembled,
        [
            _Data(one.name or one.dataset, one.dataset, one.dataset_path, one.steps, one.rows, one.settings)
            for one in settings.sets
        ],
    )


def images_due(assembled: Assembled, step: int) -> bool:
    """Whether the objective makes images after this step."""
    objective = assembled.objective
    last = step == assembled.config.training.steps
    return isinstance(objective, MakesImages) and objective.images_due(step, last=last)


def images_of(assembled: Assembled) -> Mapping[str, npt.NDArray[np.uint8]]:
    """The images that the objective makes with the model as it is, in eval mode."""
    assert isinstance(assembled.objective, MakesImages)
    with _evaluated(assembled):
        return assembled.objective.images(assembled.forward_backward.predict)


@contextlib.contextmanager
def _evaluated(assembled: Assembled) -> Iterator[None]:
    for part in assembled.parts:
        part.eval()
    yield
    for part in assembled.parts:
        part.train()


class NoValidation:
    """Is never due."""

    documents: Mapping[str, Documents] = {}
    encoders: Mapping[str, str] = {}

    def due(self, step: int) -> bool:
        return False

    def __call__(self) -> dict[str, float]:
        raise AssertionError("a run without validation was validated")


@dataclass(frozen=True)
class _Data:
    """What is validated on.

    :param name: of a set; empty for the dataset of ``[validation]`` itself.
    :param rows: of a set, that its documents are shared out to; ``None`` for those of the layout.
    """

    name: str
    dataset: str
    path: str | None
    steps: int
    rows: int | None = None
    settings: Mapping[str, Any] | None = None

    @property
    def what(self) -> str:
        return f"validation data '{self.name}'" if self.name else "validation data"

    def metric(self, name: str) -> str:
        return f"{OF_SET}{self.name}/{name}" if self.name else f"validation_{name}"


class LossOnData:
    """Mean loss over the targets of datasets, or of the first sequences of each, and what follows from it."""

    def __init__(self, assembled: Assembled, data: list[_Data]) -> None:
        self._assembled = assembled
        self._data = data
        self.documents, self.encoders = {}, {}
        for one in data:
            with about(one.what):
                self.documents[one.what] = open_dataset(
                    assembled.config, assembled.plugins, one.dataset, one.path, settings=one.settings
                )
                self.encoders[one.what] = encoders_of(
                    assembled, one.dataset, self.documents[one.what], rows=self._rows(one),
                    settings=one.settings,
                )  # fmt: skip
        tokenizer = assembled.tokenizer
        self._bytes = (
            torch.from_numpy(tokenizer.byte_lengths()) if isinstance(tokenizer, CountsBytes) else None
        )

    def due(self, step: int) -> bool:
        config = self._assembled.config
        return step % config.validation.freq == 0 or step == config.training.steps

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        with _evaluated(self._assembled):
            for one in self._data:
                with about(one.what):
                    metrics |= {one.metric(name): value for name, value in self._metrics(one).items()}
        return metrics

    def _metrics(self, data: _Data) -> dict[str, float]:
        """``loss``; where there are several terms ``loss/TERM`` of those that count anything; of texts
        ``perplexity`` and ``bits_per_byte``."""
        assembled = self._assembled
        meshes, device = assembled.meshes, assembled.process.device
        objective = validated_by(assembled.objective)
        weights = objective.weights
        sums = torch.zeros(2, len(weights), dtype=torch.float64, device=device)
        size = torch.zeros((), dtype=torch.float64)
        with contextlib.closing(self._batches(data)) as batches:
            for batch, draw in batches:
                size += self._size(batch)
                totals, counts = assembled.forward_backward.evaluate(batch_on(device, batch), draw)
                sums[0] += torch.stack([totals[name] for name in weights])
                sums[1] += torch.stack([counts[name] for name in weights])
        whole = all_sum(sums[0], meshes.report.get_group())
        counted = all_sum(sums[1], meshes.loss.get_group())
        terms = dict(zip(weights, (whole / counted.clamp(min=1)).tolist(), strict=True))
        metrics = {"loss": sum(weights[name] * mean for name, mean in terms.items())}
        if len(terms) > 1:
            there = dict(zip(weights, counted.tolist(), strict=True))
            metrics |= {f"loss/{name}": mean for name, mean in terms.items() if there[name]}
        likelihood = getattr(objective, "likelihood", None)
        if likelihood is not None:
            metrics["perplexity"] = math.exp(min(terms[likelihood], _HIGHEST))
            text = all_sum(size.to(device), meshes.batch["dp"].get_group()).item()
            if text:
                nats = whole.tolist()[list(weights).index(likelihood)]
                metrics["bits_per_byte"] = nats / math.log(2) / text
        return metrics

    def _rows(self, data: _Data) -> int:
        """Rows that read it: of a set no more than it has documents, since others would have nothing."""
        if data.rows is not None:
            return min(data.rows, len(self.documents[data.what]))
        return self._assembled.config.validation.local_batch_size * self._assembled.dims.dp

    def _size(self, batch: Batch) -> torch.Tensor:
        """Bytes of text of the targets of a batch."""
        labels = batch.get("labels")
        if self._bytes is None or labels is None:
            return torch.zeros((), dtype=torch.int64)
        return self._bytes[labels[labels != IGNORE_INDEX]].sum()

    def _batches(self, data: _Data) -> Generator[tuple[Batch, Draw]]:
        """As many on each rank, of ``validation.local_batch_size`` rows."""
        assembled = self._assembled
        settings = assembled.config.validation
        documents = self.documents[data.what]
        if data.rows is not None:
            batches = shared_batches(
                assembled, data.dataset, documents, rows=self._rows(data), steps=data.steps,
                settings=data.settings,
            )  # fmt: skip
            for batch, rows in batches:
                yield batch, assembled.draw(1, rows=rows, purpose="validation")
            return
        count = self._rows(data)
        loader = run_loader(
            assembled,
            data.dataset,
            documents,
            seq_len=settings.seq_len,
            global_batch_size=count,
            settings=settings.dataloader,
            repeat=False,
            steps=settings.steps,
        )
        with contextlib.closing(loader):
            for step in itertools.count(1):
                if step == settings.steps + 1:
                    return
                try:
                    batch = loader.next_step()
                except StopIteration:
                    return
                yield batch, assembled.draw(step, rows=assembled.rows(count), purpose="validation")
