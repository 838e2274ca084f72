"""Which plugins take part in a run, and what is said of those that do not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hekaton.contributions import Model
from hekaton.errors import HekatonError, PluginError, UnknownName
from hekaton.plugins import PluginInfo, Plugins, discovery

TINY = """
    @hookimpl
    def hekaton_models():
        return [Model("tiny", spec=Ref("tiny_model:spec"), summary="two layers")]
"""


def info_of(plugins: Plugins, name: str) -> PluginInfo:
    (info,) = [info for info in plugins.infos if info.name == name]
    return info


def test_a_distribution_is_found_and_its_contributions_know_where_they_come_from(install):
    install("tiny-dist", TINY, entry="tiny")
    plugins = Plugins.discover()
    plugins.check()
    contributed = plugins.all(Model)["tiny"]
    assert contributed.record.summary == "two layers"
    assert contributed.plugin == PluginInfo("tiny", "tiny_dist", "tiny-dist", "1.2")
    assert str(contributed.plugin) == "plugin 'tiny' (distribution tiny-dist 1.2)"
    assert plugins.contributions(contributed.plugin) == [contributed.record]


def test_the_cores_own_plugin_comes_first_and_names_the_core():
    plugins = Plugins.discover()
    assert plugins.infos[0].name == "builtin"
    assert plugins.infos[0].distribution == "hekaton"
    assert plugins.infos[0].module == "hekaton.plugins.builtin"


def test_plugins_come_in_the_same_order_whatever_order_they_are_found_in(install, monkeypatch):
    import importlib.metadata as metadata

    install("zebra", TINY.replace('"tiny"', '"zebra"'))
    install("aardvark", TINY.replace('"tiny"', '"aardvark"'))
    distributions = metadata.distributions
    forwards = [info.name for info in Plugins.discover().infos]
    monkeypatch.setattr(metadata, "distributions", lambda *, path: reversed(list(distributions(path=path))))
    discovery._in_folder.cache_clear()
    assert [info.name for info in Plugins.discover().infos] == forwards
    assert forwards.index("aardvark") < forwards.index("zebra")


def test_a_second_copy_of_a_distribution_on_the_path_is_the_same_plugin(install, site, tmp_path, monkeypatch):
    install("tiny-dist", TINY)
    older = tmp_path / "older"
    (older / "Tiny.Dist-1.1.dist-info").mkdir(parents=True)
    (older / "Tiny.Dist-1.1.dist-info" / "METADATA").write_text("Name: Tiny.Dist\nVersion: 1.1\n")
    (older / "Tiny.Dist-1.1.dist-info" / "entry_points.txt").write_text("[hekaton]\ntiny_dist = tiny_dist\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(older)])
    plugins = Plugins.discover()
    plugins.check()
    assert info_of(plugins, "tiny_dist").version == "1.2"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import a_library_that_is_absent",
            "ModuleNotFoundError: No module named 'a_library_that_is_absent'",
        ),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('no license')", "SystemExit: no license"),
        ("def broken(:", "SyntaxError: invalid syntax"),
    ],
)
def test_a_plugin_that_fails_to_import_is_listed_and_leaves_other_runs_alone(install, code, reason):
    install("broken-dist", "")
    install("tiny-dist", TINY)
    broken = Path(sys.path[0]) / "broken_dist.py"
    broken.write_text(code)
    plugins = Plugins.discover()
    plugins.check()
    assert plugins.get(Model, "tiny").name == "tiny"
    assert info_of(plugins, "broken_dist").status == "broken"
    assert info_of(plugins, "broken_dist").reason.startswith(reason)


def test_a_run_that_names_what_a_broken_plugin_may_contribute_is_named(install):
    install("broken-dist", "import a_library_that_is_absent")
    install("tiny-dist", TINY)
    with pytest.raises(UnknownName) as caught:
        Plugins.discover().get(Model, "tinny")
    message = str(caught.value)
    assert message.startswith("unknown model 'tinny'\n  did you mean 'tiny'?")
    assert "not loaded, and may contribute it:" in message
    assert (
        "plugin 'broken_dist' (distribution broken-dist 1.2): broken: "
        "ModuleNotFoundError: No module named 'a_library_that_is_absent'" in message
    )


@pytest.mark.parametrize("how", ["variable", "setting"])
def test_a_disabled_plugin_is_not_imported(install, monkeypatch, how):
    install("tiny-dist", "raise AssertionError('imported')", entry="tiny")
    if how == "variable":
        monkeypatch.setenv("HEKATON_DISABLE", "builtin, tiny")
        plugins = Plugins.discover()
    else:
        plugins = Plugins.discover(disable=["tiny"])
    plugins.check()
    info = info_of(plugins, "tiny")
    assert (info.status, info.reason) == ("disabled", "disabled by the user")
    assert "tiny_dist" not in sys.modules
    with pytest.raises(UnknownName, match=r"plugin 'tiny' .*: disabled"):
        plugins.get(Model, "tiny")


def test_disabling_a_name_that_no_plugin_has_is_an_error(install, monkeypatch):
    install("tiny-dist", TINY, entry="tiny")
    monkeypatch.setenv("HEKATON_DISABLE", "tinny")
    with pytest.raises(PluginError) as caught:
        Plugins.discover().check()
    assert caught.value.message == "cannot disable 'tinny': no plugin has that name"
    assert caught.value.origin == "environment variable HEKATON_DISABLE"
    assert caught.value.hint.startswith("did you mean 'tiny'?")


@pytest.mark.parametrize("stated", [">=2", "<1", "==0.9.*"])
def test_a_plugin_for_another_api_version_is_listed_as_incompatible(install, stated):
    install("old-dist", f"HEKATON_API = '{stated}'\n" + "raise_if_asked = True", entry="old")
    plugins = Plugins.discover()
    plugins.check()
    info = info_of(plugins, "old")
    assert info.status == "incompatible"
    assert info.reason == f"built for plugin API {stated}, this hekaton has 1.0"
    with pytest.raises(UnknownName, match="incompatible: built for plugin API"):
        plugins.get(Model, "anything")


@pytest.mark.parametrize("stated", ["'one'", "'>=1,<'", "['>=1']"])
def test_a_malformed_api_range_is_the_plugins_fault_not_the_runs(install, stated):
    install("odd-dist", f"HEKATON_API = {stated}", entry="odd")
    plugins = Plugins.discover()
    plugins.check()
    assert info_of(plugins, "odd").status == "broken"
    assert info_of(plugins, "odd").reason.startswith("HEKATON_API = ")
    assert info_of(plugins, "odd").reason.endswith("is not a version range such as '>=1,<2'")


def test_an_unpackaged_module_is_loaded_by_name(site):
    (site / "my_plugin.py").write_text(
        "from hekaton.contributions import Model, Ref, hookimpl\n"
        "@hookimpl\ndef hekaton_models():\n    return [Model('mine', spec=Ref('my_plugin:spec'))]\n"
    )
    plugins = Plugins.discover(load=["my_plugin", "my_plugin"])
    plugins.check()
    assert str(plugins.all(Model)["mine"].plugin) == "plugin 'my_plugin' (unpackaged)"


def test_an_unpackaged_module_is_loaded_by_path_and_its_refs_find_it(site, tmp_path, monkeypatch):
    (tmp_path / "by_path.py").write_text(
        "from hekaton.contributions import Model, Ref, hookimpl\nspec = 'the spec'\n"
        "@hookimpl\ndef hekaton_models():\n    return [Model('mine', spec=Ref('by_path:spec'))]\n"
    )
    monkeypatch.chdir(tmp_path)
    for target in ["by_path.py", str(tmp_path / "by_path.py")]:
        plugins = Plugins.discover(load=[target])
        plugins.check()
        assert plugins.get(Model, "mine").spec.load() == "the spec"
    both = Plugins.discover(load=["by_path.py", str(tmp_path / "by_path.py")])
    both.check()
    assert [info.name for info in both.infos].count("by_path") == 1


def test_an_unpackaged_package_is_loaded_by_the_path_of_its_init(tmp_path, site):
    (tmp_path / "src" / "whole").mkdir(parents=True)
    (tmp_path / "src" / "whole" / "heavy.py").write_text("spec = 'the spec'")
    path = tmp_path / "src" / "whole" / "__init__.py"
    path.write_text(
        "from hekaton.contributions import Model, Ref, hookimpl\n"
        "@hookimpl\ndef hekaton_models():\n    return [Model('mine', spec=Ref('whole.heavy:spec'))]\n"
    )
    plugins = Plugins.discover(load=[str(path)])
    plugins.check()
    assert plugins.get(Model, "mine").spec.load() == "the spec"
    assert info_of(plugins, "whole").status == "ok"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("absent_module", "cannot load plugin 'absent_module': ModuleNotFoundError: No module named"),
        ("absent/plugin.py", "cannot load plugin 'absent/plugin.py': there is no file 'absent/plugin.py'"),
        ("json.py", "cannot load plugin 'json.py': 'json.py' would hide the module 'json'"),
        ("raises.py", "cannot load plugin 'raises.py': ValueError: no good"),
        ("loop.py", "cannot load plugin 'loop.py': there is no file 'loop.py'"),
    ],
)
def test_what_the_user_asked_to_load_is_never_skipped(site, monkeypatch, target, message):
    monkeypatch.chdir(site)
    (site / "json.py").write_text("")
    (site / "loop.py").symlink_to("loop.py")
    (site / "raises.py").write_text("raise ValueError('no good')")
    with pytest.raises(PluginError) as caught:
        Plugins.discover(load=[target, target]).check()
    assert caught.value.message.startswith(message)
    assert caught.value.origin == "plugins.load"
    assert "raises" not in sys.modules


def test_loading_the_module_of_an_installed_plugin_changes_nothing(install):
    install("tiny-dist", TINY, entry="tiny")
    plugins = Plugins.discover(load=["tiny_dist"])
    plugins.check()
    assert plugins.all(Model)["tiny"].plugin.name == "tiny"


def test_there_is_no_global_manager(site):
    class Mine:
        from hekaton.contributions import hookimpl

        @hookimpl
        def hekaton_models(self):
            from hekaton.contributions import Ref

            return [Model("mine", spec=Ref("a:b"))]

    one, other = Plugins(), Plugins()
    one.register(Mine(), name="mine")
    assert list(one.all(Model)) == ["mine"]
    assert list(other.all(Model)) == []
    assert other.infos == []


def test_all_problems_are_raised_together(install):
    install("one-dist", "@hookimpl\ndef hekaton_modles(): return []")
    install("two-dist", "@hookimpl\ndef hekaton_models(): return None")
    with pytest.raises(HekatonError) as caught:
        Plugins.discover(disable=["absent"]).check()
    message = str(caught.value)
    for part in ["'hekaton_modles'", "hekaton_models must return a list", "cannot disable 'absent'"]:
        assert part in message
