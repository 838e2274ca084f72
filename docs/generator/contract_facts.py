"""What the signatures of contributions do not say: when and where they are called, and what is saved."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """What the signatures do not say.

    :param when: it is called, and on which ranks.
    :param layouts: what holds under which of them.
    :param state: what of it is saved, and compared when a run resumes.
    :param builds: full names of the interfaces of what a record builds.
    :param template: the kind of ``hekaton new``; empty where it writes none of its own.
    """

    when: str
    layouts: str
    state: str
    builds: tuple[str, ...] = ()
    template: str = ""


FACTS: dict[str, Facts] = {
    "Model": Facts(
        when="`spec` is loaded on every rank of a run that names the model, and by `hekaton config "
        "check`. `model`, `plan` and `init` are called on the meta device, once each, before "
        "anything has memory; `forward` for every microbatch, on every rank; `before_step` once "
        "per optimizer step on every rank, `report` after steps that are logged.",
        layouts="FSDP and replication need nothing of a model. Tensor parallel: the plan's `tensor` gives "
        "a style to every module with parameters; between these modules activations are plain "
        "tensors, (batch, seq, dim), under sequence parallel each rank's part of the sequence; "
        "heads and widths are read off the tensors, not off the configuration. Context parallel: "
        "`context` names the inner attentions, which take [these "
        "arguments](../reference/models.md#inner-attention); everything else works on each token "
        "by itself, with the positions that it is given. Pipelines: `stages` says what only the "
        "first and the last stage have; [these are `None` "
        "elsewhere](../reference/models.md#pipeline-stages), and a later stage is given hidden "
        "states, (batch, seq, dim), in place of tokens. Experts: `experts` names the layers, see "
        "[`ExpertLayer`](../reference/hooks.md#expertlayer). A layout that the plan does not "
        "claim is refused.",
        state="Parameters and persistent buffers are saved under their names in the whole model, "
        "whatever the layout, and are exported by the [adapter](hf-adapter.md). Other buffers are "
        "filled by `reset_buffers()`. Nothing else is kept: what a module holds besides is lost "
        "when a run resumes.",
        builds=(
            "hekaton.spec.TrainSpec",
            "hekaton.parallel.plan.ParallelPlan",
            "hekaton.parallel.plan.Stages",
        ),
        template="model",
    ),
    "HFAdapter": Facts(
        when="`table`, `write_config` and `read_config` are called by `hekaton convert`, by exports of "
        "a run and by runs that start from such weights; on every rank, on shapes alone.",
        layouts="Every layout: each rank reads the boxes of tensors that it holds.",
        state="None.",
        builds=("hekaton.weights.table.WeightTable",),
        template="model",
    ),
    "ParallelStyle": Facts(
        when="`build` is called on every rank for each module that a plan gives the style to, on the "
        "meta device, and the style that it returns is applied once to that module on the mesh "
        "axis `tp`.",
        layouts="Tensor parallel of any degree, with and without sequence parallel "
        "(`context.sequence_parallel`) and loss parallel. Input and output are plain tensors, "
        "(batch, seq, dim), of this rank's part of the sequence under sequence parallel and of "
        "the whole otherwise, unless its name says what it is beside.",
        state="None; parameters become DTensors under their own names, and are saved whole.",
        template="parallel_style",
    ),
    "ContextParallel": Facts(
        when="`build` is called once on every rank of a run with `context_parallel_degree` above 1; "
        "`replace` once for each inner attention that the plan names, and what it returns in "
        "every forward.",
        layouts="Context parallel, together with every other axis. q, k and v are this rank's part of the "
        "sequence, (batch, heads, seq / degree, head_dim), in the order that `order` says; "
        "`documents` is that of the whole row, (batch, seq).",
        state="None.",
        builds=(
            "hekaton.parallel.context.ContextStrategy",
            "hekaton.parallel.context.ContextGroup",
        ),
        template="context_strategy",
    ),
    "Dispatcher": Facts(
        when="`build` is called once on every rank of a run whose experts lie on several ranks; the "
        "dispatcher in every layer of experts and every forward.",
        layouts="Expert parallel, and expert-tensor parallel where `group.etp` has several ranks: these "
        "have parts of the same experts, and tokens of their own. A rank may have no token, and "
        "an expert none.",
        state="None.",
        builds=("hekaton.parallel.experts.ExpertGroup",),
        template="dispatcher",
    ),
    "Converter": Facts(
        when="`build` and `convert` are called once on every rank, on the meta device, before the "
        "model is parallelised; `after_step` before the first step and after each optimizer step, "
        "on every rank, with the parts of the model that this rank has.",
        layouts="Every layout that the model claims; what a converter cannot do, a [check](check.md) "
        "refuses.",
        state="Parameters and buffers that it adds are saved with the model's. A checkpoint of a run "
        "whose converter adds none fits runs with and without it. `merges` and `weight_entries` "
        "say how an export has what was added.",
        builds=(
            "hekaton.spec.ModelConverter",
            "hekaton.draft.Draft",
            "hekaton.draft.Merge",
        ),
        template="converter",
    ),
    "Section": Facts(
        when="The schema is loaded in every run and by `hekaton config`, so that its module must be "
        "light to import.",
        layouts="None of its own: a setting that cannot take effect in a layout is refused by a "
        "[check](check.md).",
        state="Its values are written beside the run and into every checkpoint; fields say with "
        "`AtResume` what a change means to a resume.",
        template="dataset",
    ),
    "Dataset": Facts(
        when="`build` is called on every rank before the model is built, `check` by `hekaton config "
        "check` too; `fetch` by the rank or by its worker processes, which are forked, in any "
        "order.",
        layouts="Every layout: ranks that share a row read the same documents, other ranks others. "
        "Nothing of a rank reaches the dataset.",
        state="`fingerprint`, which is compared between ranks and when a run resumes. The place in the "
        "data is the core's.",
        builds=(
            "hekaton.data.Documents",
            "hekaton.data.KnownFiles",
            "hekaton.data.ChecksRows",
        ),
        template="dataset",
    ),
    "Order": Facts(
        when="`build` once on every rank, `at` whenever documents are read, there or in worker processes.",
        layouts="Every layout; any rank may ask for any place.",
        state="Its name and the seed are compared when a run resumes.",
        builds=("hekaton.data.DocumentOrder",),
        template="order",
    ),
    "Encoder": Facts(
        when="`build` once on every rank; `cut` and `encode` when documents are read, there or in "
        "worker processes.",
        layouts="Every layout.",
        state="`fingerprint`, which is compared between ranks and when a run resumes.",
        builds=(
            "hekaton.data.DocumentEncoder",
            "hekaton.data.Encoded",
            "hekaton.data.Whole",
        ),
        template="encoder",
    ),
    "RowMaker": Facts(
        when="`build` once on every rank; `make` for every row, on a rank that reads it or in its "
        "worker processes.",
        layouts="Every layout. Speed is per `unit`, and floating-point operations too.",
        state="The cursor of each row: documents and tokens read, and `Feed.made` where `cursor_width` "
        "is 3. Nothing else is kept between rows.",
        builds=(
            "hekaton.data.row_makers.BatchRowMaker",
            "hekaton.data.feed.Feed",
        ),
        template="row_maker",
    ),
    "Tokenizer": Facts(
        when="`build` once on every rank; `encode_batch` when documents are read, there or in worker "
        "processes; `decode` by `hekaton generate` and `hekaton data show`.",
        layouts="Every layout. `vocab_size` is compared with the model's.",
        state="`fingerprint`, which is compared between ranks and when a run resumes.",
        builds=(
            "hekaton.data.TextTokenizer",
            "hekaton.data.PieceTokenizer",
            "hekaton.data.KnowsPlaces",
        ),
        template="tokenizer",
    ),
    "Objective": Facts(
        when="`build` once on every rank; `prepare` and `count` once per microbatch before the first "
        "forward, `loss` after each forward on the ranks of the last stage.",
        layouts="Every layout that the model claims: a tensor with a `sequence` is cut there under "
        "context parallel, one with `first_stage` is given to the first stage of a pipeline "
        "alone. Under loss parallel the outputs are a DTensor cut by the vocabulary. Counts are "
        "added up over all ranks before losses are divided.",
        state="None. Random numbers come from `draw`, by step and row, so that a resumed run has the same.",
        builds=(
            "hekaton.objective.TrainingObjective",
            "hekaton.objective.BatchTensor",
        ),
        template="objective",
    ),
    "Optimizer": Facts(
        when="`build` once on every rank for each part of the model, before checkpoints are loaded; "
        "`step` after the gradients of the whole step are summed and clipped.",
        layouts="Every layout. Parameters and gradients may be DTensors; what a step needs of other "
        "ranks, it sends itself.",
        state="What it keeps of a parameter: tensors of the parameter's placements or whole, numbers "
        "and strings, saved under the parameter's name and resharded. The rates of groups come "
        "from the run.",
        builds=(
            "hekaton.parameters.ParameterGroup",
            "hekaton.parameters.NamedParameter",
        ),
        template="optimizer",
    ),
    "LRSchedule": Facts(
        when="`build` once on every rank; its function before each step, in order or, after a resume, "
        "from any step on.",
        layouts="Every layout.",
        state="None but the number of steps done.",
        template="schedule",
    ),
    "Logger": Facts(
        when="`build` on rank 0, or with `metrics.save_for_all_ranks` on every rank; `resume` before "
        "the first `log` of every start; `log` at logged steps and after validations; `close` "
        "when the run ends, however it does. A logger that raises is reported once and left out "
        "from then on.",
        layouts="Every layout.",
        state="None in checkpoints: `resume(step)` says what counts of what it wrote.",
        builds=(
            "hekaton.metrics.MetricLogger",
            "hekaton.metrics.ResumableLogger",
        ),
        template="logger",
    ),
    "CheckpointFormat": Facts(
        when="`build` by `hekaton convert from-NAME` and `to-NAME`, and on the ranks of a run that "
        "starts from such weights or exports them; `write` on several ranks at a time, each with "
        "its share, while nobody waits.",
        layouts="Every layout.",
        state="None.",
        builds=(
            "hekaton.weights.format.WeightFormat",
            "hekaton.weights.format.Weights",
            "hekaton.weights.format.WriteOptions",
        ),
        template="checkpoint_format",
    ),
    "Evaluation": Facts(
        when="`build` on every rank before the first step; `due` after every step, on every rank; the call "
        "where it said yes.",
        layouts="Every layout: it is given this rank's parts of the model.",
        state="None. Modes of modules are as they were afterwards; the trainer keeps random generators.",
        builds=("hekaton.metrics.RunEvaluation",),
        template="evaluation",
    ),
    "Command": Facts(
        when="`run` when the verb is given, in a process of its own. `--help` answers without "
        "importing torch.",
        layouts="None.",
        state="None.",
        template="command",
    ),
    "Check": Facts(
        when="`rule` on every rank before anything is built, and by `hekaton config check`, also on "
        "machines without the run's devices; its module is imported by every run.",
        layouts="It is given the number of processes and the type of device, and may refuse a layout.",
        state="None.",
        builds=("hekaton.rules.run.Run",),
        template="check",
    ),
    "IdentitySubject": Facts(
        when="`build` on every rank, when the model is built and before it is loaded.",
        layouts="Every layout.",
        state="Names and values, in every checkpoint; `at_resume` says what a change means.",
        template="identity_subject",
    ),
}
