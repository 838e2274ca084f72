"""What surrounds the training: the job, plugins, profiles, metrics, checkpoints, debugging."""

from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveInt

from hekaton.config.base import (
    AtResumeMeaning,
    MayDiffer,
    NameOf,
    NoEffect,
    OnlyWith,
    PathField,
    SectionModel,
)
from hekaton.contributions import Logger


def _known_elsewhere_as(name: Any) -> Any:
    return "data_loader" if name == "dataloader" else name


StatePart: TypeAlias = Annotated[
    Literal["model", "optimizer", "lr_scheduler", "data_loader", "rng"], BeforeValidator(_known_elsewhere_as)
]

OwnLog = MayDiffer("each process logs for itself")


class JobSection(SectionModel):
    """The run as a whole."""

    at_resume: ClassVar[AtResumeMeaning] = "nothing"

    config_file: PathField | None = None
    """The TOML file of the run, for ``python -m hekaton.train``; only as a flag. ``hekaton train`` takes
    files before the flags."""
    dump_folder: Annotated[PathField, MayDiffer("whether folders are shared is tested at the start")] = (
        "./outputs"
    )
    """Folder for everything that the run writes; other folders are relative to it."""
    description: Annotated[str, MayDiffer("it is a description for people")] = "default job"
    """A line for people who read the configuration later."""
    print_config: Annotated[bool, OwnLog] = False
    """Log the resolved configuration at the start."""
    save_config_file: Annotated[PathField | None, MayDiffer("the first process writes it")] = None
    """File for the resolved configuration, relative to ``dump_folder``; ``config.toml`` when not set."""
    custom_config_module: Annotated[
        str, NoEffect('name modules with sections of their own in [plugins] load = ["my_module"]')
    ] = ""
    """Module that extends the configuration; plugins do this here."""


class PluginsSection(SectionModel):
    """Which plugins take part, besides those of installed distributions."""

    at_resume: ClassVar[AtResumeMeaning] = "nothing"
    may_differ: ClassVar[str] = "versions and source of all plugins are compared"

    load: list[PathField] = []
    """Modules, or paths of ``.py`` files, to load as plugins without installing them."""
    disable: list[str] = []
    """Names of plugins to leave out, in addition to those in ``HEKATON_DISABLE``."""


class ProfilingSection(SectionModel):
    """Kernel traces and memory snapshots of a few steps."""

    at_resume: ClassVar[AtResumeMeaning] = "nothing"
    may_differ: ClassVar[str] = "each process records for itself"

    enable_profiling: bool = False
    """Write a kernel trace every ``profile_freq`` steps."""
    save_traces_folder: Annotated[PathField, OnlyWith("enable_profiling")] = "profile_traces"
    """Folder for traces, relative to ``job.dump_folder``."""
    profile_freq: Annotated[PositiveInt, OnlyWith("enable_profiling"), OnlyWith("enable_memory_snapshot")] = (
        10
    )
    """Steps from one trace or snapshot to the next."""
    profiler_active: Annotated[PositiveInt, OnlyWith("enable_profiling")] = 1
    """Steps in each trace."""
    profiler_warmup: Annotated[NonNegativeInt, OnlyWith("enable_profiling")] = 3
    """Steps that the profiler runs before each trace without recording."""
    enable_memory_snapshot: bool = False
    """Write a snapshot of the CUDA allocator every ``profile_freq`` steps; needs CUDA."""
    save_memory_snapshot_folder: Annotated[PathField, OnlyWith("enable_memory_snapshot")] = "memory_snapshot"
    """Folder for snapshots, relative to ``job.dump_folder``."""


LOGGER_SWITCHES = {"tensorboard": "enable_tensorboard", "wandb": "enable_wandb"}
"""Logger -> the field of ``[metrics]`` that switches it on, besides ``loggers``."""


class MetricsSection(SectionModel):
    """What is measured, and where it is shown."""

    at_resume: ClassVar[AtResumeMeaning] = "nothing"

    log_freq: PositiveInt = 10
    """Steps from one report to the next; the first and the last step are always reported."""
    enable_tensorboard: Annotated[bool, OwnLog] = False
    """Write TensorBoard events: the same as ``"tensorboard"`` among ``loggers``."""
    loggers: Annotated[list[str] | None, NameOf(Logger), OwnLog] = None
    """Where metrics go besides the console, by name; by default ``jsonl``, and nowhere in a run with
    ``checkpoint.load_only``."""
    disable_color_printing: Annotated[bool, OwnLog] = False
    """Write console lines without colour, on a terminal too."""
    save_tb_folder: Annotated[PathField, OwnLog] = "tb"
    """Folder for TensorBoard and for loggers of plugins that ask for no other, relative to
    ``job.dump_folder``."""
    save_for_all_ranks: Annotated[bool, OwnLog] = False
    """Log on every rank, each to a folder of its own, instead of on rank 0 alone."""
    enable_wandb: Annotated[bool, OwnLog] = False
    """Send metrics to Weights & Biases: the same as ``"wandb"`` among ``loggers``."""
    peak_tflops: Annotated[float | None, Field(gt=0, allow_inf_nan=False), OwnLog] = None
    """Peak of a device in TFLOP/s, of which MFU is a share; by default that of bf16 products by the data
    sheet, for devices whose name is known."""


