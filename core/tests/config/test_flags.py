"""The forms of flags."""

from __future__ import annotations

import pytest

from hekaton.config.flags import help_text, read_value, split_files, type_text
from hekaton.config.job import JobConfig, config_class


@pytest.mark.parametrize(
    ("flags", "section", "field", "value"),
    [
        (["--training.steps", "7"], "training", "steps", 7),
        (["--training.steps=7"], "training", "steps", 7),
        (["--checkpoint.load_step", "-1"], "checkpoint", "load_step", -1),
        (["--optimizer.lr", "1e-4"], "optimizer", "lr", 0.0001),
        (["--optimizer.lr", "1"], "optimizer", "lr", 1.0),
        (["--job.description", "8"], "job", "description", "8"),
        (["--job.description=a=b"], "job", "description", "a=b"),
        (["--job.description=--steep"], "job", "description", "--steep"),
        (["--training.enable_cpu_offload"], "training", "enable_cpu_offload", True),
        (["--training.enable_cpu_offload", "true"], "training", "enable_cpu_offload", True),
        (["--training.enable_cpu_offload=False"], "training", "enable_cpu_offload", False),
        (["--training.no-enable_cpu_offload"], "training", "enable_cpu_offload", False),
        (
            ["--activation_checkpoint.no-preserve_rng_state"],
            "activation_checkpoint",
            "preserve_rng_state",
            False,
        ),
        (["--training.dataloader.num_workers", "2"], "training.dataloader", "num_workers", 2),
        (["--training.dataloader.no-pin_memory"], "training.dataloader", "pin_memory", False),
        (["--debug.seed", "None"], "debug", "seed", None),
        (["--job.description", "None"], "job", "description", "None"),
        (["--compile.components", "model,loss"], "compile", "components", ["model", "loss"]),
        (["--compile.components", '["loss"]'], "compile", "components", ["loss"]),
        (["--compile.components", ""], "compile", "components", []),
        (
            ["--compile.components", "model", "--compile.components", "loss"],
            "compile",
            "components",
            ["model", "loss"],
        ),
        (
            ["--parallelism.module_fqns_per_model_part", '[["a", "b"], ["c"]]'],
            "parallelism",
            "module_fqns_per_model_part",
            [["a", "b"], ["c"]],
        ),
        (["--model.overrides", '{"n_layers": 2}'], "model", "overrides", {"n_layers": 2}),
        (
            ["--model.overrides.n_layers", "2", "--model.overrides.rope_theta=5e5"],
            "model",
            "overrides",
            {"n_layers": 2, "rope_theta": 500000.0},
        ),
        (["--halves.times", "4"], "halves", "times", 4),
        (["--halves.no-gently"], "halves", "gently", False),
        (["--halves.names", "a.b,c"], "halves", "names", ["a.b", "c"]),
    ],
)
def test_a_flag_sets_its_field(load_run, flags, section, field, value):
    loaded = load_run("", *flags)
    assert getattr(loaded.config.section(section), field) == value
    path = next(path for path in loaded.origins if path.startswith(f"{section}.{field}"))
    assert loaded.origins[path].startswith("--")


def test_the_last_of_repeated_flags_is_used_with_a_notice(load_run):
    loaded = load_run("", "--training.steps", "1", "--training.steps", "2")
    assert loaded.config.training.steps == 2
    assert loaded.notices == ("--training.steps is given more than once; the last one is used",)
    loaded = load_run(
        "", "--model.overrides.n_layers", "1", "--model.overrides", '{"n_layers": 2, "dim": 64}'
    )
    assert loaded.config.model.overrides == {"n_layers": 2, "dim": 64}
    assert loaded.notices == ("--model.overrides.n_layers is given more than once; the last one is used",)


