"""The model and how it learns: architecture, optimizer, schedule, compilation, recomputation."""

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt

from hekaton.config.base import (
    AtResume,
    AtResumeMeaning,
    MayDiffer,
    NameOf,
    NotYet,
    OnlyWith,
    PathField,
    Renamed,
    SectionModel,
)
from hekaton.contributions import Converter, LRSchedule, Model, Optimizer, Tokenizer


def _without_null(overrides: dict[str, Any]) -> dict[str, Any]:
    for name, value in overrides.items():
        if value is None:
            raise ValueError(f"'{name}' cannot be null, which TOML does not have")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"'{name}' must be a finite number")
    return overrides


SameContent = MayDiffer("the content of the files is compared")
Beta = Annotated[float, Field(ge=0, lt=1)]
Ratio = Annotated[float, Field(ge=0, le=1)]


class ModelSection(SectionModel):
    """Which model, in which size, with which tokenizer."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    name: Annotated[str, NameOf(Model), AtResume("refusal")] = "llama3"
    """The model, by name."""
    flavor: str = "debugmodel"
    """One of the model's sizes, by name."""
    tokenizer: Annotated[str, NameOf(Tokenizer), AtResume("refusal")] = "hf"
    """The tokenizer, by name."""
    hf_assets_path: Annotated[PathField | None, AtResume("nothing"), SameContent] = None
    """Folder or file of the tokenizer; when not set, the one that the tokenizer plugin ships."""
    tokenizer_path: Annotated[PathField | None, Renamed("model.hf_assets_path")] = None
    """Earlier name of ``hf_assets_path``."""
    attention_backend: Annotated[str | None, AtResume("nothing")] = None
    """What computes attention, by the name that the model's attention offers; those of ``hekaton_blocks`` are
    ``sdpa``, and on CUDA ``flex`` and ``varlen``. Chosen by device and mask when not set."""
    converters: Annotated[list[str], NameOf(Converter)] = []
    """Changes to the freshly built model, by name, in the order in which they are made."""
    overrides: Annotated[dict[str, Any], AfterValidator(_without_null), AtResume("nothing")] = {}
    """Fields of the flavor to replace, for example ``{n_layers = 2}``."""
    print_after_conversion: Annotated[
        bool, AtResume("nothing"), MayDiffer("each process logs for itself")
    ] = False
    """Log the model after the converters ran."""


class OptimizerGroup(SectionModel):
    """Parameters that are treated apart: an entry of ``[[optimizer.groups]]``."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    match: str = "*"
    """Pattern of parameter names; ``*`` stands for any characters, as in ``*norm*``."""
    lr_factor: Annotated[float, Field(ge=0, le=1000)] = 1.0
    """Their learning rate as a multiple of ``optimizer.lr``."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] | None = None
    """Strength of their weight decay; ``optimizer.weight_decay`` when not set."""


class OptimizerSection(SectionModel):
    """How weights follow gradients."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    name: Annotated[str, NameOf(Optimizer), AtResume("refusal")] = "AdamW"
    """The optimizer, by name."""
    lr: Annotated[float, Field(gt=0, le=100)] = 8e-4
    """Learning rate before the schedule's factor."""
    beta1: Beta = 0.9
    """Decay of the running mean of gradients, per step."""
    beta2: Beta = 0.95
    """Decay of the running mean of squared gradients, per step."""
    eps: Annotated[float, Field(ge=1e-30, le=1)] = 1e-8
    """Added to the denominator of the update; without it a gradient of 0 gives NaN."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.1
    """Strength of weight decay."""
    implementation: Literal["for-loop", "foreach", "fused"] = "fused"
    """How the update runs: one parameter after another, in batches, or in one kernel."""
    groups: list[OptimizerGroup] = []
    """Parameters with a rate or a decay of their own: entries of ``match`` (a pattern of names, in which
    ``*`` stands for any characters), ``lr_factor`` and ``weight_decay``. The first that matches counts."""
    early_step_in_backward: Annotated[bool, NotYet("stepping the optimizer within backward")] = False
    """Update each parameter as soon as its gradient is there."""


class LRSchedulerSection(SectionModel):
    """How the learning rate changes over the run."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    name: Annotated[str, NameOf(LRSchedule)] = "warmup_stable_decay"
    """The schedule, by name."""
    warmup_steps: NonNegativeInt = 200
    """Steps over which the rate rises linearly to ``optimizer.lr``."""
    total_steps: PositiveInt | None = None
    """Steps that the schedule is made for; those of the run when not set."""
    decay_ratio: Ratio | None = None
    """Share of the steps over which the rate falls; all after the warmup when not set."""
    decay_type: Literal["linear", "sqrt", "cosine"] = "linear"
    """Shape of the fall."""
    min_lr_factor: Ratio = 0.0
    """What the rate falls to, as a share of ``optimizer.lr``."""


