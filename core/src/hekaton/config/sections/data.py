"""The data and the steps over it."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from hekaton.config.base import (
    AtResume,
    AtResumeMeaning,
    MayDiffer,
    NameOf,
    NoEffect,
    OnlyWith,
    PathField,
    PositiveOrAll,
    Rows,
    RowsOrAll,
    SectionModel,
    SeqLen,
    Title,
)
from hekaton.contributions import Dataset, Objective, Order, RowMaker

SameContent = MayDiffer("the content of the files is compared")


class DataloaderSection(SectionModel):
    """How batches are prepared beside the training."""

    at_resume: ClassVar[AtResumeMeaning] = "nothing"
    may_differ: ClassVar[str] = "batches are the same however they are read"

    num_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    """Processes per rank that read and tokenise; 0 does it in the training process."""
    persistent_workers: Annotated[bool, NoEffect("workers live as long as the run in any case")] = False
    """Keep workers from one pass over the data to the next."""
    pin_memory: bool | None = None
    """Put batches into page-locked memory, from which copies to CUDA wait for nothing; by default where there
    is CUDA."""
    prefetch_factor: Annotated[
        Annotated[int, Field(gt=0, le=1024)] | None, OnlyWith("num_workers", above=0)
    ] = None
    """Batches that each worker prepares in advance."""


class TrainingSection(SectionModel):
    """Data, batch, length, precision."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    dataset: Annotated[str, NameOf(Dataset)] = "python_stdlib"
    """The dataset, by name."""
    dataset_path: Annotated[PathField | None, AtResume("nothing"), SameContent] = None
    """Where the dataset's files are, for datasets that take a path."""
    objective: Annotated[str | None, NameOf(Objective), AtResume("refusal")] = None
    """What the model is trained for, by name; when not set, what the model says, mostly ``next_token``."""
    order: Annotated[str, NameOf(Order)] = "shuffled"
    """The order of documents, by name."""
    packing: Annotated[str, NameOf(RowMaker)] = "documents"
    """How documents fill rows, by name: ``documents`` puts them one after the other, restarts positions at
    each of them and hides them from each other; ``concat`` makes them one text; ``best_fit`` puts those
    together of which few must be cut; ``one_per_row`` gives each a row."""
    local_batch_size: Annotated[Rows, AtResume("nothing")] = 8
    """Rows that a rank computes at a time."""
    global_batch_size: RowsOrAll = -1
    """Rows of an optimizer step over all ranks, accumulated where they are more than ranks compute at a time;
    -1 for as many as that."""
    seq_len: SeqLen = 2048
    """Tokens in a row."""
    max_norm: NonNegativeFloat = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    steps: Annotated[PositiveInt, AtResume("nothing")] = 10000
    """Optimizer steps of the run."""
    enable_cpu_offload: Annotated[bool, AtResume("nothing")] = False
    """Keep parameters, gradients and optimizer state in the memory of the host."""
    dtype: Literal["bfloat16", "float32", "float64"] = "float32"
    """Precision of parameters, gradients and optimizer state; ``float64`` is for comparing layouts."""
    mixed_precision_param: Literal["bfloat16", "float32", "float64"] = "bfloat16"
    """Precision of the computation."""
    mixed_precision_reduce: Literal["float32", "float64"] = "float32"
    """Precision in which gradients are summed over ranks."""
    float32_matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Precision of products of float32 matrices: ``high`` and ``medium`` let CUDA round their factors to
    TensorFloat32 (``torch.set_float32_matmul_precision``)."""
    gc_freq: Annotated[PositiveInt, AtResume("nothing")] = 50
    """Steps from one garbage collection of Python to the next, on all ranks at once."""
    gc_debug: Annotated[bool, AtResume("nothing"), MayDiffer("each process logs for itself")] = False
    """Print what the garbage collector finds."""
    dataloader: DataloaderSection = Field(default_factory=DataloaderSection)


class ValidationSet(SectionModel):
    """One dataset that is validated on: an entry of ``[[validation.sets]]``."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    name: Title = ""
    """Its name in the metrics; that of its dataset when not set."""
    dataset: Annotated[str, NameOf(Dataset)] = ""
    """The dataset, by name."""
    dataset_path: PathField | None = None
    """Where its files are, for datasets that take a path."""
    rows: Rows = 64
    """Rows that its documents are shared out to, at most one for each document. They do not depend on the
    layout, so that what is validated on is the same on all; ranks beyond so many have nothing to do."""
    steps: PositiveOrAll = -1
    """Sequences of each row; -1 takes the whole dataset."""
    settings: dict[str, Any] = {}
    """Values in place of those of the dataset's own section."""


class ValidationSection(SectionModel):
    """Loss on data that is not trained on."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    switch: ClassVar[str] = "enable"

    enable: Annotated[bool, AtResume("nothing")] = False
    """Validate every ``freq`` steps and after the last."""
    dataset: Annotated[str, NameOf(Dataset)] = "python_stdlib_validation"
    """The dataset, by name."""
    dataset_path: Annotated[PathField | None, AtResume("nothing"), SameContent] = None
    """Where the dataset's files are, for datasets that take a path."""
    local_batch_size: Annotated[Rows, AtResume("nothing")] = 8
    """Rows that a rank computes at a time."""
    seq_len: SeqLen = 2048
    """Tokens in a row."""
    freq: Annotated[PositiveInt, AtResume("nothing")] = 10
    """Training steps from one validation to the next."""
    steps: PositiveOrAll = -1
    """Batches of each validation; -1 takes the whole dataset."""
    sets: list[ValidationSet] = []
    """Several datasets in place of the one above, each with metrics of its own and over the same documents on
    every layout: ``name``, ``dataset``, ``dataset_path``, ``rows``, ``steps`` and ``settings``."""
    dataloader: DataloaderSection = Field(default_factory=DataloaderSection)
