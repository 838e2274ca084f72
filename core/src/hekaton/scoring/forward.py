"""A model's forward pass over given texts: the same call for one process and for every layout."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from hekaton.building import BuiltModel
from hekaton.distributed import all_sum, plain
from hekaton.draws import Draw
from hekaton.errors import ConfigError
from hekaton.forward_backward import ForwardBackward
from hekaton.loss import NextToken
from hekaton.mesh import Meshes, ParallelDims
from hekaton.objective import Batch, BatchTensor
from hekaton.parallel.contract import needed_inputs
from hekaton.scoring.measures import Measure

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from hekaton.config import JobConfig
    from hekaton.spec import OpenCache


class Forward(Protocol):
    """Runs texts through a model. The processes of a layout call it together.

    Several *shards* of processes run different texts at the same time; the processes of a shard are given the
    same ones.
    """

    shard: int
    shards: int
    group: ProcessGroup | None
    """One process of each shard; ``None`` where there is one."""
    together: bool
    """Whether all shards must call it equally often: they exchange parameters or tokens of experts."""
    rows: int | None
    """Texts of each call, where the layout fixes them."""
    length: int | None
    """Their length, likewise."""
    multiple: int
    """What their length must be a multiple of."""
    device: torch.device

    def __call__(
        self, tokens: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, measure: Measure
    ) -> torch.Tensor:
        """Run texts, and measure the logits at some places.

        :param tokens: (rows, length) ids, padded at the end: no place sees what comes after it.
        :param rows: (n,) the row of each place, and ``columns`` where in the row it is.
        :returns: the table of the measure on every process of the shard, (size, width), float64.
        """


class PlainForward:
    """A whole model on this process; other processes may have copies of it, and run other texts.

    :param cache: ``TrainSpec.cache`` of the model, for texts that are continued.
    :param group: of the processes that have copies.
    """

    rows: int | None = None
    length: int | None = None
    multiple: int = 1
    together: bool = False

    def __init__(
        self, model: nn.Module, *, cache: OpenCache | None = None, group: ProcessGroup | None = None
    ) -> None:
        self.model, self.cache = model, cache
        self.device = next(model.parameters()).device
        self.group = group
        self.shard, self.shards = (group.rank(), group.size()) if group is not None else (0, 1)

    @torch.inference_mode()
    def __call__(
        self, tokens: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, measure: Measure
    ) -> torch.Tensor:
        logits = self.model(**_inputs(self.model, tokens.to(self.device)))
        _check_logits(logits, tokens, self.model)
        places = torch.arange(len(rows), device=self.device)
        at, values = measure(logits[rows.to(self.device), columns.to(self.device)], places)
        table = torch.zeros(measure.size, measure.width, dtype=torch.float64, device=self.device)
        table[at] = values
        return table


class LayoutForward:
    """The parts of a model on the layout that it is trained on, or would be.

    It runs them in eval mode, without compilation, and leaves them in the mode that they had.
    """

    def __init__(
        self,
        built: BuiltModel,
        meshes: Meshes,
        dims: ParallelDims,
        config: JobConfig,
        *,
        device: torch.device,
    ) -> None:
        self._parts = list(built.parts.values())
        cut = dims.cp > 1 or (dims.pp > 1 and dims.tp > 1 and config.parallelism.sequence_parallel)
        self._objective = _Measured(self._parts[0], needs_positions=cut, whole_rows=dims.cp == 1)
        eager = config.model_copy(update={"compile": config.compile.model_copy(update={"enable": False})})
        self._forward = ForwardBackward(built, self._objective, meshes, dims, eager, device=device)
        self._sums = [meshes.dense["pp"].get_group(), meshes.batch["cp"].get_group()]
        self.group: ProcessGroup | None = meshes.batch["dp"].get_group()
        self.shard, self.shards = meshes.batch["dp"].get_local_rank(), dims.dp
        self.together = True
        self.rows = config.training.local_batch_size if dims.pp > 1 else None
        self.length = config.training.seq_len if dims.pp > 1 else None
        self.multiple = dims.tp * (2 * dims.cp if dims.cp > 1 else 1)
        self.device = device

    def __call__(
        self, tokens: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, measure: Measure
    ) -> torch.Tensor:
        places = torch.full(tokens.shape, -1)
        places[rows, columns] = torch.arange(len(rows))
        batch = {"tokens": tokens.to(self.device), "places": places.to(self.device)}
        table = torch.zeros(measure.size, measure.width, dtype=torch.float64, device=self.device)
        with _evaluated(self._parts):
            for at, values in self._objective.run(self._forward, batch, measure):
                table[at] = values
        for group in self._sums:
            table = all_sum(table, group)
        return table


class _Measured:
    """An objective that keeps what is measured of the outputs."""

    weights: Mapping[str, float] = {"measured": 1.0}

    def __init__(self, part: nn.Module, *, needs_positions: bool, whole_rows: bool) -> None:
        self._part = part
        self._tokens = NextToken(needs_positions=needs_positions)
        self._needs_positions = needs_positions
        self._whole_rows = whole_rows
        self._measure: Measure | None = None
        self._found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def run(
        self, forward: ForwardBackward, batch: Batch, measure: Measure
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What was measured on this rank, a microbatch each."""
        self._measure, self._found = measure, []
        device = batch["tokens"].device
        draw = Draw(seed=0, step=0, rows=range(len(batch["tokens"])), device=device, purpose="scoring")
        forward.evaluate(batch, draw)
        self._measure, found, self._found = None, self._found, []
        return found

    def inputs(self, seq_len: int) -> Sequence[BatchTensor]:
        return self._tokens.inputs(seq_len)

    def targets(self, seq_len: int) -> Sequence[BatchTensor]:
        return (BatchTensor(name="places", shape=(seq_len,), dtype=torch.long, sequence=0),)

    def prepare(self, batch: Batch, draw: Draw) -> tuple[Batch, Batch]:
        inputs = _inputs(self._part, batch["tokens"], positions=self._needs_positions)
        return inputs, {"places": batch["places"]}

    def count(self, targets: Batch) -> dict[str, torch.Tensor]:
        return {"measured": (targets["places"] >= 0).sum()}

    def loss(self, outputs: Any, targets: Batch) -> dict[str, torch.Tensor]:
        places = targets["places"]
        if self._whole_rows:
            _check_logits(outputs, places, self._part)
        chosen = places >= 0
        assert self._measure is not None
        measured = self._measure(_logits_at(outputs, chosen), places[chosen])
        self._found.append(measured)
        return {"measured": measured[1].sum()}


