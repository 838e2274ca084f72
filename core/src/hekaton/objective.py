"""What an objective is to hekaton: inputs and targets that it declares, and a loss of named terms.

The counts are asked for before the first forward pass, so that every microbatch's loss is divided by the
global counts of the step, and gradients are right however the step is cut into ranks and microbatches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch

from hekaton.errors import PluginError
from hekaton.mesh import ParallelDims

if TYPE_CHECKING:
    from hekaton.draws import Draw

Batch: TypeAlias = dict[str, torch.Tensor]
"""Tensors by name; the first dim of each is the row."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveContext:
    """The run that an objective is built for.

    :param device: where batches, outputs and losses are.
    :param dtype: the precision that the model computes in.
    :param dims: the degrees of parallelism.
    :param model: the configuration of the model.
    :param sequence_is_cut: inside the model a rank may hold a part of the sequence that does not begin at
        position 0 (context parallel; later pipeline stages under sequence parallel), so that what a model
        would count along the sequence must be among its inputs.
    """

    device: torch.device
    dtype: torch.dtype
    dims: ParallelDims
    model: Any
    sequence_is_cut: bool


@dataclass(frozen=True, kw_only=True)
class BatchTensor:
    """One tensor that an objective gives to the model, or keeps as a target.

    :param shape: that of one row, without the dim of the rows.
    :param sequence: which dim of ``shape`` is the sequence, which context parallel splits; ``None`` for a
        tensor that every rank needs whole.
    :param length_from: the configuration field that the length of the sequence follows from, where it is
        not ``training.seq_len``, such as ``flow_matching.image_size``: errors name it.
    :param first_stage: only the first pipeline stage is given it. Such inputs are the first parameters of the
        model's forward, in the order of their declaration; on later stages what the stage before returned
        takes their place. Other inputs are given to every stage by name.
    :param optional: the model's forward does without it. A dry run leaves it out, since what is computed may
        depend on its values.
    """

    name: str
    shape: Sequence[int]
    dtype: torch.dtype
    sequence: int | None = None
    length_from: str = ""
    first_stage: bool = False
    optional: bool = False

    def __post_init__(self) -> None:
        if self.sequence is not None and not 0 <= self.sequence < len(self.shape):
            raise PluginError(
                f"'{self.name}' is declared with sequence={self.sequence}, and has {len(self.shape)} dims "
                "without that of the rows"
            )

    def empty(self, rows: int, *, device: torch.device, parts: int = 1) -> torch.Tensor:
        """(rows, *shape), uninitialised; of a sequence the size of one of ``parts``."""
        shape = [size // parts if dim == self.sequence else size for dim, size in enumerate(self.shape)]
        return torch.empty(rows, *shape, dtype=self.dtype, device=device)


class TrainingObjective(Protocol):
    """What an objective's ``build`` returns.

    One with a term that is the negative logarithm of the probability of the ``labels`` of a batch, in nats,
    may name it as ``likelihood``: then a validation gives perplexity and bits per byte as well.

    One with an attribute ``validation`` is validated by that objective in its place, with the same inputs and
    terms of its own: those of weight 0 are shown and count for nothing. See also :class:`MakesImages`.
    """

    @property
    def weights(self) -> Mapping[str, float]:
        """Name of each term -> its weight: the loss is the sum over terms of weight times sum / count."""

    def inputs(self, seq_len: int) -> Sequence[BatchTensor]:
        """What the model is given, for rows of ``seq_len``; at least one tensor of the first stage."""

    def targets(self, seq_len: int) -> Sequence[BatchTensor]:
        """What the loss is computed from beside the model's outputs."""

    def prepare(self, batch: Batch, draw: Draw) -> tuple[Batch, Batch]:
        """Turn a batch of the row maker into inputs and targets, as they are declared.

        :param batch: whole rows, on the device.
        :param draw: the only source of random numbers.
        """

    def count(self, targets: Batch) -> Mapping[str, torch.Tensor]:
        """Term -> the number of things that it is a mean over, a scalar integer tensor on the device."""

    def loss(self, outputs: Any, targets: Batch) -> Mapping[str, torch.Tensor]:
        """Term -> its sum over the things that :meth:`count` counts, a scalar.

        :param outputs: what the model returned.
        """


Predict: TypeAlias = Callable[[Batch], torch.Tensor]
"""Inputs of whole sequences, the same on every rank -> the model's outputs, (rows, sequence, ...), whole."""


@runtime_checkable
class MakesImages(Protocol):
    """An objective whose model makes images, which a run shows by the loggers that take them."""

    def images_due(self, step: int, *, last: bool) -> bool:
        """Whether images are made after this step; the same on every rank."""

    def images(self, predict: Predict) -> Mapping[str, npt.NDArray[np.uint8]]:
        """Name -> image, (height, width, 3), from 0 to 255. Called on every rank, which all call ``predict``
        as often and with the same inputs."""


def validated_by(objective: TrainingObjective) -> TrainingObjective:
    """The objective that a validation computes."""
    found: TrainingObjective = getattr(objective, "validation", objective)
    return found


def check_declared(given: Batch, declared: Sequence[BatchTensor], *, what: str) -> list[str]:
    """In what the tensors of an objective differ from their declaration, a line each.

    :param given: tensors of (rows, ...), of whole sequences.
    :param what: ``input`` or ``target``.
    """
    known = {tensor.name: tensor for tensor in declared}
    lines = [f"{what} '{name}' is not declared" for name in given if name not in known]
    for name, tensor in known.items():
        if name not in given:
            if not tensor.optional:
                lines.append(f"{what} '{name}' is declared and not there")
            continue
        shape, dtype = tuple(given[name].shape[1:]), given[name].dtype
        if (shape, dtype) != (tuple(tensor.shape), tensor.dtype):
            lines.append(
                f"{what} '{name}' is declared as {tuple(tensor.shape)} of {tensor.dtype}, and is {shape} of "
                f"{dtype}"
            )
    return lines


def check_weights(objective: TrainingObjective) -> None:
    """:raises PluginError: for an objective without terms, or with a weight that is no finite number."""
    what = f"the objective {type(objective).__name__}"
    if not objective.weights:
        raise PluginError(f"{what} has no term: its weights are empty")
    for name, weight in objective.weights.items():
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise PluginError(f"{what}: the weight of '{name}' is {weight!r}, not a finite number")
    likelihood = getattr(objective, "likelihood", None)
    if likelihood is not None and likelihood not in objective.weights:
        raise PluginError(
            f"{what}: its likelihood is '{likelihood}', its weights are of {sorted(objective.weights)}"
        )


def check_counts(objective: TrainingObjective, counts: Mapping[str, torch.Tensor]) -> None:
    """:raises PluginError: for counts that are not what :meth:`TrainingObjective.count` promises."""
    _check_terms(objective, counts, gives="count() gives the counts")
    for name, count in counts.items():
        if count.is_floating_point() or count.is_complex():
            raise PluginError(
                f"the objective {type(objective).__name__}: count() gives '{name}' as {count.dtype}, not as "
                "a whole number",
                hint="what a mean is over is counted; what weighs its terms belongs to loss()",
            )


def check_sums(objective: TrainingObjective, sums: Mapping[str, torch.Tensor]) -> None:
    """:raises PluginError: for sums that are not what :meth:`TrainingObjective.loss` promises."""
    _check_terms(objective, sums, gives="loss() gives the sums")


def _check_terms(objective: TrainingObjective, terms: Mapping[str, torch.Tensor], *, gives: str) -> None:
    what = f"the objective {type(objective).__name__}"
    if not isinstance(terms, Mapping):
        raise PluginError(f"{what}: {gives} as {type(terms).__name__}, not as a mapping of names")
    if terms.keys() != objective.weights.keys():
        raise PluginError(
            f"{what}: {gives} of {sorted(terms)}, its weights are of {sorted(objective.weights)}"
        )
    for name, value in terms.items():
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise PluginError(f"{what}: {gives}, that of '{name}' as {kind}, not as a tensor")
        if value.ndim:
            raise PluginError(
                f"{what}: {gives}, that of '{name}' with shape {tuple(value.shape)}, not as a scalar",
                hint="sum over rows and positions",
            )


def changes(outputs: Any) -> list[int]:
    """How often each tensor of a model's outputs has been changed in place."""
    if isinstance(outputs, torch.Tensor):
        return [outputs._version]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    return [count for one in outputs for count in changes(one)] if isinstance(outputs, list | tuple) else []


def check_unchanged(objective: TrainingObjective, outputs: Any, before: list[int]) -> None:
    """:param before: the :func:`changes` of ``outputs`` before the loss.
    :raises PluginError: where the loss has changed the outputs, which FSDP does not notice.
    """
    if changes(outputs) != before:
        raise PluginError(
            f"the objective {type(objective).__name__} changes the model's outputs in place: under FSDP the "
            "gradients would be wrong",
            hint="compute the loss from new tensors: outputs = outputs * scale, not outputs *= scale",
        )
