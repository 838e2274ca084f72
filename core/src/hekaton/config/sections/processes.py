"""How the work is divided among processes, and how they talk."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from hekaton.config.base import (
    AtResumeMeaning,
    Degree,
    DegreeOrRest,
    MayDiffer,
    NameOf,
    NoEffect,
    NotYet,
    OnlyWith,
    PathField,
    Rows,
    Seconds,
    SectionModel,
)
from hekaton.contributions import ContextParallel, Dispatcher

Pipeline = OnlyWith("pipeline_parallel_degree", above=1)
Tensor = OnlyWith("tensor_parallel_degree", above=1)
Context = OnlyWith("context_parallel_degree", above=1)
Expert = OnlyWith("expert_parallel_degree", above=1)
ExpertTensor = OnlyWith("expert_tensor_parallel_degree", above=1)
OwnTrace = MayDiffer("each process writes its own")


class ParallelismSection(SectionModel):
    """Degrees of each kind of parallelism; their product is the number of processes."""

    at_resume: ClassVar[AtResumeMeaning] = "nothing"

    data_parallel_replicate_degree: Degree = 1
    """Copies of the model, whose gradients are summed."""
    data_parallel_shard_degree: DegreeOrRest = -1
    """Ranks over which parameters, gradients and optimizer state are sharded; -1 for those that the other
    degrees leave."""
    fsdp_reshard_after_forward: Literal["default", "always", "never"] = "default"
    """Whether gathered parameters are dropped between forward and backward; ``default`` is ``always`` except
    under a pipeline."""
    tensor_parallel_degree: Degree = 1
    """Ranks over which layers are cut."""
    sequence_parallel: Annotated[bool, Tensor] = True
    """Between the cut layers, each rank of tensor parallel holds its part of the sequence."""
    plan: Annotated[dict[str, str], Tensor] = {}
    """Entries over those of the model's own tensor-parallel plan: pattern of module names -> style."""
    disable_loss_parallel: Annotated[bool, Tensor] = False
    """Gather the logits before the loss instead of leaving them cut by the vocabulary."""
    enable_async_tensor_parallel: bool = False
    """Overlap the communication of tensor parallel with its computation; needs CUDA, ``compile`` of the model
    and ``sequence_parallel``."""
    pipeline_parallel_degree: Degree = 1
    """Stages into which the model's layers are divided."""
    module_fqns_per_model_part: Annotated[list[list[str]] | None, Pipeline] = None
    """Names of the modules of each stage, when they are not to be distributed evenly."""
    pipeline_parallel_first_stage_less_layers: Annotated[NonNegativeInt, Pipeline] = 1
    """Layers fewer on the first stage, in place of the embedding."""
    pipeline_parallel_last_stage_less_layers: Annotated[NonNegativeInt, Pipeline] = 1
    """Layers fewer on the last stage, in place of the output."""
    pipeline_parallel_layers_per_stage: Annotated[PositiveInt | None, Pipeline] = None
    """Layers in a stage; when not set, as the schedule asks for."""
    pipeline_parallel_schedule: Annotated[str, Pipeline] = "1F1B"
    """Order of the stages' microbatches, by the name that ``torch.distributed.pipelining`` has for it."""
    pipeline_parallel_schedule_csv: Annotated[PathField | None, Pipeline] = ""
    """File with a schedule of one's own."""
    pipeline_parallel_microbatch_size: Annotated[Rows, Pipeline] = 1
    """Rows of a microbatch."""
    pipeline_parallel_expert_parallel_overlap: Annotated[
        bool, NoEffect("the exchange of tokens is not overlapped with other microbatches")
    ] = True
    """Overlap the exchange of tokens among experts with other microbatches."""
    context_parallel_degree: Degree = 1
    """Ranks over which sequences are cut."""
    context_parallel_strategy: Annotated[str | None, NameOf(ContextParallel), Context] = None
    """How attention sees the whole sequence, by name; when not set, ``allgather``, or ``ring`` where
    ``context_parallel_rotate_method`` is ``alltoall``."""
    context_parallel_load_balancer: Annotated[Literal["headtail", "none"], Context] = "headtail"
    """How parts of the sequence are distributed: ``headtail`` gives every rank an early and a late one, so
    that causal attention costs each the same; ``none`` one stretch."""
    context_parallel_rotate_method: Annotated[Literal["allgather", "alltoall"], Context] = "allgather"
    """How keys and values reach the other ranks, where ``context_parallel_strategy`` does not say."""
    expert_parallel_degree: Degree = 1
    """Ranks over which experts are distributed, of those of ``dp_shard`` × ``cp`` × ``tp``: it is no factor
    of the number of processes."""
    expert_tensor_parallel_degree: Degree = 1
    """Ranks over which each expert is cut, of the same ranks."""
    expert_dispatcher: Annotated[str | None, NameOf(Dispatcher), Expert, ExpertTensor] = None
    """How tokens reach experts on other ranks, by name; when not set, ``alltoall``."""
    expert_parallel_comm_backend: Annotated[Literal["standard", "deepep"], Expert] = "standard"
    """The dispatcher where ``expert_dispatcher`` does not say: ``standard`` is ``alltoall``."""

    @property
    def other_degrees(self) -> int:
        """The product of all degrees but ``data_parallel_shard_degree``."""
        return (
            self.data_parallel_replicate_degree
            * self.pipeline_parallel_degree
            * self.context_parallel_degree
            * self.tensor_parallel_degree
        )

    def shard_degree(self, world_size: int) -> int:
        """``data_parallel_shard_degree``, for -1 what the other degrees leave of so many processes."""
        given = self.data_parallel_shard_degree
        return world_size // self.other_degrees if given == -1 else given

    def fits(self, world_size: int) -> bool:
        """Whether the degrees multiply to the number of processes."""
        return self.shard_degree(world_size) * self.other_degrees == world_size


class CommSection(SectionModel):
    """Communication among processes."""

    at_resume: ClassVar[AtResumeMeaning] = "nothing"

    init_timeout_seconds: Seconds = 300
    """How long a process waits for others until the end of the first step."""
    train_timeout_seconds: Seconds = 100
    """How long it waits afterwards."""
    trace_buf_size: Annotated[int, Field(ge=0, le=10**7), OwnTrace] = 20000
    """Entries of torch's flight recorder of collectives. A report of a hang says which of them ranks wait in,
    and NCCL writes all when one has its timeout. 0 turns it off."""
    save_traces_folder: Annotated[PathField, OwnTrace] = "comm_traces"
    """Folder for what NCCL's flight recorder writes, relative to ``job.dump_folder``."""
    save_traces_file_prefix: Annotated[PathField, OwnTrace] = "rank_"
    """What the names of its files start with; the rank follows."""
    mode: Annotated[
        Literal["default", "fake_backend", "local_tensor"],
        NotYet("running all ranks in one process", values=("local_tensor",)),
    ] = "default"
    """``default`` for real communication; ``fake_backend`` takes one step as one of ``NGPU`` ranks, alone and
    on fake tensors, to find errors before a cluster does."""
