"""``hekaton plugins NAME`` and ``hekaton plugins --available``."""

from __future__ import annotations

import importlib.metadata
import tomllib

import pytest

from hekaton.cli import main
from hekaton.errors import PluginError
from hekaton.plugins import Plugins, kind_name
from hekaton.plugins.available import available, read
from hekaton.plugins.packages import NAMES

CODE = """
    HEKATON_API = ">=1,<2"

    class Settings(SectionModel):
        largest: int = 30
        \"\"\"The largest number.\"\"\"

    @hookimpl
    def hekaton_datasets():
        return [Dataset("sums", build=Ref("sums_dist:build"), summary="lines of sums")]

    @hookimpl
    def hekaton_sections():
        return [Section("sums", schema=Ref("sums_dist:Settings"), summary="how many")]

    def build(section, path):
        pass
"""


def test_a_contribution_is_shown_with_all_that_belongs_to_it(install, capsys):
    install("sums-dist", "from hekaton.config import SectionModel\n" + _dedented(CODE), version="0.3")
    assert main(["plugins", "sums"]) == 0
    printed = capsys.readouterr().out
    shown, _, rest = printed.partition("\n\n")
    lines = [line.split(None, 1) for line in shown.splitlines()]
    assert lines[0] == ["dataset", "sums"]
    assert ["plugin", "sums_dist"] in lines
    assert ["documentation", "docs/contracts/dataset.md"] in lines
    (source,) = [line[1] for line in lines if line[0] == "source"]
    path, _, number = source.rpartition(":")
    with open(path, encoding="utf-8") as stream:
        assert stream.read().splitlines()[int(number) - 1].startswith("def build(")
    run = rest.partition("\n\nsection sums")[0]
    assert tomllib.loads(run) == {"training": {"dataset": "sums"}, "sums": {"largest": 30}}
    assert "# The largest number." in run


def _dedented(code: str) -> str:
    import textwrap

    return textwrap.dedent(code)


def test_sources_that_python_cannot_read_are_named_with_the_reason(install, site, capsys):
    code = (
        _dedented(CODE)
        .replace("sums_dist:build", "sums_model:build")
        .replace("sums_dist:Set", "sums_set:Set")
    )
    install("sums-dist", "from hekaton.config import SectionModel\n" + code)
    (site / "sums_model.py").write_text("x = 1\ndef (\n")
    (site / "sums_set.py").write_bytes(b"x = '\xff'\n")
    assert main(["plugins", "sums"]) == 0
    printed = capsys.readouterr().out
    assert f"{site / 'sums_model.py'} (SyntaxError: invalid syntax (sums_model.py, line 2))" in printed
    assert f"{site / 'sums_set.py'} (SyntaxError: " in printed
    assert "# cannot import 'sums_set:Settings': SyntaxError: " in printed


def test_a_plugin_is_shown_by_its_name_and_by_its_distributions(capsys):
    assert main(["plugins", "builtin"]) == 0
    by_name = capsys.readouterr().out
    assert main(["plugins", "hekaton"]) == 0
    assert capsys.readouterr().out == by_name
    assert by_name.startswith("plugin builtin\n")
    assert "\noptimizer AdamW\n" in by_name


def test_an_unknown_name_is_an_error_with_the_nearest_and_where_all_are(capsys):
    assert main(["plugins", "AdmaW"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[:2] == [
        "error: no installed plugin or contribution is called 'AdmaW'",
        "  did you mean 'AdamW' or 'Adam'?",
    ]
    assert said[2].startswith("  'hekaton plugins' lists all ")
    assert main(["plugins", "nosuch"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize(("arguments", "message"), [
    (["--avaliable"], "unknown argument '--avaliable'"),
    (["AdamW", "Adam"], "unknown argument 'Adam'"),
    (["AdamW", "--json"], "do not go together"),
])  # fmt: skip
def test_unknown_arguments_are_refused(arguments, message, capsys):
    assert main(["plugins", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_the_reviewed_list_is_printed(capsys):
    assert main(["plugins", "--available"]) == 0
    printed = capsys.readouterr().out
    assert f"hekaton-llama3  installed, {importlib.metadata.version('hekaton-llama3')}\n" in printed
    assert "models: qwen3\n" in printed
    assert "licence BSD-3-Clause, tested with hekaton 0.1" in printed


def test_the_list_says_of_ours_what_they_contribute():
    plugins = Plugins.discover()
    listed = {one.package: one for one in available()}
    assert set(NAMES) <= set(listed)
    for info in plugins.infos:
        if info.distribution in NAMES:
            records = plugins.contributions(info)
            one = listed[info.distribution]
            assert sorted(one.kinds) == sorted({kind_name(type(record)) for record in records}), one.package
            models = [record.name for record in records if type(record).__name__ == "Model"]
            assert sorted(one.models) == sorted(models), one.package
            assert one.summary == importlib.metadata.metadata(one.package)["Summary"]
            assert one.licence == importlib.metadata.metadata(one.package)["License-Expression"]


ENTRY = """
[[plugins]]
name = "mine"
package = "hekaton-mine"
summary = "one layer"
kinds = ["model"]
licence = "MIT"
tested = "0.1"
"""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (ENTRY.replace('licence = "MIT"\n', ""), "entry 1 (hekaton-mine): licence: Field required"),
        (
            ENTRY.replace("licence", "license"),
            "entry 1 (hekaton-mine): licence: Field required; license: Extra",
        ),
        (ENTRY.replace('["model"]', '"model"'), "entry 1 (hekaton-mine): kinds: "),
        (ENTRY.replace('["model"]', "[]"), "entry 1 (hekaton-mine): kinds: "),
        (ENTRY.replace('["model"]', '["modle"]'), "there is no kind 'modle'\n  did you mean 'model'"),
        (ENTRY.replace('tested = "0.1"', "tested = 0.1"), "entry 1 (hekaton-mine): tested: "),
        (ENTRY.replace('package = "hekaton-mine"\n', ""), "entry 1: package: Field required"),
        (ENTRY + ENTRY.replace("hekaton-mine", "Hekaton_Mine"), "plugins.toml lists hekaton-mine twice"),
        (ENTRY + "plugins", "plugins.toml is no TOML in UTF-8: "),
        (ENTRY + "# \udcff", "plugins.toml is no TOML in UTF-8: "),
        ("plugins = 3", "plugins.toml: plugins is no list"),
        ("", "plugins.toml: plugins is no list"),
        (ENTRY + ENTRY.replace("plugins", "plugin"), "plugins.toml: there is no key 'plugin'"),
        (ENTRY.replace('"hekaton-mine"', '"--index-url x"'), "package: String should match pattern"),
        (ENTRY.replace('"0.1"', '"new"'), "entry 1 (hekaton-mine): tested: String should match pattern"),
        (ENTRY.replace('"one layer"', '"one\\nlayer"'), "summary: Value error, is no line of text"),
        (ENTRY.replace('"mine"', '""'), "name: Value error, is no line of text"),
        ("plugins = [3]", "plugins.toml, entry 1: "),
    ],
)
def test_what_is_wrong_with_an_entry_of_the_list_is_named(content, said):
    assert [one.package for one in read(ENTRY.encode())] == ["hekaton-mine"]
    with pytest.raises(PluginError) as error:
        read(content.encode(errors="surrogateescape"))
    assert said in str(error.value)
