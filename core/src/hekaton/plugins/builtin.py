"""What the core itself contributes, in the same way as any other plugin."""

from hekaton.contributions import (
    Command,
    Dataset,
    Encoder,
    IdentitySubject,
    Logger,
    LRSchedule,
    Objective,
    Optimizer,
    Order,
    Ref,
    RowMaker,
    Section,
    Tokenizer,
    hookimpl,
)

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_commands() -> list[Command]:
    return [
        Command("train", run=Ref("hekaton.cli.train:run"), summary="train a model from TOML files and flags"),
        Command(
            "launch",
            run=Ref("hekaton.cli.launch:run"),
            summary="write what a cluster starts a run from",
        ),
        Command(
            "config",
            run=Ref("hekaton.cli.config:run"),
            summary="check or show a configuration, or its schema",
        ),
        Command(
            "checkpoint",
            run=Ref("hekaton.cli.checkpoint:run"),
            summary="list, verify or show checkpoints",
        ),
        Command("diff", run=Ref("hekaton.cli.diff:run"), summary="say where two runs part, and why"),
        Command(
            "convert",
            run=Ref("hekaton.cli.convert:run"),
            summary="convert checkpoints to and from other layouts",
        ),
        Command(
            "generate", run=Ref("hekaton.cli.generate:run"), summary="continue texts with a trained model"
        ),
        Command(
            "preprocess",
            run=Ref("hekaton.cli.preprocess:run"),
            summary="tokenise texts once, for dataset 'tokens'",
        ),
        Command(
            "report",
            run=Ref("hekaton.cli.run_report:run"),
            summary="where the time of a run went, and its curves",
        ),
        Command("data", run=Ref("hekaton.cli.data:run"), summary="verify, count or show data"),
        Command("new", run=Ref("hekaton.cli.new:run"), summary="write a plugin that works, to be changed"),
        Command(
            "plugins", run=Ref("hekaton.cli.plugins:run"), summary="list plugins and what they contribute"
        ),
    ]


@hookimpl
def hekaton_datasets() -> list[Dataset]:
    return [
        Dataset(
            "python_stdlib",
            build=Ref("hekaton.data.stdlib:build"),
            check=Ref("hekaton.data.stdlib:check"),
            summary="source files of the running interpreter's standard library",
        ),
        Dataset(
            "python_stdlib_validation",
            build=Ref("hekaton.data.stdlib:build_validation"),
            check=Ref("hekaton.data.stdlib:check_validation"),
            summary="files that python_stdlib leaves out",
        ),
        Dataset(
            "mixture",
            build=Ref("hekaton.data.mixture:build"),
            section="mixture",
            summary="several datasets by weight: the entries of [[mixture.sources]]",
        ),
        Dataset(
            "tokens",
            build=Ref("hekaton.corpus.tokens:build"),
            check=Ref("hekaton.corpus.tokens:check"),
            section="tokens_dataset",
            encoder="ids",
            summary="token ids: a corpus of hekaton preprocess, .bin/.idx of Megatron-LM, .npy, raw files",
        ),
    ]


@hookimpl
def hekaton_orders() -> list[Order]:
    return [
        Order("shuffled", build=Ref("hekaton.data.order:shuffled"), summary="another order in every epoch"),
        Order("sequential", build=Ref("hekaton.data.order:sequential"), summary="as the dataset has them"),
    ]


@hookimpl
def hekaton_encoders() -> list[Encoder]:
    return [
        Encoder("text", build=Ref("hekaton.data.encoders:text"), summary="texts, by the tokenizer"),
        Encoder("ids", build=Ref("hekaton.data.encoders:ids"), summary="documents that are token ids"),
    ]


@hookimpl
def hekaton_row_makers() -> list[RowMaker]:
    return [
        RowMaker(
            "documents",
            build=Ref("hekaton.data.row_makers:documents"),
            summary="one after the other, hidden from each other",
        ),
        RowMaker(
            "concat",
            build=Ref("hekaton.data.row_makers:concat"),
            summary="one after the other, as one text",
        ),
        RowMaker(
            "best_fit",
            build=Ref("hekaton.data.row_makers:best_fit"),
            summary="put together so that few are cut, hidden from each other",
        ),
        RowMaker(
            "one_per_row",
            build=Ref("hekaton.data.row_makers:one_per_row"),
            summary="one in each row, cut off at its end",
        ),
    ]


@hookimpl
def hekaton_tokenizers() -> list[Tokenizer]:
    return [Tokenizer("byte", build=Ref("hekaton.data.byte:build"), summary="one id per UTF-8 byte")]


@hookimpl
def hekaton_objectives() -> list[Objective]:
    return [
        Objective(
            "next_token", build=Ref("hekaton.loss:next_token"), summary="cross-entropy of the next token"
        ),
        Objective(
            "multi_token",
            build=Ref("hekaton.multi_token:multi_token"),
            summary="the next token and the one after it",
        ),
    ]


@hookimpl
def hekaton_optimizers() -> list[Optimizer]:
    return [
        Optimizer("AdamW", build=Ref("hekaton.optim:adamw"), summary="Adam with decoupled weight decay"),
        Optimizer(
            "Muon",
            section="muon",
            build=Ref("hekaton.muon:build"),
            summary="orthogonal momentum for matrices, AdamW for the rest",
        ),
        Optimizer("Adam", build=Ref("hekaton.optim:adam"), summary="Adam with L2 regularisation"),
    ]


@hookimpl
def hekaton_sections() -> list[Section]:
    return [
        Section(
            "multi_token",
            schema=Ref("hekaton.config.sections.multi_token:MultiTokenSection"),
            summary="weight of the token after the next",
        ),
        Section("muon", schema=Ref("hekaton.config.sections.muon:MuonSection"), summary="settings of Muon"),
        Section(
            "tokens_dataset",
            schema=Ref("hekaton.config.sections.tokens:TokensDatasetSection"),
            summary="what the files of dataset 'tokens' are",
        ),
        Section(
            "mixture",
            schema=Ref("hekaton.config.sections.mixture:MixtureSection"),
            summary="the datasets that a mixture is made of",
        ),
    ]


@hookimpl
def hekaton_lr_schedules() -> list[LRSchedule]:
    return [
        LRSchedule(
            "warmup_stable_decay",
            build=Ref("hekaton.optim:warmup_stable_decay"),
            summary="linear warmup, constant, then linear, square-root or cosine decay",
        )
    ]


@hookimpl
def hekaton_loggers() -> list[Logger]:
    return [
        Logger(
            "jsonl",
            build=Ref("hekaton.jsonl:build"),
            place="run",
            summary="metrics.jsonl in the run folder, a JSON object per line",
        )
    ]


@hookimpl
def hekaton_identity_subjects() -> list[IdentitySubject]:
    return [
        IdentitySubject(
            "environment",
            build=Ref("hekaton.identity.variables:build"),
            summary="variables by which libraries compute or communicate otherwise",
        )
    ]
