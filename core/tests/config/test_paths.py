"""Paths in files and on command lines: the home folder is expanded in every one of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from hekaton.cli import main
from hekaton.config import load
from hekaton.config.base import default_of, dotted, walk
from hekaton.config.job import JobConfig
from hekaton.config.toml import TomlFile

PATHS = [
    "job.dump_folder", "job.save_config_file", "profiling.save_traces_folder",
    "profiling.save_memory_snapshot_folder", "metrics.save_tb_folder", "model.hf_assets_path",
    "training.dataset_path", "validation.dataset_path", "checkpoint.folder", "checkpoint.initial_load_path",
    "parallelism.pipeline_parallel_schedule_csv", "comm.save_traces_folder", "comm.save_traces_file_prefix",
]  # fmt: skip


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_the_list_above_has_every_path():
    named = {
        dotted(path)
        for path, field, _ in walk(JobConfig)
        if path[-1].endswith(("_path", "folder", "_csv", "_file", "_prefix"))
        and isinstance(default_of(field), str | None)
    }
    read_early = {"job.config_file", "model.tokenizer_path", "checkpoint.initial_load_model_only"}
    assert named - read_early == set(PATHS)


@pytest.mark.parametrize("name", PATHS)
def test_the_home_folder_is_expanded(load_run, name):
    section, _, field = name.partition(".")
    config = load_run(f'[{section}]\n{field} = "~/some/where"\n').config
    value = getattr(config.section(section), field)
    assert value == str(Path.home() / "some" / "where")
    config = load_run("", f"--{name}=~/some/where").config
    assert getattr(config.section(section), field) == value


def test_paths_without_a_home_folder_stay(load_run):
    config = load_run('[checkpoint]\nfolder = "s3://bucket/~run"\n[job]\ndump_folder = "./~run/~"\n').config
    assert (config.checkpoint.folder, config.job.dump_folder) == ("s3://bucket/~run", "./~run/~")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (
            '[job]\ndump_folder = "~nobody_of_that_name/x"\n',
            "the home folder of '~nobody_of_that_name' is not known; for a name, write ./~nobody_of_that_name",
        ),
        (f'[checkpoint]\nfolder = "a/{"x" * 256}"\n', "a name in a path has at most 255 bytes"),
        ('[checkpoint]\nfolder = "a\\u0000b"\n', "a path cannot contain the character NUL"),
    ],
)
def test_invalid_paths_are_rejected(problems, toml, message):
    (said,) = problems(toml)
    assert message in said
    assert "from: run.toml, line 2" in said


def test_a_plugin_and_a_run_file_in_the_home_folder(home, plugin_file):
    home.mkdir()
    (home / "tiny_plugin.py").symlink_to(plugin_file)
    (home / "run.toml").write_text('[plugins]\nload = ["~/tiny_plugin.py"]\n[training]\nsteps = 3\n')
    assert load([], ["--job.config_file=~/run.toml"]).config.training.steps == 3
    assert TomlFile.read("~/run.toml").tables["training"] == {"steps": 3}


def test_the_schema_is_written_to_the_home_folder(home, capsys):
    home.mkdir()
    assert main(["config", "schema", "~/schema.json"]) == 0
    assert (home / "schema.json").is_file()
    assert main(["checkpoint", "ls", "~nobody_of_that_name/x"]) == 2
    assert "the home folder of '~nobody_of_that_name' is not known" in capsys.readouterr().err
