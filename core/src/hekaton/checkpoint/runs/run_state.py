"""What a checkpoint holds of a run: read to be saved, and put back to resume."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from hekaton.checkpoint.runs.manager import LoadedStep
from hekaton.checkpoint.tensors.comparison import Parts
from hekaton.checkpoint.tensors.state import (
    optimizer_state,
    restore_optimizers,
    restore_rng,
    rng_tensors,
    stored_tensors,
)
from hekaton.data.changed_files import changed_files
from hekaton.data.loader import check_identity
from hekaton.data.rows import check_cursor
from hekaton.errors import CheckpointError, DataError
from hekaton.identity.kept import Identity

if TYPE_CHECKING:
    from hekaton.assembly import Assembled
    from hekaton.building import MetaModel
    from hekaton.data import TextTokenizer
    from hekaton.data.loader import Loader
    from hekaton.fault.bad_steps import BadSteps
    from hekaton.mesh import ParallelDims
    from hekaton.optim import LearningRate


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What a checkpoint holds of a run, live: saving reads it, resuming fills it.

    :param meta: the model that the tensors are of.
    :param parts: the parts of the model that this rank runs.
    :param loader: the training data; its rows are this rank's part of the global batch.
    :param readers: the ranks that read the rows of the global batch, in the order of their rows.
    :param rank: this rank, whose random-number generators are kept.
    :param tokenizer: whose ids begin and end the texts.
    :param identity: what the run is; kept with each step, and compared with the one that it resumes from.
    :param bad_steps: how many there were of late, and the losses of good ones.
    """

    meta: MetaModel
    dims: ParallelDims
    parts: Sequence[nn.Module]
    optimizers: Sequence[torch.optim.Optimizer]
    learning_rate: LearningRate
    loader: Loader
    readers: dist.ProcessGroup
    rank: int
    tokenizer: TextTokenizer
    identity: Identity
    bad_steps: BadSteps

    @classmethod
    def of(cls, assembled: Assembled, loader: Loader, identity: Identity, *, bad_steps: BadSteps) -> RunState:
        """The state of a run that is assembled, and whose data ``loader`` reads."""
        assert assembled.tokenizer is not None
        return cls(
            meta=assembled.meta,
            dims=assembled.dims,
            parts=assembled.parts,
            optimizers=assembled.optimizers,
            learning_rate=assembled.learning_rate,
            loader=loader,
            readers=assembled.meshes.batch["dp"].get_group(),
            rank=assembled.process.rank,
            tokenizer=assembled.tokenizer,
            identity=identity,
            bad_steps=bad_steps,
        )

    def other_data(self, info: Mapping[str, Any]) -> DataError | None:
        """The error of a run that has other data than the checkpoint that it resumes from.

        :param info: of the checkpoint.
        """
        try:
            check_identity(info["data_loader"], self.loader.identity())
        except DataError as error:
            differing = changed_files(info.get("data_files"), self.loader.files())
            error.hint = "\n".join([*differing, error.hint])
            error.everywhere = True
            return error
        return None

    def gather(self) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
        """The tensors of the run by part, and the optimizers' rest. Every reader calls this."""
        optimizer, optimizer_rest = optimizer_state(self.parts, self.optimizers)
        parts = {
            "model": stored_tensors(self.parts),
            "optimizer": optimizer,
            "data_loader": {"cursor": whole_cursor(self.loader.cursor(), self.readers)},
            "rng": rng_tensors(self.rank),
        }
        return parts, optimizer_rest

    def restore(self, loaded: LoadedStep, parts: Parts, *, without: Collection[str]) -> None:
        """Put what is no tensor, and no live one, back in its place.

        :param parts: the tensors that were loaded into.
        :param without: names of what keeps its present value.
        :raises CheckpointError: for what no run saves.
        """
        info = loaded.info
        if "optimizer" in loaded.parts:
            restore_optimizers(self.parts, self.optimizers, parts["optimizer"], info["optimizer"])
        if "lr_scheduler" in info and "lr_scheduler" not in without:
            self.learning_rate.steps_done = info["lr_scheduler"]["steps_done"]
        if "bad_steps" in info:
            self.bad_steps.restore(info["bad_steps"])
        if "data_loader" in loaded.parts and "data_loader" not in without:
            rows, cursor = self.loader.rows, parts["data_loader"]["cursor"]
            try:
                check_cursor(cursor)
            except ValueError as error:
                raise CheckpointError(
                    f"the checkpoint's 'data_loader.cursor' is not the position of rows: {error}",
                    hint='start the data over: checkpoint.exclude_from_loading = ["data_loader"]',
                ) from error
            self.loader.seek(cursor[rows.start : rows.stop])
        if "rng" in loaded.parts:
            restore_rng(parts["rng"])


def whole_cursor(mine: torch.Tensor, readers: dist.ProcessGroup) -> torch.Tensor:
    """The position of every row of the global batch: (global_batch_size, cursor width).

    :param mine: that of the rows of this rank.
    :param readers: the ranks that read the rows, in the order of their rows; each of them calls this.
    """
    pieces = [torch.empty_like(mine) for _ in range(readers.size())]
    dist.all_gather(pieces, mine, group=readers)
    return torch.cat(pieces)
