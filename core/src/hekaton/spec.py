"""What a model is to hekaton: one module, and the tables that say how it is cut and how it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import nn

from hekaton.errors import ConfigError, PluginError, choices_hint
from hekaton.init import Initializer
from hekaton.parallel.plan import ParallelPlan

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from hekaton.contributions import Model
    from hekaton.draft import Draft
    from hekaton.mesh import Meshes, ParallelDims
    from hekaton.parallel.apply import Layout

ModelConfig: TypeAlias = Any
"""A frozen dataclass of the model's own: what its flavors differ in."""


CachedForward: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Tokens and positions, (rows, n) both -> logits, (rows, n, vocab): see ``TrainSpec.cache``."""


@runtime_checkable
class ReadsPrompts(Protocol):
    """A :data:`CachedForward` that need not compute all logits of what it reads."""

    def __call__(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor: ...

    def read(self, tokens: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """As the call, for one place of each row alone.

        :param columns: (rows,) the places.
        :returns: (rows, vocab)
        """


OpenCache: TypeAlias = "Callable[[nn.Module, int, int], AbstractContextManager[CachedForward]]"
"""Model, rows, length -> a context that gives a :data:`CachedForward`."""


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run asks of its model.

    :param seq_len: tokens of its longest sequence, in training or validation.
    :param packed: whether a sequence may hold several documents, with ``positions`` and ``documents``.
    :param pp: degree of pipeline parallel, and ``cp`` and ``tp`` those of context and tensor parallel.
    """

    seq_len: int
    packed: bool = True
    pp: int = 1
    cp: int = 1
    tp: int = 1