class CompileSection(SectionModel):
    """Compilation with ``torch.compile``."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    switch: ClassVar[str] = "enable"

    enable: bool = False
    """Compile ``components``."""
    components: list[Literal["model", "loss"]] = ["model", "loss"]
    """What is compiled: each block of the model, and the loss."""
    backend: str = "inductor"
    """Backend of ``torch.compile``, by name."""
    mode: Annotated[Literal["default", "max-autotune-no-cudagraphs"], OnlyWith("backend", ("inductor",))] = (
        "default"
    )
    """How far the compiler goes: ``max-autotune-no-cudagraphs`` measures several kernels for each product and
    takes the fastest, which makes the first step minutes longer."""


class ActivationCheckpointSection(SectionModel):
    """Recomputing activations in backward instead of keeping them."""

    at_resume: ClassVar[AtResumeMeaning] = "nothing"

    mode: Literal["none", "full", "selective", "memory_budget"] = "selective"
    """What is recomputed: nothing, every block, what ``selective_ac_option`` selects, or what the compiler
    finds cheapest within ``memory_budget``."""
    selective_ac_option: Annotated[
        str, Field(pattern=r"^([1-9][0-9]{0,5}|op)$"), OnlyWith("mode", ("selective",))
    ] = "2"
    """``"n"`` recomputes every n-th block; ``"op"`` all of each block but attention, every second matrix
    product, what a reduce-scatter gave, and ``save_ops``."""
    save_ops: Annotated[list[str], OnlyWith("selective_ac_option", ("op",))] = []
    """Further operators of torch, such as ``aten.silu.default``, whose results are kept under
    ``selective_ac_option = "op"``; a matrix product named here is kept every time."""
    preserve_rng_state: Annotated[bool, OnlyWith("mode", ("full", "selective"))] = True
    """Recompute with the random numbers of the forward pass."""
    determinism_check: Annotated[Literal["default", "none"], OnlyWith("mode", ("full", "selective"))] = (
        "default"
    )
    """Whether shapes and types of what is recomputed are compared with the forward pass."""
    early_stop: Annotated[bool, OnlyWith("mode", ("full", "selective"))] = False
    """Stop recomputing as soon as everything that backward needs is there."""
    debug: Annotated[bool, OnlyWith("mode", ("full", "selective"))] = False
    """Record the operators of forward and recomputation, for errors that compare them; slow."""
    per_op_sac_force_recompute_mm_shapes_by_fqns: Annotated[
        list[str], OnlyWith("selective_ac_option", ("op",))
    ] = ["moe.router.gate"]
    """Linear layers, by the ends of their names, whose products are always recomputed under
    ``selective_ac_option = "op"``, and with them those of all layers of the same shape."""
    memory_budget: Annotated[Ratio, OnlyWith("mode", ("memory_budget",))] = 0.5
    """Share of activations that is kept under ``mode = "memory_budget"``."""
    visualize_memory_budget_pareto: Annotated[bool, OnlyWith("mode", ("memory_budget",))] = False
    """Write charts of the trade-off of memory and time to ``memory_budget_pareto`` in ``job.dump_folder``
    under ``mode = "memory_budget"``; needs matplotlib."""
