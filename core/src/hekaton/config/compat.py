"""Sections that run files for torchtitan have and the core does not: accepted, and none without a word.

A plugin that contributes a section of the same path takes its place.
"""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from hekaton.config.base import CompatSection, NoEffect, NotYet

_LOAD = 'name the module in [plugins] load = ["my_module"]'
Float8 = NoEffect("it belongs to the converter 'quantize.linear.float8', which comes with hekaton-float8")
MX = NoEffect("it belongs to the converter 'quantize.linear.mx', which comes with hekaton-mx")
GroupedFloat8 = NoEffect(
    "it belongs to the converter 'quantize.grouped_mm.float8', which comes with hekaton-float8"
)
GroupedMX = NoEffect("it belongs to the converter 'quantize.grouped_mm.mx', which comes with hekaton-mx")


class LinearFloat8Section(CompatSection):
    """Linear layers in Float8."""

    enable_fsdp_float8_all_gather: Annotated[bool, Float8] = False
    """Gather parameters over FSDP ranks in Float8."""
    precompute_float8_dynamic_scale_for_fsdp: Annotated[bool, Float8] = False
    """Compute the scales of all parameters at once."""
    recipe_name: Annotated[Literal["tensorwise", "rowwise", "rowwise_with_gw_hp"] | None, Float8] = None
    """How scales are shared among elements."""
    filter_fqns: Annotated[list[str], Float8] = []
    """Names of modules that stay as they are."""
    emulate: Annotated[bool, Float8] = False
    """Compute in higher precision with Float8's rounding, for hardware without Float8."""


class LinearMXSection(CompatSection):
    """Linear layers in MX formats."""

    mxfp8_dim1_cast_kernel_choice: Annotated[Literal["triton", "cuda", "torch"], MX] = "triton"
    """Kernel of the cast along the second dim."""
    recipe_name: Annotated[str, MX] = "mxfp8_cublas"
    """Format and kernels."""
    filter_fqns: Annotated[list[str], MX] = ["output"]
    """Names of modules that stay as they are."""


class GroupedMMFloat8Section(CompatSection):
    """Experts in Float8."""

    fqns: Annotated[list[str] | str, GroupedFloat8] = []
    """Names of modules that are converted."""


class GroupedMMMXSection(CompatSection):
    """Experts in MX formats."""

    recipe_name: Annotated[Literal["mxfp8"], GroupedMX] = "mxfp8"
    """Format and kernels."""
    fqns: Annotated[list[str] | str, GroupedMX] = []
    """Names of modules that are converted."""


class LinearSection(CompatSection):
    """Linear layers in low precision."""

    float8: LinearFloat8Section = LinearFloat8Section()
    mx: LinearMXSection = Field(default_factory=LinearMXSection)


class GroupedMMSection(CompatSection):
    """Experts in low precision."""

    float8: GroupedMMFloat8Section = GroupedMMFloat8Section()
    mx: GroupedMMMXSection = Field(default_factory=GroupedMMMXSection)


class QuantizeSection(CompatSection):
    """Training in low precision."""

    linear: LinearSection = Field(default_factory=LinearSection)
    grouped_mm: GroupedMMSection = Field(default_factory=GroupedMMSection)


class MemoryEstimationSection(CompatSection):
    """Estimating memory without running."""

    switch: ClassVar[str] = "enable"

    enable: Annotated[bool, NotYet("estimating memory")] = False
    """Estimate instead of training."""
    disable_fake_mode: bool = False
    """Estimate with real tensors."""


class FaultToleranceSection(CompatSection):
    """Going on when some replicas of the model fail."""

    switch: ClassVar[str] = "enable"

    enable: Annotated[bool, NotYet("fault tolerance")] = False
    """Train with replicas that may come and go."""
    process_group: str = "gloo"
    """Backend among replicas."""
    process_group_timeout_ms: PositiveInt = 10000
    """How long replicas wait for each other, in milliseconds."""
    replica_id: NonNegativeInt = 0
    """Number of this replica."""
    group_size: NonNegativeInt = 0
    """Number of replicas."""
    min_replica_size: NonNegativeInt = 1
    """Replicas that a step needs at least."""
    semi_sync_method: str | None = None
    """How replicas that synchronise seldom do it."""


class ExperimentalSection(CompatSection):
    """Extensions by modules that are imported."""

    custom_import: Annotated[str, NoEffect(_LOAD)] = ""
    """Module to import before the run."""
    custom_args_module: Annotated[str, NoEffect(_LOAD)] = ""
    """Module that extends the configuration."""