def test_a_negated_flag_is_shown_as_it_was_given(load_run):
    loaded = load_run("[compile]\nenable = true\n", "--compile.no-enable")
    assert loaded.config.compile.enable is False
    assert loaded.origins["compile.enable"] == "--compile.no-enable"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--training.stepps", "3"], "unknown flag --training.stepps\n  did you mean --training.steps?"),
        (
            ["--model.steps", "3"],
            "unknown flag --model.steps\n  did you mean --training.steps or --validation.steps?",
        ),
        (["--training.no-steps"], "unknown flag --training.no-steps\n  did you mean --training.steps?"),
        (["--xyz"], "unknown flag --xyz\n  hekaton train --help lists all flags"),
        (["--training.steps"], "--training.steps needs a value"),
        (["--training.steps", "--compile.no-enable"], "--training.steps needs a value"),
        (["--compile.no-enable=true"], "--compile.no-enable takes no value"),
        (
            ["--model.converters", "halves", "halves"],
            "unexpected argument 'halves'\n  files come before flags; lists are a,b,c",
        ),
        (
            ["--training.steps", "many"],
            'training.steps must be an integer, not "many"\n  from: --training.steps',
        ),
        (["--training.steps", "1.5"], "training.steps must be an integer, not 1.5\n  from: --training.steps"),
        (
            ["--compile.enable=maybe"],
            'compile.enable must be a boolean, not "maybe"\n  from: --compile.enable',
        ),
        (
            ["--model.overrides", "n_layers=2"],
            'model.overrides must be a table, not "n_layers=2"\n  from: --model.overrides',
        ),
        (
            ["--model.overrides.n_layers", "null"],
            (
                "model.overrides = {n_layers = None}: 'n_layers' cannot be null, which TOML does not "
                "have\n  from: --model.overrides.n_layers"
            ),
        ),
        (["--halves.tmes", "2"], "unknown flag --halves.tmes\n  did you mean --halves.times?"),
    ],
)
def test_a_wrong_flag_is_rejected(problems, flags, message):
    assert message in problems("", *flags)


def test_all_wrong_flags_are_reported_together(problems):
    flags = ["--training.stepps", "3", "--optimizer.learning_rate=1", "--training.seq_len", "-3"]
    assert [line.splitlines()[0] for line in problems("", *flags)] == [
        "unknown flag --training.stepps",
        "unknown flag --optimizer.learning_rate",
        "training.seq_len must be greater than 0, not -3",
    ]


def test_files_come_before_flags():
    words = ["a.toml", "b.toml", "--training.steps", "3", "--compile.enable"]
    assert split_files(words) == (["a.toml", "b.toml"], ["--training.steps", "3", "--compile.enable"])


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (int | str, "3", "3"),
        (list[int], "1,2", [1, 2]),
        (list[str], "layers.*.{wq,wv}, out", ["layers.*.{wq,wv}", "out"]),
        (tuple[float, ...], "1,.5", [1, 0.5]),
        (list[str] | str, "a", ["a"]),
        (dict[str, int] | None, '{"a": 1}', {"a": 1}),
        (bool | None, "None", None),
    ],
)
def test_the_type_says_how_a_value_is_read(annotation, text, value):
    assert read_value(annotation, text) == value


@pytest.mark.parametrize(
    ("annotation", "text"),
    [(int | None, "int"), (list[list[str]], "list of list of str"), (dict[str, int], "table")],
)
def test_types_are_described(annotation, text):
    assert type_text(annotation) == text


def test_help_describes_every_flag_of_core_and_plugins(load_run):
    config, _ = config_class(load_run().plugins)
    text = help_text(config, usage="hekaton train FILE")
    assert text.startswith("usage: hekaton train FILE\n")
    assert ("[halves]  Halves every weight.\n  --halves.times int\n      How often. [default: 1]\n") in text
    assert '\n  --lr_scheduler.decay_type "linear" | "sqrt" | "cosine"\n      Shape of the fall.' in text
    assert 'only with mode = "selective"' in text
    assert "--model.tokenizer_path" not in text


def test_every_field_of_the_core_has_a_description():
    from hekaton.config.base import dotted, walk

    without = [dotted(path) for path, field, _ in walk(JobConfig) if not field.description]
    assert without == []
