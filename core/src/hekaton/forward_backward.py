"""Forward and backward of one step, the same call on every layout."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from hekaton.building import BuiltModel
from hekaton.distributed import all_sum, gather_along, plain
from hekaton.draws import Draw
from hekaton.errors import ConfigError, PluginError
from hekaton.mesh import Meshes, ParallelDims
from hekaton.objective import (
    Batch,
    TrainingObjective,
    changes,
    check_counts,
    check_declared,
    check_sums,
    check_unchanged,
    check_weights,
    validated_by,
)
from hekaton.parallel.apply import compile_options
from hekaton.parallel.context import inner_attentions, split_sequence
from hekaton.parallel.contract import attention_failed
from hekaton.parallel.pipeline import Pipeline
from hekaton.terms import collected_terms
from hekaton.torch_versions import ignore_warning_of_view_outputs

if TYPE_CHECKING:
    from hekaton.config import JobConfig

TOTAL = "loss"
"""Name of the loss as a whole, beside its terms ``loss/NAME``."""

_Noted: TypeAlias = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""The loss, and the mean of each term."""
RunMicrobatch: TypeAlias = Callable[[Callable[[], _Noted]], _Noted]
"""Runs a microbatch by calling the function that it is given, once or several times."""


class ForwardBackward:
    """Runs a batch through the model, whole or in stages, and accumulates gradients.

    Each term of the loss of every microbatch is divided by its count in the whole step, over all ranks, so
    that gradients need no further scaling however the step is cut.
    """

    def __init__(
        self,
        built: BuiltModel,
        objective: TrainingObjective,
        meshes: Meshes,
        dims: ParallelDims,
        config: JobConfig,
        *,
        device: torch.device,
        terms: Mapping[str, float] | None = None,
    ) -> None:
        """:param terms: those that the model adds to the loss, with their weights, see ``TrainSpec.terms``

        :raises PluginError: for weights that are no numbers, and when the model and the objective have a term
            of the same name.
        """
        self._built = built
        self._terms = terms or {}
        check_weights(objective)
        check_weights(validated_by(objective))
        if both := sorted(self._terms.keys() & objective.weights.keys()):
            raise PluginError(
                f"the loss has two terms '{both[0]}': of the model and of {type(objective).__name__}",
                hint="rename it in TrainSpec.terms or in the objective's weights",
            )
        self._dp = dims.dp
        self._tensor_group = meshes.batch["tp"].get_group()
        self._objective = objective
        self._loss = objective.loss
        if config.compile.enable and "loss" in config.compile.components:
            self._loss = torch.compile(objective.loss, **compile_options(config.compile))
        self._loss_group = meshes.loss.get_group()
        self._rows = config.training.local_batch_size
        self._seq_len = config.training.seq_len
        self._device = device
        self._loss_parallel = dims.tp > 1 and not config.parallelism.disable_loss_parallel
        self._counts: Mapping[str, torch.Tensor] = {}
        self.pipeline: Pipeline | None = None
        if dims.pp > 1:
            self.pipeline = Pipeline(
                built.parts,
                built.shapes,
                settings=config.parallelism,
                loss=self._mean_loss,
                first_inputs=[one.name for one in objective.inputs(self._seq_len) if one.first_stage],
                microbatches=self._rows // config.parallelism.pipeline_parallel_microbatch_size,
                group=meshes.dense["pp"].get_group(),
                device=device,
            )
        for part in built.parts.values():
            ignore_warning_of_view_outputs(part)  # _mean_loss refuses what it warns of
        self._checked = False
        self._losses: list[_Noted] = []

    def __call__(
        self, batch: Batch, draw: Draw, *, first: RunMicrobatch | None = None
    ) -> dict[str, torch.Tensor]:
        """Accumulate the gradients of one step.

        :param batch: this rank's rows.
        :param first: what runs the first microbatch, see :meth:`accumulate`.
        :returns: ``loss``, and where it has several terms each as ``loss/NAME``: this rank's part of the
            mean. Summed over the ranks of ``Meshes.report`` it is the mean over the whole step.
        """
        inputs, targets = self._objective.prepare(batch, draw)
        if not self._checked:
            self._check(inputs, targets)
            self._checked = True
        total, terms = self.accumulate(inputs, targets, first=first)
        if len(terms) == 1:
            return {TOTAL: total}
        return {TOTAL: total, **{f"{TOTAL}/{name}": term for name, term in terms.items()}}

    def accumulate(
        self, inputs: Batch, targets: Batch, *, first: RunMicrobatch | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Accumulate the gradients of what the objective has prepared: whole sequences of this rank's rows.

        :param first: is given a function that runs the first microbatch, and returns what that returned.
        :returns: this rank's part of the loss, and of the mean of each term.
        """
        inputs, targets = self._split(inputs, targets)
        self._counts = self._global_counts(targets)
        losses: list[_Noted] = []
        rows = len(next(iter(targets.values())))
        scales = {name: weight / (rows * self._dp) for name, weight in self._terms.items()}
        with collected_terms(scales) as sums:
            for start in range(0, rows, self._rows):
                run = partial(self._run, _rows(inputs, start, self._rows), _rows(targets, start, self._rows))
                with self._loss_context():
                    if first is not None and start == 0:
                        losses.append(first(partial(_with_new_sums, run, sums)))
                    else:
                        losses.append(run())
        total, terms = self._summed(losses)
        return self._with_terms(total, terms, sums, rows=rows * self._dp)

    def _with_terms(
        self,
        total: torch.Tensor,
        terms: dict[str, torch.Tensor],
        sums: Mapping[str, torch.Tensor],
        *,
        rows: int,
    ) -> _Noted:
        """The losses with the terms that the model's layers on this rank have added."""
        if not self._terms:
            return total, terms
        zero = torch.zeros((), dtype=total.dtype, device=self._device)
        # Layers may see a part of the sequence on each rank of tensor parallel, which all have the loss.
        added = all_sum(
            torch.stack([sums.get(name, zero).to(total.dtype) for name in self._terms]) / rows,
            self._tensor_group,
        )
        means = dict(zip(self._terms, added.unbind(), strict=True))
        for name, weight in self._terms.items():
            total = total + weight * means[name]
        return total, {**terms, **means}

    @torch.no_grad()
    def evaluate(self, batch: Batch, draw: Draw) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """This rank's sum of each term over a batch, and its count, of the objective that validates."""
        with self._validating():
            inputs, targets = self._split(*self._objective.prepare(batch, draw))
            counts = {name: count.clone() for name, count in self._objective.count(targets).items()}
            self._counts = {name: torch.ones((), device=self._device) for name in self._objective.weights}
            with self._loss_context():
                if self.pipeline is not None:
                    _, sums = self._recorded(self.pipeline.evaluate, inputs, targets)
                else:
                    _, sums = self._recorded(self._forward, inputs, targets)
        return sums, counts

    @torch.no_grad()
    def predict(self, inputs: Batch) -> torch.Tensor:
        """The model's outputs for inputs of whole sequences, the same on every rank: (rows, sequence, ...).

        Every rank computes all of it. Not for a pipeline, nor for outputs that are no tensor.
        """
        assert self.pipeline is None, "no rank of a pipeline has the outputs of whole rows and their inputs"
        mine, _ = self._split(inputs, {})
        outputs: torch.Tensor = plain(self._whole(mine))
        built = self._built
        if built.context is None:
            return outputs
        assert built.layout.context is not None
        whole = gather_along(outputs.contiguous(), 1, built.context.process_group)
        order = built.layout.context.order(whole.shape[1], built.context.degree, device=whole.device)
        return torch.empty_like(whole).index_copy_(1, order, whole)

    @contextlib.contextmanager
    def _validating(self) -> Iterator[None]:
        """Compute the objective that validates, where the run's has one."""
        trained, loss = self._objective, self._loss
        self._objective = validated_by(trained)
        if self._objective is not trained:
            self._loss = self._objective.loss
        try:
            yield
        finally:
            self._objective, self._loss = trained, loss

    def _split(self, inputs: Batch, targets: Batch) -> tuple[Batch, Batch]:
        """This rank's part of the sequences."""
        built = self._built
        if built.context is None:
            return inputs, targets
        assert built.layout.context is not None
        declared = (self._objective.inputs(self._seq_len), self._objective.targets(self._seq_len))
        mine = [
            split_sequence(
                given, {one.name: one.sequence for one in tensors}, built.layout.context, built.context
            )
            for given, tensors in zip((inputs, targets), declared, strict=True)
        ]
        return mine[0], mine[1]

    def _global_counts(self, targets: Batch) -> dict[str, torch.Tensor]:
        """Term -> its count over all ranks, at least 1."""
        counts = self._objective.count(targets)
        check_counts(self._objective, counts)
        names = list(self._objective.weights)
        whole = all_sum(torch.stack([counts[name] for name in names]), self._loss_group).clamp(min=1)
        return dict(zip(names, whole.unbind(), strict=True))

    def _run(self, inputs: Batch, targets: Batch) -> _Noted:
        if self.pipeline is not None:
            return self._recorded(self.pipeline.forward_backward, inputs, targets)
        return self._recorded(self._forward_backward, inputs, targets)

    def _forward(self, inputs: Batch, targets: Batch) -> None:
        self._mean_loss(self._whole(inputs), targets)

    def _forward_backward(self, inputs: Batch, targets: Batch) -> None:
        outputs = self._whole(inputs)
        loss: Any = self._mean_loss(outputs, targets)
        del outputs
        loss.backward()

    def _whole(self, inputs: Batch) -> Any:
        built = self._built
        try:
            return built.parts[0](**inputs)
        except TypeError as e:
            replaced = inner_attentions(built.parts[0], built.layout.plan.context if built.context else ())
            failed = attention_failed(e, replaced)
            if failed is None:
                raise
            raise failed from e

    def _recorded(self, run: Any, inputs: Batch, targets: Batch) -> _Noted:
        """The losses of a run, summed over its microbatches."""
        self._losses = []
        run(inputs, targets)
        return self._summed(self._losses)

    def _mean_loss(self, outputs: Any, targets: Batch) -> torch.Tensor:
        """The loss of one microbatch as its part of the step's mean, noted down with its terms."""
        before = changes(outputs)
        sums = self._loss(outputs, targets)
        check_unchanged(self._objective, outputs, before)
        check_sums(self._objective, sums)
        means = {name: sums[name] / self._counts[name] for name in self._objective.weights}
        weighted = [
            mean if self._objective.weights[name] == 1.0 else mean * self._objective.weights[name]
            for name, mean in means.items()
        ]
        total = weighted[0]
        for term in weighted[1:]:
            total = total + term
        terms = {name: plain(mean).detach() for name, mean in means.items()}
        self._losses.append((plain(total).detach(), terms))
        return total

    def _summed(self, losses: Sequence[_Noted]) -> _Noted:
        if not losses:  # another rank has the last stage
            assert self.pipeline is not None
            zero = torch.zeros((), dtype=self.pipeline.loss_dtype, device=self._device)
            return zero, dict.fromkeys(self._objective.weights, zero)
        total = torch.stack([total for total, _ in losses]).sum()
        terms = {
            name: torch.stack([terms[name] for _, terms in losses]).sum() for name in self._objective.weights
        }
        if self.pipeline is not None:  # an objective may compute its loss in another precision than the model
            dtype = self.pipeline.loss_dtype
            return total.to(dtype), {name: term.to(dtype) for name, term in terms.items()}
        return total, terms

    def _loss_context(self) -> contextlib.AbstractContextManager[Any]:
        if not self._loss_parallel:
            return contextlib.nullcontext()
        from torch.distributed.tensor.parallel import loss_parallel

        return loss_parallel()

    def _check(self, inputs: Batch, targets: Batch) -> None:
        """Compare the first batch with what the objective declares, and with the model's forward."""
        wrong = [
            *check_declared(inputs, self._objective.inputs(self._seq_len), what="input"),
            *check_declared(targets, self._objective.targets(self._seq_len), what="target"),
        ]
        if wrong:
            raise PluginError(
                f"the objective {type(self._objective).__name__} does not give what it declares",
                hint="\n".join(wrong),
            )
        model = next(iter(self._built.parts.values()))
        try:
            inspect.signature(model.forward).bind(**inputs)
        except TypeError as e:
            raise ConfigError(
                f"the model's forward does not take ({', '.join(inputs)}): {e}",
                hint="training.objective and training.packing say what it is given",
            ) from e


def _rows(batch: Batch, start: int, count: int) -> Batch:
    return {name: value[start : start + count] for name, value in batch.items()}


def _with_new_sums(run: Callable[[], _Noted], sums: dict[str, torch.Tensor]) -> _Noted:
    """Run the first microbatch, before which nothing has been collected."""
    sums.clear()
    return run()