@dataclass(frozen=True)
class Refusal:
    """Why a model cannot do what a run asks.

    :param message: the rest of a sentence that begins with the model and flavor: ``"has 1024 positions,
        training.seq_len = 2048"``.
    :param fields: the configuration fields that it is about, such as ``training.seq_len``; without a dot
        fields of the model's configuration. Where they were set is shown.
    :param hint: the cure.
    """

    message: str
    fields: Sequence[str] = ()
    hint: str = field(default="", kw_only=True)


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Everything that the core needs to know of a model.

    :param name: the model's name, as in ``[model] name``.
    :param model: ``model(config)`` builds the module, on whatever device is current (hekaton uses meta);
        its ``forward(**inputs)`` takes what the objective prepares and returns the outputs that it scores.
        A module with buffers, or one around it, has a method ``reset_buffers()`` that fills them once they
        have memory. Persistent buffers are saved, resharded and exported as parameters are.
    :param flavors: name -> configuration, a frozen dataclass.
    :param plan: configuration -> how the model is cut; see :class:`hekaton.parallel.plan.ParallelPlan`.
    :param init: configuration -> parameter-name pattern -> initialiser. Every parameter needs an entry.
    :param objective: name of the training objective, where ``[training] objective`` names no other.
    :param defaults: flavor -> configuration values (``{"training": {"seq_len": 8192}}``) that hold where the
        user sets nothing.
    :param configure: ``configure(config, section)`` merges the model's own TOML section into the flavor.
    :param check: ``check(config, facts)`` says what the model cannot do of what a run asks, for every run
        before anything is built. What no run could do, the configuration refuses itself, with an error in
        its ``__post_init__``.
    :param flops_per_unit: ``flops_per_unit(config, seq_len)``: floating-point operations of forward and
        backward per unit of work (per token), for TFLOP/s and MFU. Without it, and without
        ``flops_per_row``, neither is reported.
    :param flops_per_row: in its place where ``seq_len`` does not say how large rows are:
        ``flops_per_row(config, shapes)``, the operations per row, of which the objective's inputs have the
        shapes ``{"img": (256, 64)}``.
    :param multiplied: ``multiplied(model, shapes)``: name of a parameter -> how many times what the
        operations are counted for is multiplied by it: a token once by a linear layer, and ``top_k /
        n_experts`` times by the matrices of stacked experts. ``model`` is on the meta device, after its
        converters. With it, weights that are not trained count without their gradient, and what converters
        have added counts; without it, a run with such converters reports no TFLOP/s.
    :param before_step: ``before_step(parts, meshes)`` is called once per optimizer step, when the gradients
        of the whole step are there and before they are clipped, without gradients being recorded: for state
        that is no parameter, such as a router's bias. ``parts`` are the parts of the model on this rank;
        what is counted in them is summed over ``meshes.loss``.
    :param report: ``report(parts, meshes)`` is called on every rank after a step that is logged, and gives
        metrics of the model's own, name -> number; those of rank 0 are logged.
    :param terms: configuration -> the terms of the loss that the model's layers add with
        :func:`hekaton.terms.add_term`, name -> weight. The loss has each of them as its sum over layers and
        its mean over the rows of the step, times its weight.
    :param cache: ``cache(model, rows, length)`` is a context in which texts are generated, ``rows`` of them
        with up to ``length`` tokens each. It gives a function that is called with tokens and their positions,
        both (rows, n), and returns their logits, (rows, n, vocab), after all tokens that it was given before
        at smaller positions; a position that is given again replaces what was there. For a model of
        ``hekaton_blocks`` that is ``hekaton_blocks.key_value_cache``. Without it the whole text is computed
        anew for each token.
    :param parallelize: the way out for a model that no plan can express.
        ``parallelize(part, layout, meshes, dims, config)`` takes the place of tensor and context parallel,
        activation checkpointing, compilation and FSDP of one part of the model, on the meta device, in
        place; it may call the functions of :mod:`hekaton.parallel`. The plan cuts pipeline stages before.
        Each parameter's gradient must be the sum over the ranks of ``meshes.loss``.
    """

    name: str
    model: Callable[[Any], nn.Module]
    flavors: Mapping[str, ModelConfig]
    plan: Callable[[Any], ParallelPlan]
    init: Callable[[Any], Mapping[str, Initializer]]
    objective: str = "next_token"
    defaults: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    configure: Callable[[Any, Any], ModelConfig] | None = None
    check: Callable[[Any, RunFacts], Iterable[Refusal]] | None = None
    flops_per_unit: Callable[[Any, int], float] | None = None
    flops_per_row: Callable[[Any, Mapping[str, Sequence[int]]], float] | None = None
    multiplied: Callable[[nn.Module, Mapping[str, Sequence[int]]], Mapping[str, float]] | None = None
    before_step: Callable[[Sequence[nn.Module], Meshes], None] | None = None
    report: Callable[[Sequence[nn.Module], Meshes], Mapping[str, float]] | None = None
    terms: Callable[[Any], Mapping[str, float]] | None = None
    cache: OpenCache | None = None
    parallelize: Callable[[nn.Module, Layout, Meshes, ParallelDims, Any], None] | None = None

    def flavor(self, name: str, *, field: str = "", origin: str = "") -> ModelConfig:
        """The configuration of a flavor.

        :param field: the configuration field that names it, for the error, and ``origin`` where that was set.
        :raises ConfigError: when there is none of that name, with the nearest.
        """
        if name not in self.flavors:
            raise ConfigError(
                f"unknown flavor '{name}' of model '{self.name}'{f' ({field})' if field else ''}",
                origin=origin,
                hint=choices_hint(name, self.flavors),
            )
        return self.flavors[name]


@runtime_checkable
class ModelConverter(Protocol):
    """What a converter's ``build`` returns. It may also define ``after_step(model_parts)``."""

    def convert(self, draft: Draft) -> Draft:
        """Change the model, its plan, its init table, what is trained, or how it is exported."""


@runtime_checkable
class SteppingConverter(ModelConverter, Protocol):
    """A converter that has something to do when the parameters have new values."""

    def after_step(self, model_parts: Sequence[nn.Module]) -> None:
        """Called before the first step, once checkpoints are loaded, and after each optimizer step, with the
        parallelised model parts of this rank."""


def load_spec(record: Model) -> TrainSpec:
    """What a model is, from its record.

    :raises PluginError: when the record names something else.
    """
    spec = record.spec.load()
    if not isinstance(spec, TrainSpec):
        raise PluginError(
            f"model '{record.name}': '{record.spec.target}' is of type {type(spec).__name__}, not TrainSpec",
            hint="its spec names a TrainSpec, not a function that returns one",
        )
    return spec