class CheckpointSection(SectionModel):
    """Saving the whole state of a run, and resuming from it."""

    switch: ClassVar[str] = "enable"
    at_resume: ClassVar[AtResumeMeaning] = "nothing"

    enable: bool = False
    """Save checkpoints, and resume from the newest one in ``folder``."""
    folder: PathField = "checkpoint"
    """Folder for checkpoints, relative to ``job.dump_folder``; or a URL such as ``s3://bucket/run``."""
    interval: PositiveInt = 500
    """Steps from one checkpoint to the next; the last step is always saved."""
    keep_latest_k: Annotated[int, Field(ge=0)] = 10
    """Number of checkpoints to keep, the newest ones; 0 keeps all."""
    load_step: Annotated[int, Field(ge=-1)] = -1
    """Step of the checkpoint to resume from; -1 takes the newest whole one."""
    exclude_from_loading: list[StatePart] = []
    """Parts of the state that are not loaded but start as in a new run."""
    accept_changes: list[str] = []
    """Fields whose change since the checkpoint is intended, where a resume would refuse it:
    ``["model.rope_theta"]``."""
    enable_first_step_checkpoint: bool = False
    """Save after the first step too, to see early whether saving works."""
    load_only: bool = False
    """Load, and never save: the folder of the run is left as it is."""
    enable_ft_dataloader_checkpoints: Annotated[
        bool, NoEffect("it belongs to fault tolerance, which is not available yet")
    ] = True
    """Save the data position of each replica under fault tolerance."""
    initial_load_path: Annotated[PathField | None, MayDiffer("its content is compared")] = None
    """Checkpoint to start from while ``folder`` has none: a step folder, a folder of steps (the newest whole
    one is taken), or a folder that another program wrote with ``torch.distributed.checkpoint``."""
    initial_load_model_only: Annotated[bool, OnlyWith("initial_load_path", given=True)] = True
    """Take only the model from ``initial_load_path`` and begin at step 0; otherwise optimizer, schedule, data
    position and step as well."""
    initial_load_in_hf: Annotated[bool, OnlyWith("initial_load_path", given=True)] = False
    """``initial_load_path`` is a folder in the layout of Hugging Face: ``config.json`` and safetensors."""
    initial_load_in_hf_quantized: Annotated[bool, OnlyWith("initial_load_in_hf")] = False
    """``initial_load_path`` must hold quantized safetensors. They are decoded in any case, where their
    ``config.json`` says so."""
    initial_load_leave_out: Annotated[list[str], OnlyWith("initial_load_in_hf")] = []
    """Other models in the folder at ``initial_load_path`` that are not read: ``["vision"]`` of Llama 4."""
    last_save_model_only: bool = False
    """Save only the model at the last step: smaller, and the run cannot resume from that step."""
    last_save_in_hf: bool = False
    """Write the model of the last step in the layout of Hugging Face too, into ``step-N-hf``."""
    export_dtype: Literal["float16", "bfloat16", "float32"] = "float32"
    """Precision of the model that ``last_save_model_only`` saves."""
    async_mode: Literal["disabled", "async", "async_with_pinned_mem"] = "disabled"
    """Whether training goes on while a checkpoint is written: from a copy in the host's memory, made while
    training waits, or in pinned memory, made while the device computes (on CUDA)."""
    create_seed_checkpoint: bool = False
    """Save the initial weights as step 0 and stop; on one process, for runs under any layout."""


class DebugSection(SectionModel):
    """Reproducing what happened."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    seed: Annotated[int, Field(ge=0)] | None = None
    """Seed of the initial weights and of the order of the data; 0 when not set."""
    deterministic: bool = False
    """Use deterministic algorithms only; slower, and an error where there is none."""
    deterministic_warn_only: Annotated[bool, OnlyWith("deterministic")] = False
    """Warn where there is no deterministic algorithm, instead of stopping."""
    moe_force_load_balance: bool = False
    """Send the same number of tokens to every expert, whatever the router says."""
