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
    """

    kind: type[Contribution] | None
    name: str
    says: str
    check: Ref
    processes: int = 1

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
        "Lifecycle hooks return nothing, change no metrics, get along with steps that are not "
        "logged, and are right after a resume.",
        _of("rest", "run_hooks"),
    ),
    Promise(
        Model,
        "tables",
        "Plan, initial values, buffers and flavors fit the model; no token sees a later one or "
        "another document; every parameter has a gradient.",
        _of("models", "tables"),
    ),
    Promise(
        Model,
        "gradients",
        "Under every layout of two processes that the plan claims, the gradient of each parameter "
        "is that of one process.",
        _of("models", "gradients"),
        processes=2,
    ),
    Promise(
        Model,
        "layouts",
        "In float64, two steps of a run are those of one process, under every layout of two "
        "processes that the plan claims.",
        _of("training", "layouts"),
        processes=2,
    ),
    Promise(
        Model,
        "resume",
        "A run that was saved under one layout is resumed under another, and computes what it would have.",
        _of("training", "resume"),
        processes=2,
    ),
    Promise(
        Model,
        "dry run",
        "The dry run of a layout has the parameters and the optimizer state of the real one, in "
        "their shapes.",
        _of("training", "dry_run"),
        processes=2,
    ),
    Promise(
        HFAdapter,
        "table",
        "Every tensor of the model has an entry, in every flavor; there and back is the same bit "
        "for bit, and config.json is read as it was written.",
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
        "A document is the same in any order and company, and the fingerprint is the same each time.",
        _of("data", "access"),
    ),
    Promise(
        Dataset,
        "resume",
        "Rows that are read by worker processes, or from a cursor on, are those of one process from "
        "the start.",
        _of("data", "resume"),
    ),
    Promise(
        Tokenizer,
        "ids",
        "The ids of a text are whole numbers below vocab_size, without marks, whatever is encoded with it.",
        _of("data", "ids"),
    ),
    Promise(
        Tokenizer,
        "round trip",
        "What the ids of a text are decoded to has the same ids.",
        _of("data", "round_trip"),
    ),
    Promise(
        Encoder,
        "parts",
        "The tokens and targets of a part depend on the part alone.",
        _of("data", "parts"),
    ),
    Promise(
        Order,
        "epochs",
        "Each document stands once in an epoch, whatever places are asked for together.",
        _of("data", "epochs"),
    ),
    Promise(
        RowMaker,
        "rows",
        "A row is the same whoever reads it, and from any cursor on.",
        _of("data", "rows"),
    ),
    Promise(
        Converter,
        "draft",
        "Plan, initial values and buffers fit the converted model; what is trained has a gradient; "
        "its checkpoint has every tensor of the model as it was, under its name or merged.",
        _of("models", "draft"),
    ),
    Promise(
        Converter,
        "layouts",
        "In float64, a converted model computes under FSDP and under tensor parallel what it does "
        "on one process.",
        _of("training", "layouts"),
        processes=2,
    ),
    Promise(
        Converter,
        "resume",
        "A run with the converter, saved under FSDP, is resumed under tensor parallel, and the "
        "other way round.",
        _of("training", "resume"),
        processes=2,
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
        "In float64, attention over a sequence that two ranks share is attention over the whole of it.",
        _of("training", "attention"),
        processes=2,
    ),
    Promise(
        Dispatcher,
        "tokens",
        "Two ranks with half of the experts each compute, with their gradients, what one rank with "
        "all of them does.",
        _of("dispatching", "tokens"),
        processes=2,
    ),
    Promise(
        Objective,
        "terms",
        "Inputs and targets are as declared; no term, count or draw depends on the rows beside it.",
        _of("models", "terms"),
    ),
    Promise(
        Objective,
        "layouts",
        "In float64, the loss under FSDP and under other layouts that the model claims is that of "
        "one process.",
        _of("training", "layouts"),
        processes=2,
    ),
    Promise(
        Optimizer,
        "steps",
        "It follows the gradient downwards at the rate and decay of each group, and resumes bit for bit.",
        _of("rest", "steps"),
    ),
    Promise(
        Optimizer,
        "layouts",
        "In float64, its steps on sharded parameters are those on whole ones.",
        _of("training", "layouts"),
        processes=2,
    ),
    Promise(
        Optimizer,
        "resume",
        "Its state, saved under one layout, is resumed under another.",
        _of("training", "resume"),
        processes=2,
    ),
    Promise(
        LRSchedule,
        "factors",
        "Its factors are finite, never below 0, and follow from the steps done alone.",
        _of("rest", "factors"),
    ),
    Promise(
        Logger,
        "metrics",
        "It takes what runs log, also after a resume, and leaves it as it is.",
        _of("rest", "metrics"),
    ),
    Promise(
        Logger,
        "failure",
        "Where it cannot write, it raises, so that the run can report it and do without it.",
        _of("rest", "failure"),
    ),
    Promise(
        CheckpointFormat,
        "round trip",
        "Tensors that are written, by one rank or shared out among several, are read as they were, "
        "whole and in part.",
        _of("rest", "written_and_read"),
    ),
    Promise(
        Check,
        "rule",
        "It yields violations and notices, the same each time, and nothing in a run that its plugin "
        "has no part in.",
        _of("rest", "rule"),
    ),
    Promise(
        IdentitySubject,
        "values",
        "Its names and values are such as JSON has, and the same each time.",
        _of("rest", "values"),
    ),
    Promise(
        Evaluation,
        "numbers",
        "Its numbers are the same on every rank, under FSDP and other layouts as on one process, and when it "
        "is asked again; the model is as it was.",
        _of("training", "numbers"),
        processes=2,
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
        "Every field has a help text, and the section is right with its defaults.",
        _of("rest", "fields"),
    ),
)
