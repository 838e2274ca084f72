"""What a user reads when a file is wrong: the place, the mistake, the nearest valid choice."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from hekaton.config import load
from hekaton.data.encoders import UnknownIdError
from hekaton.errors import ConfigError, ConfigErrors, HekatonError


def only(problems: list[str]) -> str:
    assert len(problems) == 1, problems
    return problems[0]


@pytest.mark.parametrize(
    ("toml", "message", "line", "hint"),
    [
        (
            "[training]\nstep = 3\n",
            "unknown field 'step' in [training]",
            2,
            "  did you mean 'steps'?\n  choose one of: ",
        ),
        (
            "[trainning]\nsteps = 3\n",
            "unknown section [trainning]",
            2,
            "  did you mean 'training'?\n  choose one of: ",
        ),
        ("\n[trainning]\n", "unknown section [trainning]", 2, "  did you mean 'training'?"),
        ("steps = 3\n", "'steps' is outside of any section", 1, ""),
        ("[model.layers]\nn = 3\n", "unknown section 'layers' in [model]", 2, ""),
        (
            "[training]\nseed = 3\n",
            "unknown field 'seed' in [training]",
            2,
            "  did you mean debug.seed?\n  choose one",
        ),
        (
            "[training.dataloader]\nworkers = 3\n",
            "unknown field 'workers' in [training.dataloader]",
            2,
            "  did you mean 'num_workers'?\n  choose one of: num_workers, persistent_workers",
        ),
        ('[training]\n\nsteps = "8"\n', 'training.steps must be an integer, not "8"', 3, ""),
        ("[training]\nsteps = 8.0\n", "training.steps must be an integer, not 8.0", 2, ""),
        ("[training]\nsteps = true\n", "training.steps must be an integer, not true", 2, ""),
        (
            "[training]\nenable_cpu_offload = 1\n",
            "training.enable_cpu_offload must be a boolean, not 1",
            2,
            "",
        ),
        ("[job]\ndescription = 1\n", "job.description must be a string, not 1", 2, ""),
        (
            '[metrics]\nloggers = ["jsonl", "tensorboard", "jsonl"]\n',
            'metrics.loggers = ["jsonl", "tensorboard", "jsonl"]: it names "jsonl" twice',
            2,
            "",
        ),
        (
            '[checkpoint]\nexclude_from_loading = ["rng", "rng", "rng"]\n',
            'checkpoint.exclude_from_loading = ["rng", "rng", "rng"]: it names "rng" several times',
            2,
            "",
        ),
        ('model = "llama3"\n', 'model must be a table, not "llama3"', 1, ""),
        ('[[model]]\nname = "llama3"\n', 'model must be a table, not [{name = "llama3"}]', 1, ""),
        ('[model]\nconverters = "halves"\n', 'model.converters must be a list, not "halves"', 2, ""),
        ("[metrics]\nloggers = [\n  1,\n]\n", "metrics.loggers[0] must be a string, not 1", 2, ""),
        ("[optimizer]\nlr = nan\n", "optimizer.lr must be a finite number, not nan", 2, ""),
        ("[optimizer]\nlr = inf\n", "optimizer.lr must be a finite number, not inf", 2, ""),
        ("[optimizer]\nlr = 0\n", "optimizer.lr must be greater than 0, not 0", 2, ""),
        ("[optimizer]\nbeta1 = 1\n", "optimizer.beta1 must be less than 1, not 1", 2, ""),
        (
            "[lr_scheduler]\ndecay_ratio = 1.5\n",
            "lr_scheduler.decay_ratio must be less than or equal to 1, not 1.5",
            2,
            "",
        ),
        (
            "[training]\nglobal_batch_size = 0\n",
            "training.global_batch_size = 0: must be positive, or -1",
            2,
            "",
        ),
        (
            '[lr_scheduler]\ndecay_type = "cosin"\n',
            "lr_scheduler.decay_type must be 'linear', 'sqrt' or 'cosine', not \"cosin\"",
            2,
            "  did you mean 'cosine'?",
        ),
        (
            '[checkpoint]\nexclude_from_loading = ["optimiser"]\n',
            (
                "checkpoint.exclude_from_loading[0] must be 'model', 'optimizer', 'lr_scheduler', "
                "'data_loader' or 'rng', not \"optimiser\""
            ),
            2,
            "  did you mean 'optimizer'?",
        ),
        (
            '[activation_checkpoint]\nselective_ac_option = "0"\n',
            'activation_checkpoint.selective_ac_option must match ^([1-9][0-9]{0,5}|op)$, not "0"',
            2,
            "",
        ),
        ("[halves]\ntimes = 0\n", "halves.times must be greater than 0, not 0", 2, ""),
        (
            '[model]\nname = "lama3"\n',
            "unknown model 'lama3' (model.name)",
            2,
            "  did you mean 'llama3'?\n  choose one of: llama3",
        ),
        (
            '[model]\nflavor = "8C"\n',
            "unknown flavor '8C' of model 'llama3' (model.flavor)",
            2,
            "  choose one of: 405B, 8B, debugmodel",
        ),
        (
            '[model]\nflavor = "debugmodl"\n',
            "unknown flavor 'debugmodl' of model 'llama3' (model.flavor)",
            2,
            "  did you mean 'debugmodel'?",
        ),
        (
            '[model]\ntokenizer = "bite"\n',
            "unknown tokenizer 'bite' (model.tokenizer)",
            2,
            "  did you mean 'byte'?\n  choose one of: byte, hf",
        ),
        (
            '[model]\nconverters = ["halves", "halfs"]\n',
            "unknown converter 'halfs' (model.converters)",
            2,
            "  did you mean 'halves'?",
        ),
        (
            "[model.overrides]\nn_layer = 2\n",
            "model.overrides.n_layer: llama3 debugmodel has no field 'n_layer'",
            2,
            "  did you mean 'n_layers'?\n  choose one of: dim, n_layers, rope_theta",
        ),
        (
            '[model]\noverrides = {n_layers = "two"}\n',
            'model.overrides.n_layers must be an integer, not "two"',
            2,
            "",
        ),
        (
            '[optimizer]\nname = "adamw"\n',
            "unknown optimizer 'adamw' (optimizer.name)",
            2,
            "  did you mean 'AdamW'?\n  choose one of: Adam, AdamW",
        ),
        (
            '[lr_scheduler]\nname = "wsd"\n',
            "unknown lr schedule 'wsd' (lr_scheduler.name)",
            2,
            "  choose one of: warmup_stable_decay",
        ),
        (
            '[training]\ndataset = "c4tests"\n',
            "unknown dataset 'c4tests' (training.dataset)",
            2,
            "  did you mean 'c4_test'?",
        ),
        (
            '[metrics]\nloggers = ["tensorbord"]\n',
            "unknown logger 'tensorbord' (metrics.loggers)",
            2,
            "  did you mean 'tensorboard'?",
        ),
        (
            '[validation]\nenable = true\ndataset = "c4_val"\n',
            "unknown dataset 'c4_val' (validation.dataset)",
            3,
            "  did you mean ",
        ),
    ],
)
def test_one_mistake_one_message(problems, toml, message, line, hint):
    found = only(problems(toml))
    assert f"{found}\n".startswith(f"{message}\n  from: run.toml, line {line}\n{hint}")


def test_an_integer_will_do_for_a_float(load_run):
    config = load_run(
        "[optimizer]\nweight_decay = 0\n[training]\nmax_norm = 1\n[model.overrides]\nrope_theta = 5\n"
    )
    assert config.config.optimizer.weight_decay == 0
    assert config.config.training.max_norm == 1


def test_everything_is_said_at_once(problems):
    found = problems(
        '[model]\nname = "llama3"\nflavor = "9B"\n[trainig]\n[training]\nsteps = "8"\nseqlen = 2\n'
        '[optimizer]\nname = "Adem"\n[comm]\nmode = "local_tensor"\n',
        "--training.foo", "1",
    )  # fmt: skip
    assert sorted(problem.splitlines()[0] for problem in found) == [
        'comm.mode = "local_tensor": running all ranks in one process is not available yet',
        'training.steps must be an integer, not "8"',
        "unknown field 'seqlen' in [training]",
        "unknown flag --training.foo",
        "unknown flavor '9B' of model 'llama3' (model.flavor)",
        "unknown optimizer 'Adem' (optimizer.name)",
        "unknown section [trainig]",
    ]


def test_of_very_many_errors_the_first_are_printed(load_run):
    fields = "".join(f"field_{number} = 1\n" for number in range(1000))
    with pytest.raises(ConfigErrors) as error:
        load_run(f'[model]\nname = "llama3"\nflavor = "debugmodel"\n[model.overrides]\n{fields}')
    printed = str(error.value).splitlines()
    assert len(error.value.problems) == 1000
    assert printed[-1] == "and 980 more errors"
    assert sum(line.startswith("error: ") for line in printed) == 19  # beside the first
    assert "field_19" in printed[-4]
    assert len(error.value.message.splitlines()) == 2


def test_a_wrong_value_is_not_also_refused(problems):
    only(problems('[fault_tolerance]\nenable = "yes"\n'))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_switched_on_is_missing(problems, monkeypatch, name):
    monkeypatch.setattr("tiny_plugin.hekaton_loggers", None)
    message = only(problems(f"[metrics]\nenable_{name} = true\n"))
    assert message.startswith(f"unknown logger '{name}' (metrics.enable_{name})\n  from: run.toml, line 2")


def test_a_default_that_no_plugin_contributes():
    Path("run.toml").write_text('[model]\nname = "llama3"\ntokenizer = "byte"\n[training]\nsteps = 1\n')
    with pytest.raises(ConfigErrors) as caught:
        load(["run.toml"])
    assert str(caught.value.problems[0]).startswith(
        "unknown model 'llama3' (model.name)\n  from: run.toml, line 2\n  there are none\n"
    )
    with pytest.raises(ConfigErrors, match=r"unknown tokenizer 'hf' .*\n  from: default of model.tokenizer"):
        load([])


def test_a_broken_model_is_named(load_run, problems, monkeypatch):
    load_run()
    monkeypatch.delattr("tiny_plugin.spec")
    message = only(problems())
    assert message.startswith("cannot load 'tiny_plugin:spec': ")
    assert "from: model 'llama3' of plugin 'tiny_plugin' (unpackaged)" in message


class TestFiles:
    def error(self, *files: str) -> str:
        with pytest.raises(ConfigErrors) as caught:
            load(list(files))
        return only([str(problem) for problem in caught.value.problems])

    def test_missing(self):
        Path("my_run.toml").write_text("")
        assert self.error("my_rum.toml") == "there is no file 'my_rum.toml'\n  did you mean 'my_run.toml'?"

    def test_missing_folder(self):
        assert (
            self.error("runs/a.toml") == "there is no file 'runs/a.toml'\n  there is no folder 'runs' either"
        )

    def test_a_folder(self):
        os.mkdir("runs")
        assert self.error("runs") == "cannot read 'runs': Is a directory"

    @pytest.mark.parametrize(
        ("text", "line", "shown"),
        [
            ("[training]\nsteps = 3\nseq_len = \n", 3, "seq_len ="),
            ("[training]\nsteps = 3 4\n", 2, "steps = 3 4"),
            ("[training\nsteps = 3\n", 1, "[training"),
            ("[training]\nsteps = 1\nsteps = 2\n", 3, "steps = 2"),
            ("[model]\nconverters = [\n  'a',\n", 3, "'a',"),
        ],
    )
    def test_syntax(self, text, line, shown):
        Path("run.toml").write_text(text)
        first, origin, hint = self.error("run.toml").splitlines()
        assert first.startswith("TOML syntax: ")
        assert (origin, hint) == (f"  from: run.toml, line {line}", f"  {shown}")

    def test_no_utf8(self):
        Path("run.toml").write_bytes(b"[job]\n# \xc3\xa4\ndescription = 'caf\xe9'\n")
        assert self.error("run.toml") == (
            "byte 0xe9 is not UTF-8, which TOML is written in\n  from: run.toml, line 3"
        )

    def test_several_at_once(self):
        Path("run.toml").write_text("a = \n")
        with pytest.raises(ConfigErrors) as caught:
            load(["run.toml", "none.toml"])
        assert len(caught.value.problems) == 2


class TestPlugins:
    """What [plugins] says is wrong."""

    def test_load_of_what_is_not_there(self):
        Path("run.toml").write_text('[plugins]\nload = ["nowhere.py"]\n[model]\ntokenizer = "byte"\n')
        with pytest.raises(ConfigErrors) as caught:
            load(["run.toml"])
        message = str(caught.value.problems[0])
        assert message.startswith("cannot load plugin 'nowhere.py': ")
        assert "from: run.toml, line 2" in message

    def test_disable_of_what_is_not_there(self, problems):
        message = only(problems("", "--plugins.disable", "nobody"))
        assert message.startswith(
            "cannot disable 'nobody': no plugin has that name\n  from: --plugins.disable"
        )

    def test_a_section_of_a_plugin_that_is_disabled(self, problems):
        found = problems("[halves]\ntimes = 2\n[plugins]\ndisable = ['tiny_plugin']\n")
        message = next(problem for problem in found if problem.startswith("unknown section [halves]"))
        assert "not loaded, and may contribute it:" in message
        assert "plugin 'tiny_plugin' (unpackaged): disabled: disabled by the user" in message

    def test_lists_of_wrong_types(self, problems):
        message = only(problems("[plugins]\ndisable = 3\n"))
        assert message == "plugins.disable must be a list, not 3\n  from: run.toml, line 2"


@pytest.mark.parametrize(
    "error",
    [
        ConfigErrors([ConfigError("one", fields=["a.b"]), HekatonError("two", origin="a file", hint="do")]),
        UnknownIdError(9, 8, at=3),
        ConfigError("one", origin="a file", fields=["a.b"]),
    ],
)
def test_an_error_stays_what_it_is_on_its_way_to_another_process(error):
    there = pickle.loads(pickle.dumps(error))
    assert type(there) is type(error)
    assert str(there) == str(error)
    assert there.__dict__.keys() == error.__dict__.keys()
    assert there.hint == error.hint
