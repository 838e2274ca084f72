"""The model that a check is about, built for a layout as a run builds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from hekaton.building import build_meta, build_objective, give_memory, initialize_parts, parallelize_model
from hekaton.config import Loaded, load
from hekaton.contributions import Dataset, Encoder, Objective, RowMaker
from hekaton.distributed import all_sum
from hekaton.forward_backward import ForwardBackward
from hekaton.mesh import Meshes, ParallelDims
from hekaton.objective import Batch
from hekaton.plugins import Plugins
from hekaton.rules import check
from hekaton.spec import TrainSpec
from hekaton.testing import checked_model
from hekaton.testing.distributed import NamedLayout
from hekaton.testing.plain_run import CPU, ROWS, SEQ_LEN, PlainRun


@dataclass(frozen=True, kw_only=True)
class CheckedSteps:
    """The parts of a model on this rank, and steps on the rows of a plain run.

    :param inputs: this rank's rows, and ``targets`` likewise.
    """

    parts: Sequence[nn.Module]
    meshes: Meshes
    forward_backward: ForwardBackward
    inputs: Batch
    targets: Batch

    def accumulate(self) -> float:
        """Accumulate the gradients of one step; :returns: the loss over all ranks."""
        total, _ = self.forward_backward.accumulate(self.inputs, self.targets)
        return float(all_sum(total.clone(), self.meshes.report.get_group()))


def loaded_for(spec: TrainSpec, flavor: str, layout: str, *flags: str, plugins: Sequence[str] = ()) -> Loaded:
    """The configuration of a run of the model under a layout.

    :param layout: short name, see :class:`~hekaton.testing.distributed.NamedLayout`.
    :param plugins: those to load that are not installed.
    :param flags: further ones, which count more than those of the layout.
    :raises HekatonError: where a rule refuses that run.
    """
    checked_model.train_spec = dataclasses.replace(spec, configure=None, defaults={})
    named = NamedLayout(layout)
    loads = [checked_model.__name__, *plugins]
    loaded = load([], [
        "--plugins.load", ",".join(loads), "--model.name", checked_model.NAME,
        "--model.flavor", flavor, "--model.tokenizer", "byte", "--activation_checkpoint.mode", "none",
        "--training.seq_len", str(SEQ_LEN), "--training.local_batch_size", str(ROWS // named.dp),
        "--training.mixed_precision_param", "float32",
        *_data_for(spec.objective, Plugins.discover(load=loads)), *named.flags, *flags,
    ])  # fmt: skip
    check(loaded, world_size=named.processes, device_type="cpu", here=False)
    return loaded


def _data_for(objective: str, plugins: Plugins) -> list[str]:
    """Flags for a row maker and a dataset of what the objective is computed from, as far as there are any.
    They are not read: rules compare the kinds."""
    contributed = plugins.all(Objective).get(objective)
    if contributed is None or contributed.record.takes == RowMaker.takes:  # as is the default
        return []
    kind, encoders = contributed.record.takes, plugins.all(Encoder)
    makers = [name for name, one in plugins.all(RowMaker).items() if one.record.takes == kind]
    datasets = [
        name
        for name, one in plugins.all(Dataset).items()
        if one.record.encoder in encoders and encoders[one.record.encoder].record.gives == kind
    ]
    flags = ["--training.packing", makers[0]] if makers else []
    return flags + (["--training.dataset", datasets[0]] if datasets else [])


def checked_steps(loaded: Loaded, expected: PlainRun, *, world_size: int) -> CheckedSteps:
    """Build the model with the weights of a plain run; needs a process group of ``world_size``."""
    config = loaded.config
    dims = ParallelDims.of(config, world_size=world_size)
    meshes = dims.build_mesh("cpu")
    meta = build_meta(config, loaded.plugins, dims)
    objective = build_objective(meta, dims, config, loaded.plugins, device=CPU)
    built = parallelize_model(meta, objective, meshes, dims, config, loaded.plugins)
    give_memory(built, config, device=CPU)
    initialize_parts(built, meta, seed=0)
    terms = meta.spec.terms(meta.config) if meta.spec.terms is not None else {}
    mine = ROWS // dims.dp
    start = meshes.batch["dp"].get_local_rank() * mine
    inputs, targets = (
        {name: value[start : start + mine] for name, value in given.items()}
        for given in (expected.inputs, expected.targets)
    )
    return CheckedSteps(
        parts=list(built.parts.values()),
        meshes=meshes,
        forward_backward=ForwardBackward(built, objective, meshes, dims, config, device=CPU, terms=terms),
        inputs=inputs,
        targets=targets,
    )
