"""Every promise of every kind: what the pages of ``docs/contracts`` say, and the function that checks it."""

from __future__ import annotations

from dataclasses import dataclass

from hekaton.contributions import (
    Check,
    CheckpointFormat,
    Command,
    ContextParallel,
    Contribution,
    Converter,
    Dataset,
    Dispatcher,
    Encoder,
    Evaluation,
    HFAdapter,
    IdentitySubject,
    Logger,
    LRSchedule,
    Model,
    Objective,
    Optimizer,
    Order,
    ParallelStyle,
    Ref,
    RowMaker,
    Section,
    Tokenizer,
)


@dataclass(frozen=True)
class Promise:
    """A line of a contract.

    :param kind: the record that gives it; ``None`` for the plugin as a whole.
    :param name: of its heading on the page of the kind.
    :param says: what is promised, a sentence.
    :param check: ``check(subject)`` raises ``AssertionError`` where it is broken.
    :param processes: how many processes of a run it starts at most.
    :param compares: whether numbers are compared, within a tolerance that a test may state.
    """

    kind: type[Contribution] | None
    name: str
    says: str
    check: Ref
    processes: int = 1
    compares: bool = False

    @property
    def place(self) -> str:
        """Its line in the documentation."""
        return f"docs/contracts/{page_of(self.kind)}.md#{self.name.replace(' ', '-')}"


def page_of(kind: type[Contribution] | None) -> str:
    """Name of the page of a kind: ``LRSchedule`` -> ``lr-schedule``."""
    from hekaton.plugins import kind_name

    return "plugin" if kind is None else kind_name(kind).replace(" ", "-")


def _of(module: str, function: str) -> Ref:
    return Ref(f"hekaton.testing.conformance.{module}:{function}")


