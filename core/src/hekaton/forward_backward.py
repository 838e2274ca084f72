"""Forward and backward of one step, the same call on every layout."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any

import torch

from hekaton.build import BuiltModel
from hekaton.distributed import all_sum, plain
from hekaton.errors import ConfigError
from hekaton.loss import Batch, Objective
from hekaton.mesh import Meshes, ParallelDims
from hekaton.parallel.apply import compile_options
from hekaton.parallel.context import split_sequence
from hekaton.parallel.pipeline import Pipeline

if TYPE_CHECKING:
    from hekaton.config import JobConfig


class ForwardBackward:
    """Runs a batch through the model, whole or in stages, and accumulates gradients.

    The loss of every microbatch is divided by the number of targets of the whole step, over all ranks, so
    that gradients need no further scaling however the step is cut.
    """

    def __init__(
        self,
        built: BuiltModel,
        objective: Objective,
        meshes: Meshes,
        dims: ParallelDims,
        config: JobConfig,
        *,
        device: torch.device,
    ) -> None:
        self._built = built
        self._objective = objective
        self._loss = objective.loss
        if config.compile.enable and "loss" in config.compile.components:
            self._loss = torch.compile(objective.loss, **compile_options(config.compile))
        self._loss_group = meshes.loss.get_group()
        self._rows = config.training.local_batch_size
        self._device = device
        self._loss_parallel = dims.tp > 1 and not config.parallelism.disable_loss_parallel
        # Later stages are then given a part of the sequence, of which they cannot count the positions.
        self._hidden_are_parts = dims.pp > 1 and dims.tp > 1 and config.parallelism.sequence_parallel
        self._count = torch.ones((), device=device)
        self.pipeline: Pipeline | None = None
        if dims.pp > 1:
            self.pipeline = Pipeline(
                built.parts,
                built.shapes,
                settings=config.parallelism,
                loss=self._mean_loss,
                microbatches=self._rows // config.parallelism.pipeline_parallel_microbatch_size,
                group=meshes.dense["pp"].get_group(),
                device=device,
            )
        self._checked = False

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Accumulate the gradients of one step.

        :param batch: tensors of (rows of this rank, seq_len).
        :returns: this rank's part of the mean loss: summed over the ranks of ``Meshes.report`` it is the mean
            over the step's targets.
        """
        inputs, targets = self._prepare(batch)
        self._count = all_sum(self._objective.count(targets), self._loss_group).clamp(min=1)
        losses = []
        for start in range(0, targets.shape[0], self._rows):
            rows = slice(start, start + self._rows)
            chunk = {name: value[rows] for name, value in inputs.items()}
            with self._loss_context():
                losses.append(self._run(chunk, targets[rows]))
        return torch.stack(losses).sum()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's sum of the loss over a batch's targets, and their number."""
        inputs, targets = self._prepare(batch)
        self._count = torch.ones((), device=self._device)
        with self._loss_context():
            if self.pipeline is not None:
                total = self.pipeline.evaluate(inputs, targets)
            else:
                total = plain(self._loss(self._built.parts[0](**inputs), targets))
        return total, self._objective.count(targets)

    def _prepare(self, batch: Batch) -> tuple[Batch, torch.Tensor]:
        inputs, targets = self._objective.prepare(batch)
        built = self._built
        if built.context is not None:
            assert built.layout.context is not None
            inputs, targets = split_sequence(inputs, targets, built.layout.context, built.context)
        if self._hidden_are_parts and "positions" not in inputs:
            inputs["positions"] = torch.arange(targets.shape[1], device=targets.device).expand(targets.shape)
        if not self._checked:
            self._check_inputs(inputs)
            self._checked = True
        return inputs, targets

    def _run(self, inputs: Batch, targets: torch.Tensor) -> torch.Tensor:
        if self.pipeline is not None:
            return self.pipeline.forward_backward(inputs, targets)
        outputs = self._built.parts[0](**inputs)
        loss: Any = self._mean_loss(outputs, targets)
        del outputs
        loss.backward()
        return plain(loss).detach()

    def _mean_loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self._loss(outputs, targets) / self._count

    def _loss_context(self) -> contextlib.AbstractContextManager[Any]:
        if not self._loss_parallel:
            return contextlib.nullcontext()
        from torch.distributed.tensor.parallel import loss_parallel

        return loss_parallel()

    def _check_inputs(self, inputs: Batch) -> None:
        """Say it well when the model's forward does not take what it is given."""
        model = next(iter(self._built.parts.values()))
        try:
            inspect.signature(model.forward).bind(**inputs)
        except TypeError as e:
            raise ConfigError(
                f"the model's forward does not take ({', '.join(inputs)}): {e}",
                hint='training.packing = "concat" gives a model its tokens alone',
            ) from e
