"""defaults < flavor's defaults < files from left to right < flags, and who set what."""

from __future__ import annotations

from pathlib import Path

import pytest

from hekaton.config import load
from hekaton.config.toml import TomlFile
from hekaton.errors import ConfigErrors


def test_without_anything_set_everything_has_its_default(load_run):
    loaded = load_run()
    assert loaded.config.training.steps == 10_000
    assert loaded.config.optimizer.lr == 8e-4
    assert dict(loaded.origins) == {"plugins.load": "--plugins.load", "training.objective": "model llama3"}
    assert loaded.notices == ()


def test_each_layer_overrides_the_one_before(plugin_flags):
    Path("a.toml").write_text(
        '[model]\nflavor = "8B"\n[training]\nsteps = 1\nlocal_batch_size = 2\ngc_freq = 3\n'
    )
    Path("b.toml").write_text("[training]\nlocal_batch_size = 4\ngc_freq = 5\n")
    loaded = load(["a.toml", "b.toml"], [*plugin_flags, "--training.gc_freq", "6"])
    training = loaded.config.training
    assert (training.max_norm, training.seq_len, training.steps) == (1.0, 4096, 1)
    assert (training.local_batch_size, training.gc_freq) == (4, 6)
    assert loaded.config.optimizer.lr == 3e-4
    assert dict(loaded.origins) == {
        "model.flavor": "a.toml, line 2",
        "training.objective": "model llama3",
        "training.seq_len": "flavor 8B of llama3",
        "optimizer.lr": "flavor 8B of llama3",
        "training.steps": "a.toml, line 4",
        "training.local_batch_size": "b.toml, line 2",
        "training.gc_freq": "--training.gc_freq",
        "plugins.load": "--plugins.load",
    }


def test_files_in_the_other_order_give_the_other_value(plugin_flags):
    Path("a.toml").write_text("[training]\nsteps = 1\n")
    Path("b.toml").write_text("[training]\nsteps = 2\n")
    assert load(["b.toml", "a.toml"], plugin_flags).config.training.steps == 1


def test_a_flavor_named_by_a_flag_brings_its_defaults(load_run):
    assert load_run("", "--model.flavor", "8B").config.training.steps == 77


def test_the_config_file_may_be_a_flag(plugin_flags):
    Path("a.toml").write_text("[training]\nsteps = 4\n")
    loaded = load([], ["--job.config_file", "a.toml", *plugin_flags])
    assert loaded.config.training.steps == 4
    assert loaded.config.job.config_file == "a.toml"


def test_lists_are_replaced_and_tables_merged(plugin_flags):
    Path("a.toml").write_text('[model]\noverrides = {dim = 3, n_layers = 4}\nconverters = ["halves"]\n')
    Path("b.toml").write_text("[model]\nconverters = []\n[model.overrides]\nn_layers = 5\n")
    model = load(["a.toml", "b.toml"], plugin_flags).config.model
    assert model.overrides == {"dim": 3, "n_layers": 5}
    assert model.converters == []


def test_plugins_named_in_a_file_bring_their_sections(plugin_file):
    Path("run.toml").write_text(
        f'[plugins]\nload = ["{plugin_file}"]\n[model]\nconverters = ["halves"]\n[halves]\ntimes = 3\n'
    )
    loaded = load(["run.toml"])
    assert loaded.config.section("halves").times == 3
    assert loaded.origins["halves.times"] == "run.toml, line 6"


LINES = '''\
# a comment
title = "x"

[a]          # line 4
one = 1
two.three = 2
text = """
[not.a.table]
four = 4
"""
list = [
  1,
  # in between
  2,
]
[ a . "b c" ]
"d.e" = {f = 1, g = [1, 2]}
[[many]]
h = 1
[[many]]
h = 2
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 2),
        (("a",), 4),
        (("a", "one"), 5),
        (("a", "two"), 6),
        (("a", "two", "three"), 6),
        (("a", "text"), 7),
        (("a", "list"), 11),
        (("a", "b c"), 16),
        (("a", "b c", "d.e", "f"), 17),
        (("a", "b c", "d.e", "g"), 17),
        (("many",), 18),
        (("a", "one", "nothing"), 5),
    ],
)
def test_the_line_of_a_key(path, line):
    Path("lines.toml").write_text(LINES)
    assert TomlFile.read("lines.toml").origin(path)() == f"lines.toml, line {line}"


def test_a_file_with_a_byte_order_mark_is_read(plugin_flags):
    Path("bom.toml").write_bytes(b"\xef\xbb\xbf[training]\r\nsteps = 3\r\n")
    assert load(["bom.toml"], plugin_flags).config.training.steps == 3


def test_a_scalar_in_one_file_and_a_table_in_another(plugin_flags):
    Path("a.toml").write_text("training = 5\n")
    Path("b.toml").write_text("[training]\nsteps = 5\n")
    assert load(["a.toml", "b.toml"], plugin_flags).config.training.steps == 5
    with pytest.raises(ConfigErrors, match=r"training must be a table, not 5\n  from: a.toml, line 1"):
        load(["b.toml", "a.toml"], plugin_flags)
