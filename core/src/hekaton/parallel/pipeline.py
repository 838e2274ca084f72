"""Pipeline parallel: which layers each stage has, and the schedule that drives them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from hekaton.errors import ConfigError, choices_hint
from hekaton.parallel.contract import check_output, stage_failed
from hekaton.parallel.plan import ParallelPlan, ends, module_names
from hekaton.parallel.schedules import SINGLE_STAGE, V_SHAPED
from hekaton.torch_versions import send_nothing_to_itself

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from hekaton.config.sections import ParallelismSection


@dataclass(frozen=True, kw_only=True)
class StageLayout:
    """The stages of a pipeline.

    :param modules: for each stage, in order, the names of its modules.
    :param ranks: for each stage, the pipeline rank that runs it.
    :param layers: the name of the container of the layers.
    """

    modules: Sequence[Sequence[str]]
    ranks: Sequence[int]
    layers: str

    @property
    def listed(self) -> list[str]:
        """All modules that stages are made of."""
        return [name for stage in self.modules for name in stage]

    def of_rank(self, rank: int) -> list[int]:
        """The stages that a rank runs, in order."""
        return [stage for stage, owner in enumerate(self.ranks) if owner == rank]


def is_multi_stage(settings: ParallelismSection) -> bool:
    """Whether the schedule runs several stages per rank."""
    csv, schedule = settings.pipeline_parallel_schedule_csv, settings.pipeline_parallel_schedule
    return bool(csv) or schedule not in SINGLE_STAGE


def stage_layout(model: nn.Module, plan: ParallelPlan, settings: ParallelismSection) -> StageLayout:
    """Cut the model: as ``module_fqns_per_model_part`` says, or balanced by layers.

    The first and the last stage count as having ``..._less_layers`` more layers than they do, for the
    embedding and the output projection.

    :raises ConfigError: when the stages do not fit the ranks, the schedule or the layers.
    """
    assert plan.stages is not None
    degree = settings.pipeline_parallel_degree
    given = settings.module_fqns_per_model_part
    # By the container's own table: named_children() has a layer that is used twice only once.
    layers = [f"{plan.stages.layers}.{name}" for name in model.get_submodule(plan.stages.layers)._modules]
    first, last = (
        settings.pipeline_parallel_first_stage_less_layers,
        settings.pipeline_parallel_last_stage_less_layers,
    )
    per_rank = 2 if is_multi_stage(settings) else 1
    if given is not None:
        modules: Sequence[Sequence[str]] = given
    else:
        stages = degree * per_rank
        if settings.pipeline_parallel_layers_per_stage is not None:
            stages = math.ceil((len(layers) + first + last) / settings.pipeline_parallel_layers_per_stage)
        modules = _balanced(layers, ends(model, plan), stages, first, last)
    if len(modules) % degree or (not is_multi_stage(settings) and len(modules) != degree):
        raise ConfigError(
            f"{len(modules)} pipeline stages do not fit {degree} ranks under schedule "
            f"'{settings.pipeline_parallel_schedule}'",
            hint="1F1B and GPipe take one stage per rank, the others two or more, the same number on each",
        )
    if settings.pipeline_parallel_schedule in V_SHAPED:
        if len(modules) != 2 * degree:
            raise ConfigError(
                f"schedule '{settings.pipeline_parallel_schedule}' takes two stages per rank, "
                f"{2 * degree} in all, not {len(modules)}"
            )
        ranks = [*range(degree), *reversed(range(degree))]
    else:
        ranks = [stage % degree for stage in range(len(modules))]
    _check_owners(model, modules)
    return StageLayout(modules=modules, ranks=ranks, layers=plan.stages.layers)


def _balanced(
    layers: Sequence[str], outer: tuple[Sequence[str], Sequence[str]], stages: int, first: int, last: int
) -> list[list[str]]:
    if stages > len(layers):
        raise ConfigError(f"{stages} pipeline stages are more than the model's {len(layers)} layers")
    weight, extra = divmod(len(layers) + first + last, stages)
    sizes = [weight + (stage < extra) for stage in range(stages)]
    sizes[0] -= first
    sizes[-1] -= last
    if min(sizes) < 1:
        raise ConfigError(
            f"{stages} pipeline stages leave {min(sizes)} layers for one of them",
            hint="lower pipeline_parallel_first_stage_less_layers or ..._last_stage_less_layers",
        )
    left = iter(layers)
    modules = [[next(left) for _ in range(size)] for size in sizes]
    modules[0][:0], modules[-1][len(modules[-1]) :] = outer
    return modules


def _check_owners(model: nn.Module, modules: Sequence[Sequence[str]]) -> None:
    """Every parameter belongs to exactly one stage."""
    known = module_names(model)
    for name in (name for stage in modules for name in stage):
        if name not in known:
            raise ConfigError(
                f"module_fqns_per_model_part: the model has no module '{name}'",
                hint=choices_hint(name, known),
            )
    owners: dict[int, set[int]] = {}
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        for stage, owned in enumerate(modules):
            if any(f"{name}.".startswith(f"{module}.") for module in owned):
                owners.setdefault(id(parameter), set()).add(stage)
    for key, tied in names.items():
        stages = owners.get(key, set())
        if not stages:
            raise ConfigError(f"no pipeline stage has '{tied[0]}'")
        if len(stages) > 1:
            what = f"{' and '.join(tied)} are one tied parameter" if len(tied) > 1 else f"'{tied[0]}' is"
            raise ConfigError(
                f"{what}, on several pipeline stages: {', '.join(str(stage) for stage in sorted(stages))}",
                hint="train it without a pipeline, or keep tied modules on one stage",
            )


def cut(model: nn.Module, stages: StageLayout, keep: Sequence[str]) -> nn.Module:
    """A copy of a model on the meta device for one stage.

    Of the modules that stages are made of it has those in ``keep``. Of the container of the layers the others
    are gone, so that it is iterated as before; what else is missing is ``None``. Modules that belong to no
    stage, having no parameters, are in every one.
    """
    part = copy.deepcopy(model)
    _prune(part, "", keep, stages)
    return part


def _prune(module: nn.Module, prefix: str, keep: Sequence[str], stages: StageLayout) -> None:
    # By the tables of modules: named_children() has a module that is used twice only once.
    for name, child in list(module._modules.items()):
        path = f"{prefix}{name}"
        if child is None or _within(path, keep):
            continue
        listed = _within(path, stages.listed)
        inside = any(other.startswith(f"{path}.") for other in (*stages.listed, stages.layers))
        if path == stages.layers or inside or (isinstance(child, nn.ModuleList) and listed):
            _prune(child, f"{path}.", keep, stages)
        elif not listed:
            continue
        elif isinstance(module, nn.ModuleList | nn.Sequential) or prefix == f"{stages.layers}.":
            del module._modules[name]  # the containers' own del would number the others anew
        else:
            module._modules[name] = None


def _within(path: str, modules: Iterable[str]) -> bool:
    return any(f"{path}.".startswith(f"{module}.") for module in modules)


def _check_once(part: nn.Module, expected: Sequence[torch.Tensor], stage: int) -> None:
    """Compare the first output of a stage with what the next one makes room for: torch does not."""

    def check(module: nn.Module, inputs: Any, output: Any) -> None:
        handle.remove()
        check_output(output, expected, stage=stage)

    handle = part.register_forward_hook(check)


class Pipeline:
    """The stages of this rank under a schedule of :mod:`torch.distributed.pipelining`.

    :param shapes: for each stage of the pipeline, the tensors that go into it, on the meta device, for one
        microbatch on one rank; and last those that come out.
    :param loss: ``loss(outputs, targets)`` of one microbatch, a scalar.
    :param first_inputs: the inputs that the first stage is given and others are not, in the order of its
        forward's parameters.
    """

    def __init__(
        self,
        parts: Mapping[int, nn.Module],
        shapes: Sequence[Sequence[torch.Tensor]],
        *,
        settings: ParallelismSection,
        loss: Callable[[Any, dict[str, torch.Tensor]], torch.Tensor],
        first_inputs: Sequence[str],
        microbatches: int,
        group: ProcessGroup,
        device: torch.device,
    ) -> None:
        from torch.distributed.pipelining import PipelineStage
        from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime, get_schedule_class

        last = len(shapes) - 2
        stages = [
            PipelineStage(
                part,
                stage,
                last + 1,
                device,
                input_args=tuple(shapes[stage]),
                output_args=tuple(shapes[stage + 1]),
                group=group,
            )
            for stage, part in parts.items()
        ]
        for one in stages:
            send_nothing_to_itself(one, rank=group.rank())
        csv = settings.pipeline_parallel_schedule_csv
        make: Any = (
            _PipelineScheduleRuntime if csv else get_schedule_class(settings.pipeline_parallel_schedule)
        )
        self.schedule = make(
            stages if is_multi_stage(settings) else stages[0],
            n_microbatches=microbatches,
            loss_fn=self._loss_of_microbatch,
            scale_grads=False,
        )
        if csv:
            self.schedule._load_csv(csv)
        self.loss_dtype = torch.promote_types(shapes[-1][0].dtype, torch.float32)
        self._loss = loss
        self._first_inputs = first_inputs
        self._microbatches = microbatches
        self._targets: Mapping[str, torch.Tensor] = {}
        self._stages = list(parts)
        for stage, part in parts.items():
            if stage != last:
                _check_once(part, shapes[stage + 1], stage)
        self._has_first = 0 in parts
        self._has_last = last in parts

    def forward_backward(
        self, inputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]
    ) -> None:
        """Run the schedule over one batch, accumulating gradients; ``loss`` is called on the rank of the last
        stage, once for each microbatch.

        :param inputs: what the whole model would be given.
        """
        self._run(self.schedule.step, inputs, targets)

    def evaluate(self, inputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]) -> None:
        """Like :meth:`forward_backward`, without the backward."""
        self._run(self.schedule.eval, inputs, targets)

    def _run(
        self, schedule: Any, inputs: Mapping[str, torch.Tensor], targets: Mapping[str, torch.Tensor]
    ) -> None:
        first = tuple(inputs[name] for name in self._first_inputs) if self._has_first else ()
        others = {name: value for name, value in inputs.items() if name not in self._first_inputs}
        self._targets = targets
        # torch cuts one tensor of targets into microbatches, and an objective may have several: what it cuts
        # here only tells the number of the microbatch, by where it begins (no value is read, fake tensors
        # have none).
        scored: dict[str, Any] = {}
        if self._has_last:
            scored = {"target": torch.empty(self._microbatches), "losses": []}
        try:
            schedule(*first, return_outputs=False, **scored, **others)
        except RuntimeError as e:
            failed = stage_failed(e, stages=self._stages)
            if failed is None:
                raise
            raise failed from e
        self._targets = {}

    def _loss_of_microbatch(self, outputs: Any, place: torch.Tensor) -> torch.Tensor:
        index = place.storage_offset()
        mine = {name: value.tensor_split(self._microbatches)[index] for name, value in self._targets.items()}
        return self._loss(outputs, mine)
