"""The loss on data that is not trained on."""

from __future__ import annotations

import contextlib
from typing import Protocol

import torch

from hekaton.assembly import Assembled
from hekaton.data import Documents
from hekaton.distributed import all_sum
from hekaton.reading import batch_on, run_loader
from hekaton.sources import open_dataset


class Validation(Protocol):
    """What a run asks after every step."""

    @property
    def documents(self) -> Documents | None:
        """What it validates on, if at all."""

    def due(self, step: int) -> bool:
        """Whether the run is validated after this step."""

    def __call__(self) -> dict[str, float]:
        """:returns: the metrics of a validation."""


def make_validation(assembled: Assembled) -> Validation:
    """The validation that the configuration asks for; where it asks for none, one that is never due."""
    settings = assembled.config.validation
    if not settings.enable:
        return NoValidation()
    documents = open_dataset(assembled.config, assembled.plugins, settings.dataset, settings.dataset_path)
    return LossOnDataset(assembled, documents)


class NoValidation:
    """Is never due."""

    documents = None

    def due(self, step: int) -> bool:
        return False

    def __call__(self) -> dict[str, float]:
        raise AssertionError("a run without validation was validated")


class LossOnDataset:
    """Mean loss over the targets of a dataset, or of its first ``validation.steps`` batches."""

    def __init__(self, assembled: Assembled, documents: Documents) -> None:
        self._assembled = assembled
        self.documents = documents

    def due(self, step: int) -> bool:
        config = self._assembled.config
        return step % config.validation.freq == 0 or step == config.training.steps

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        assembled = self._assembled
        settings, meshes = assembled.config.validation, assembled.meshes
        device = assembled.process.device
        global_batch_size = settings.local_batch_size * assembled.dims.dp
        loader = run_loader(
            assembled,
            settings.dataset,
            self.documents,
            seq_len=settings.seq_len,
            global_batch_size=global_batch_size,
            settings=settings.dataloader,
            repeat=False,
        )
        for part in assembled.parts:
            part.eval()
        weights = assembled.objective.weights
        sums = torch.zeros(2, len(weights), dtype=torch.float64, device=device)
        steps = 0
        with contextlib.closing(loader):
            while steps != settings.steps:
                try:
                    batch = batch_on(device, loader.next_step())
                except StopIteration:
                    break
                steps += 1
                draw = assembled.draw(steps, global_batch_size=global_batch_size, purpose="validation")
                totals, counts = assembled.forward_backward.evaluate(batch, draw)
                sums[0] += torch.stack([totals[name] for name in weights])
                sums[1] += torch.stack([counts[name] for name in weights])
        for part in assembled.parts:
            part.train()
        whole = all_sum(sums[0], meshes.report.get_group())
        means = whole / all_sum(sums[1], meshes.loss.get_group()).clamp(min=1)
        terms = dict(zip(weights, means.tolist(), strict=True))
        metrics = {"validation_loss": sum(weights[name] * mean for name, mean in terms.items())}
        if len(terms) > 1:
            metrics |= {f"validation_loss/{name}": mean for name, mean in terms.items()}
        return metrics