def _inputs(model: nn.Module, tokens: torch.Tensor, *, positions: bool = False) -> dict[str, torch.Tensor]:
    """What a forward is given for texts that are one document each.

    :param positions: give them where the model could do without, too.
    """
    needed = needed_inputs(model, NextToken(needs_positions=positions).inputs(tokens.shape[1]))
    given = {"tokens": tokens}
    for one in needed:
        if one.name == "positions":
            given["positions"] = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        elif one.name == "documents":
            given["documents"] = torch.ones_like(tokens)
    return given


def _logits_at(outputs: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Whole logits at the chosen places, (n, vocab); where a vocabulary is cut, only theirs are gathered."""
    from torch.distributed.tensor import DTensor, Shard

    if not isinstance(outputs, DTensor):
        return outputs[chosen]
    if tuple(outputs.placements) != (Shard(2),):
        return plain(outputs)[chosen]
    local = outputs.to_local()[chosen]
    shape = torch.Size((len(local), outputs.shape[-1]))
    return plain(
        DTensor.from_local(local, outputs.device_mesh, [Shard(1)], shape=shape, stride=(shape[1], 1))
    )


def _check_logits(logits: Any, tokens: torch.Tensor, model: nn.Module) -> None:
    """:raises ConfigError: for a model that does not return logits."""
    if not isinstance(logits, torch.Tensor) or logits.shape[:2] != tokens.shape or logits.dim() != 3:
        what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ConfigError(f"{type(model).__name__} returns {what}, not logits of (batch, seq, vocab)")


@contextlib.contextmanager
def _evaluated(parts: Sequence[nn.Module]) -> Iterator[None]:
    """In eval mode, and uncompiled: shapes that vary would be compiled, and change what training runs."""
    were = [part.training for part in parts]
    with contextlib.ExitStack() as after:
        if "torch._dynamo" in sys.modules:
            after.enter_context(torch.compiler.set_stance("force_eager"))
        for part in parts:
            part.eval()
        try:
            yield
        finally:
            for part, training in zip(parts, were, strict=True):
                part.train(training)
