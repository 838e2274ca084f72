"""Input that is nested, long or large beyond reason: refused with its place, in time that grows with its size."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hekaton.config import load
from hekaton.config.toml import MAX_BYTES, TomlFile, statements
from hekaton.errors import ConfigError

DEEP = 5000


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        (f"# one\n\na = {'[' * DEEP}{']' * DEEP}", "TOML: nested too deeply\n  from: run.toml, line 3"),
        (f"a = 1\nb = {'{c = ' * DEEP}1{'}' * DEEP}", "TOML: nested too deeply\n  from: run.toml, line 2"),
        (f"a = 1\n{'.'.join('a' * DEEP)} = 1", "TOML: nested too deeply\n  from: run.toml, line 2"),
        (f"a = 1\n[{'.'.join('b' * 900)}]\nc = 1", "more than 32 levels deep\n  from: run.toml, line 2"),
        (f"[model.overrides]\ndim = {'[' * 40}{']' * 40}", "32 levels deep\n  from: run.toml, line 2"),
        (
            f"[training]\n\nsteps = {'9' * 5000}",
            "TOML: a number has too many digits\n  from: run.toml, line 3",
        ),
        (f"[training]\nsteps = 0x{'f' * 5000}", "training.steps is an integer of more than 64 bits"),
        (f"[training]\nsteps = {2**63}", "training.steps is an integer of more than 64 bits"),
        (
            f"[model]\noverrides = {{a = [1, {-(2**63) - 1}]}}",
            "model.overrides.a is an integer of more than 64",
        ),
    ],
    ids=["lists", "tables", "key", "header", "override", "digits", "hexadecimal", "65 bits", "in a list"],
)
def test_a_file_out_of_bounds_is_rejected(problems, toml, message):
    (said,) = problems(toml)
    assert message in said
    assert len(said) < 300


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        # "too deeply" where Python's own reader gives up, which from 3.13 on is later than we do
        (["--model.overrides", '{"a": ' * DEEP + "1" + "}" * DEEP], "nested"),
        (["--model.overrides.dim", "[" * DEEP + "]" * DEEP], "nested"),
        (["--model.overrides", '{"a": ' * 100 + "1" + "}" * 100], "more than 32 levels deep"),
        ([f"--model.overrides.{'.'.join('a' * DEEP)}", "1"], "unknown flag --model.overrides.a.a"),
        (["--training.steps", "9" * 5000], "training.steps"),
        (["--training.steps", str(2**63)], "an integer of more than 64 bits\n  from: --training.steps"),
        (["--job.description", "\udcff"], "job.description: character 1 is not valid Unicode"),
        (["--model.overrides", '{"\\ud800": 1}'], "model.overrides: character 1 is not valid Unicode"),
        (["--model.overrides", '{"dim": 8, "dim": 16}'], "it has the key 'dim' twice"),
    ],
    ids=[
        "JSON",
        "key of a table",
        "33 levels",
        "long flag",
        "digits",
        "64 bits",
        "bytes",
        "surrogate",
        "key twice",
    ],
)
def test_flags_out_of_bounds_are_rejected(problems, flags, message):
    said = problems("", *flags)
    assert any(message in problem for problem in said), said
    assert all(len(problem) < 400 for problem in said)


def test_a_file_that_is_too_large_is_rejected(problems):
    (said,) = problems(f'[job]\ndescription = "{"x" * MAX_BYTES}"\n')
    assert said == "'run.toml' has more than 4 MiB, too much for a run file"


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "waits.toml")
    for path in ("/dev/zero", tmp_path / "waits.toml"):
        with pytest.raises(ConfigError, match=f"cannot read '{path}': it is not a regular file"):
            TomlFile.read(path)


def test_a_long_line_is_quoted_in_part(problems):
    (said,) = problems(f"[job]\ndescription = '{'x' * 1_000_000}")
    assert "line 2" in said
    assert len(said) < 400


def test_only_the_first_of_many_mistakes_are_described(problems):
    started = time.process_time()
    said = problems("[training]\n" + "".join(f"steps_{number} = 1\n" for number in range(20_000)))
    assert time.process_time() - started < 20
    assert len(said) == 51
    assert "from: run.toml, line 2\n" in said[0]
    assert said[-1] == "and 19950 more values are wrong"


def _seconds(lines: int) -> float:
    items = "".join(f'    "layers.{number}",\n' for number in range(lines))
    Path("run.toml").write_text(f"[plugins]\ndisable = [\n{items}]\n[training]\nsteps = 1\n")
    started = time.process_time()
    file = TomlFile.read("run.toml")
    assert file.origin(("training", "steps"))() == f"run.toml, line {lines + 5}"
    return time.process_time() - started


def test_a_long_list_takes_time_in_proportion():
    # 4,000 lines took 21 s when each further line had the list parsed anew.
    _seconds(100)
    assert _seconds(40_000) < 5


def test_many_keys_take_time_in_proportion(plugin_flags):
    Path("run.toml").write_text(
        "[parallelism.plan]\n" + "".join(f"k{number} = 'colwise'\n" for number in range(20_000))
    )
    started = time.process_time()
    loaded = load(["run.toml"], plugin_flags)
    assert time.process_time() - started < 20
    assert len(loaded.config.parallelism.plan) == 20_000


TRICKY = '''# [comment]
a = "# no comment ] \\" }"  # one
b = """
[not.a.header]
x = 1 "" two quotes, and at the end ""\\"""""
c = \'\'\'
"""\' \'\'\'\'\'
[t]  # [
d = [ # ]
  1, "]", \'[\',
  { e = [2] },
]
[[list]]
"f.g" = \'"\'
[last]'''


def test_statements_end_where_toml_says():
    # The expected numbers were counted by hand.
    lines = [line for line, text in statements(TRICKY) if text.strip() and not text.startswith("#")]
    assert lines == [2, 3, 6, 8, 9, 13, 14, 15]
    Path("run.toml").write_text(TRICKY)
    file = TomlFile.read("run.toml")
    assert file.tables["last"] == {}
    assert dict(file.lines) == {
        ("a",): 2, ("b",): 3, ("c",): 6, ("t",): 8, ("t", "d"): 9,
        ("list",): 13, ("list", "f.g"): 14, ("last",): 15,
    }  # fmt: skip
