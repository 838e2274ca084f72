"""``hekaton config`` and the help of ``hekaton train``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hekaton.cli import main


@pytest.fixture
def hekaton(capsys, plugin_flags):
    def hekaton(*arguments: str) -> tuple[int, str, str]:
        status = main([*arguments, *plugin_flags])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return hekaton


def write(toml: str) -> None:
    Path("run.toml").write_text(toml)


def test_check_accepts_a_sound_configuration(hekaton):
    write("[lr_scheduler]\nwarmup_steps = 3\n")
    assert hekaton("config", "check", "run.toml") == (0, "OK: llama3 debugmodel\n", "")


def test_check_gives_notices_of_values_without_effect(hekaton):
    write('[compile]\nbackend = "eager"\n[training]\nsteps = 100\n')
    status, out, _ = hekaton("config", "check", "run.toml", "--world_size", "2", "--model.flavor=8B")
    assert status == 0
    assert out.splitlines() == [
        "notice: compile.backend (run.toml, line 2): no effect: compile.enable is false",
        "notice: lr_scheduler.warmup_steps = 200 is more than the 100 steps: the rate rises to 50% of "
        "optimizer.lr and never falls",
        "OK: llama3 8B, 2 processes",
    ]


def test_check_reports_everything_that_is_wrong(hekaton):
    write('[training]\nsteps = "3"\n[modell]\n')
    status, out, err = hekaton("config", "check", "run.toml")
    assert (status, out) == (2, "")
    assert 'error: training.steps must be an integer, not "3"\n  from: run.toml, line 2\n' in err
    assert "error: unknown section [modell]\n  from: run.toml, line 3\n  did you mean 'model'?" in err


def test_check_for_a_number_of_processes(hekaton):
    write("[parallelism]\ndata_parallel_shard_degree = 2\n")
    assert hekaton("config", "check", "run.toml", "--world_size=2")[0] == 0
    status, _, err = hekaton("config", "check", "run.toml", "--world_size=3")
    assert status == 2
    assert err.startswith("error: the degrees of parallelism multiply to 2")


@pytest.mark.parametrize("words", [["--world_size"], ["--world_size", "0"], ["--world_size=two"]])
def test_a_wrong_number_of_processes(hekaton, words):
    write("")
    status, _, err = hekaton("config", "check", "run.toml", *words)
    assert status == 2
    assert err.startswith("error: --world_size needs a number, at least 1, not '")


def test_show_says_where_values_come_from(hekaton):
    write('[model]\nflavor = "8B"\n[model.overrides]\nn_layers = 1\n[optimizer]\nbeta1 = 0.5\n')
    status, out, _ = hekaton("config", "show", "run.toml", "--training.gc_freq", "7")
    assert status == 0
    rows = [line.split(maxsplit=2) for line in out.splitlines() if line and not line.startswith("[")]
    assert ["beta1", "0.5", "run.toml, line 6"] in rows
    assert ["gc_freq", "7", "--training.gc_freq"] in rows
    assert ["seq_len", "4096", "flavor 8B of llama3"] in rows
    assert ["beta2", "0.95", "default"] in rows
    assert ["times", "1", "default"] in rows
    (overrides,) = [line for line in out.splitlines() if line.startswith("overrides")]
    assert overrides.split(maxsplit=1)[1].split("  ") == ["{n_layers = 1}", *[""] * 5, "run.toml, line 4"]
    assert "[quantize" not in out


def test_schema_to_stdout_and_to_a_file(hekaton):
    status, out, _ = hekaton("config", "schema")
    assert status == 0
    assert json.loads(out)["$defs"]["HalvesSection"]["properties"]["times"]["exclusiveMinimum"] == 0
    assert hekaton("config", "schema", "schema.json")[0] == 0
    assert Path("schema.json").read_text() == out


def test_schema_to_where_nothing_can_be_written(hekaton):
    status, _, err = hekaton("config", "schema", "nowhere/schema.json")
    assert (status, err) == (2, "error: cannot write 'nowhere/schema.json': No such file or directory\n")


def test_schema_takes_one_file(hekaton):
    status, _, err = hekaton("config", "schema", "a", "b")
    assert status == 2
    assert err.startswith("error: unexpected arguments 'a b'")


def test_an_unknown_verb(hekaton):
    status, _, err = hekaton("config", "chek")
    assert status == 2
    assert err.startswith("error: unknown verb 'config chek'\n  did you mean 'check'?")


def test_usage(hekaton, capsys):
    assert hekaton("config", "--help")[1].startswith("usage: hekaton config check FILE...")
    assert main(["config"]) == 0
    assert capsys.readouterr().out.startswith("usage: hekaton config check FILE...")


def test_help_of_train_lists_flags_of_plugins_too(hekaton):
    status, out, _ = hekaton("train", "--help")
    assert status == 0
    assert "\n  --training.seq_len int\n      Tokens in a row. [default: 2048]\n" in out
    assert "\n[halves]  Halves every weight.\n  --halves.times int\n" in out