PROMISES: tuple[Promise, ...] = (
    Promise(
        None,
        "rules",
        "Hooks and records keep the rules of plugins, everything that they name loads, and "
        "importing the plugin imports nothing heavy.",
        _of("rest", "rules"),
    ),
    Promise(
        None,
        "run hooks",
        "Lifecycle hooks return nothing, change no metrics, accept steps that are not logged, and work "
        "after a resume.",
        _of("rest", "run_hooks"),
    ),
    Promise(
        Model,
        "tables",
        "Plan, initial values, buffers and flavors fit the model; no token sees a later one or "
        "another document, and a document has the same outputs alone; every parameter has a gradient.",
        _of("models", "tables"),
    ),
    Promise(
        Model,
        "gradients",
        "Under every layout of two processes that the plan claims, the gradient of each parameter equals "
        "that on one process. A parameter that starts with 0 is given other values, as a 0 hides what is "
        "behind it.",
        _of("models", "gradients"),
        processes=2,
        compares=True,
    ),
    Promise(
        Model,
        "layouts",
        "In float64, loss and gradient norm of two steps equal those on one process, under every layout "
        "of two processes that the plan claims.",
        _of("training", "layouts"),
        processes=2,
        compares=True,
    ),
    Promise(
        Model,
        "resume",
        "A run that was saved under one layout resumes under another and computes the same steps.",
        _of("training", "resume"),
        processes=2,
        compares=True,
    ),
    Promise(
        Model,
        "dry run",
        "The dry run of a layout has parameters and optimizer state of the same shapes as the real run.",
        _of("training", "dry_run"),
        processes=2,
    ),
    Promise(
        HFAdapter,
        "table",
        "Every tensor of the model has an entry, in every flavor; a round trip returns the same bits, "
        "and config.json is read as it was written.",
        _of("models", "adapter"),
    ),
    Promise(
        HFAdapter,
        "reference",
        "Where transformers is installed, its model of the written config.json has the exported "
        "names and shapes, and gives the same logits.",
        _of("models", "reference"),
    ),
    Promise(
        Dataset,
        "access",
        "A document is the same in whatever order, and with whichever others, it is fetched; so is the "
        "fingerprint.",
        _of("data", "access"),
    ),
    Promise(
        Dataset,
        "resume",
        "Rows that worker processes read, or that are read after a resume, are those that one process "
        "reads from the start.",
        _of("data", "resume"),
    ),
    Promise(
        Tokenizer,
        "ids",
        "The ids of a text are whole numbers below vocab_size, without marks for begin and end, "
        "whichever texts are encoded together.",
        _of("data", "ids"),
    ),
    Promise(
        Tokenizer,
        "round trip",
        "Decoding the ids of a text and encoding the result gives the same ids.",
        _of("data", "round_trip"),
    ),
    Promise(
        Encoder,
        "parts",
        "The tokens and targets of a part depend only on that part.",
        _of("data", "parts"),
    ),
    Promise(
        Order,
        "epochs",
        "Each document comes once in an epoch, whichever places are asked for together.",
        _of("data", "epochs"),
    ),
    Promise(
        RowMaker,
        "rows",
        "A row is the same on whichever rank or worker process it is made, and after a resume from any "
        "cursor.",
        _of("data", "rows"),
    ),
    Promise(
        Converter,
        "draft",
        "Plan, initial values and buffers fit the converted model; what is trained has a gradient; "
        "its checkpoint has every tensor of the model as it was, under its name or merged.",
        _of("models", "draft"),
        compares=True,
    ),
    Promise(
        Converter,
        "layouts",
        "In float64, a converted model has the same loss and gradient norm under FSDP and tensor "
        "parallel as on one process.",
        _of("training", "layouts"),
        processes=2,
        compares=True,
    ),
    Promise(
        Converter,
        "resume",
        "A run with the converter that was saved under FSDP resumes under tensor parallel, and vice versa.",
        _of("training", "resume"),
        processes=2,
        compares=True,
    ),
    Promise(
        ParallelStyle,
        "style",
        "It builds a style of torch, with and without sequence parallel and loss parallel.",
        _of("models", "style"),
    ),
    Promise(
        ContextParallel,
        "attention",
        "In float64, attention over a sequence that is split between two ranks equals attention over the "
        "whole sequence.",
        _of("training", "attention"),
        processes=2,
        compares=True,
    ),
    Promise(
        Dispatcher,
        "tokens",
        "Two ranks, each with half of the experts, compute the same outputs and gradients as one rank "
        "with all of them.",
        _of("dispatching", "tokens"),
        processes=2,
        compares=True,
    ),
    Promise(
        Objective,
        "terms",
        "Inputs and targets are as declared; no term, count or draw of a row depends on other rows.",
        _of("models", "terms"),
    ),
    Promise(
        Objective,
        "layouts",
        "In float64, the loss under FSDP and other layouts that the model claims equals that on one process.",
        _of("training", "layouts"),
        processes=2,
        compares=True,
    ),
    Promise(
        Optimizer,
        "steps",
        "Steps go down the gradient, with the learning rate and weight decay of each group, and training "
        "resumes bit for bit.",
        _of("rest", "steps"),
    ),
    Promise(
        Optimizer,
        "layouts",
        "In float64, its steps on sharded parameters equal those on whole ones.",
        _of("training", "layouts"),
        processes=2,
        compares=True,
    ),
    Promise(
        Optimizer,
        "resume",
        "Its state is saved under one layout and restored under another.",
        _of("training", "resume"),
        processes=2,
        compares=True,
    ),
    Promise(
        LRSchedule,
        "factors",
        "Its factors are finite, never below 0, and depend only on the number of steps done.",
        _of("rest", "factors"),
    ),
    Promise(
        Logger,
        "metrics",
        "It accepts the metrics that runs log, also after a resume, and does not change them.",
        _of("rest", "metrics"),
    ),
    Promise(
        Logger,
        "failure",
        "If it cannot write, it raises an error, so that the run reports it and continues without the "
        "logger.",
        _of("rest", "failure"),
    ),
    Promise(
        CheckpointFormat,
        "round trip",
        "Tensors that one rank or several ranks have written are read back unchanged, whole and in part: "
        "those of a model, or of the part of one that the format holds.",
        _of("formats", "written_and_read"),
    ),
    Promise(
        Check,
        "rule",
        "It yields violations and notices, the same each time, and nothing for a run that does not use "
        "its plugin.",
        _of("rest", "rule"),
    ),
    Promise(
        IdentitySubject,
        "values",
        "Its names and values can be written as JSON, and are the same each time.",
        _of("rest", "values"),
    ),
    Promise(
        Evaluation,
        "numbers",
        "Its numbers are the same on every rank, under FSDP and other layouts, and when it is called "
        "again; it does not change the model.",
        _of("training", "numbers"),
        processes=2,
        compares=True,
    ),
    Promise(
        Command,
        "help",
        "--help prints how it is used, without importing torch.",
        _of("rest", "printed_help"),
    ),
    Promise(
        Section,
        "fields",
        "Every field has a help text, and the defaults are valid.",
        _of("rest", "fields"),
    ),
)
