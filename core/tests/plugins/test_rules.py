"""What a plugin must not do, and what it is told."""

from __future__ import annotations

import types

import pytest

from hekaton.contributions import Converter, Model, Ref, Section, hookimpl
from hekaton.errors import PluginError, UnknownName
from hekaton.plugins import Plugins

MODEL = """
    @hookimpl
    def hekaton_models():
        return [Model("tiny", spec=Ref("tiny_model:spec"))]
"""


def problem_of(plugins: Plugins) -> PluginError:
    with pytest.raises(PluginError) as caught:
        plugins.check()
    return caught.value


def registered(**hooks: object) -> Plugins:
    """A bare manager with one plugin, a module named ``mine`` that has ``hooks``."""
    module = types.ModuleType("mine")
    vars(module).update(hooks)
    plugins = Plugins()
    plugins.register(module, name="mine")
    return plugins


def test_a_clash_names_both_plugins_both_distributions_and_the_cure(install):
    install("first-dist", MODEL, entry="first")
    install("second-dist", MODEL, entry="second")
    problem = problem_of(Plugins.discover())
    assert problem.message == (
        "two plugins contribute the model 'tiny': plugin 'first' (distribution first-dist 1.2) "
        "and plugin 'second' (distribution second-dist 1.2)"
    )
    assert problem.hint == (
        "leave one out: HEKATON_DISABLE=second or HEKATON_DISABLE=first, "
        'or [plugins] disable = ["second"] in the TOML file'
    )


@pytest.mark.parametrize("loser", ["first", "second"])
def test_the_cure_of_a_clash_works(install, monkeypatch, loser):
    install("first-dist", MODEL, entry="first")
    install("second-dist", MODEL, entry="second")
    monkeypatch.setenv("HEKATON_DISABLE", loser)
    plugins = Plugins.discover()
    plugins.check()
    assert plugins.all(Model)["tiny"].plugin.name == {"first": "second", "second": "first"}[loser]


def test_a_clash_leaves_nothing_of_the_plugin_that_yields(install):
    install("first-dist", MODEL, entry="first")
    install("second-dist", MODEL.replace("[", "[Model('other', spec=Ref('a:b')), "), entry="second")
    plugins = Plugins.discover()
    assert plugins.all(Model)["tiny"].plugin.name == "first"
    assert "other" not in plugins.all(Model)


def test_a_clash_with_the_core_is_refused_too(install):
    install(
        "aardvark",
        "@hookimpl\ndef hekaton_tokenizers(): return [Tokenizer('byte', build=Ref('a:b'))]",
    )
    plugins = Plugins.discover()
    assert "tokenizer 'byte': plugin 'builtin' (distribution hekaton " in problem_of(plugins).message
    assert "plugin 'aardvark' (distribution aardvark 1.2)" in problem_of(plugins).message


def test_the_same_name_in_two_kinds_is_no_clash(install):
    install(
        "both",
        MODEL + "\n    @hookimpl\n    def hekaton_converters():\n"
        "        return [Converter('tiny', build=Ref('a:b'))]\n",
    )
    plugins = Plugins.discover()
    plugins.check()
    assert plugins.get(Converter, "tiny").name == plugins.get(Model, "tiny").name == "tiny"


def test_one_plugin_that_contributes_a_name_twice():
    record = Model("twin", spec=Ref("a:b"))
    plugins = registered(hekaton_models=hookimpl(lambda: [record, record]))
    assert problem_of(plugins).message == "plugin 'mine' (unpackaged) contributes the model 'twin' 2 times"


def test_two_distributions_with_one_entry_name(install):
    install("first-dist", MODEL, entry="tiny")
    install("second-dist", MODEL.replace('"tiny"', '"other"'), entry="tiny")
    problem = problem_of(Plugins.discover())
    assert problem.message == (
        "plugin 'tiny' (distribution first-dist 1.2) and plugin 'tiny' (distribution second-dist 1.2) "
        "have the same name"
    )
    assert problem.hint.startswith("uninstall one of them, or leave it out: HEKATON_DISABLE=tiny")


def test_two_distributions_with_one_module(install, site):
    install("first-dist", MODEL, entry="first")
    install("second-dist", "", entry="second")
    (site / "second_dist-1.2.dist-info" / "entry_points.txt").write_text("[hekaton]\nsecond = first_dist\n")
    problem = problem_of(Plugins.discover())
    assert problem.message.endswith("are the same module")
    assert "first-dist" in problem.message
    assert "second-dist" in problem.message


def test_a_misspelt_hook_is_an_error_that_names_the_nearest():
    problem = problem_of(registered(hekaton_convertors=hookimpl(lambda: [])))
    assert problem.message == "plugin 'mine' (unpackaged) implements unknown hook 'hekaton_convertors'"
    assert problem.hint.startswith("did you mean 'hekaton_converters'?")
    assert 'leave it out: HEKATON_DISABLE=mine, or [plugins] disable = ["mine"]' in problem.hint


def test_a_forgotten_hookimpl_is_an_error():
    problem = problem_of(registered(hekaton_models=lambda: []))
    assert problem.message == "plugin 'mine' (unpackaged): 'hekaton_models' is not marked as a hook"
    assert problem.hint.startswith("decorate it with @hookimpl")


def test_a_module_without_a_hook_is_no_plugin():
    problem = problem_of(registered(something=1))
    assert problem.message == "plugin 'mine' (unpackaged) implements no hook"


def test_a_distribution_without_a_hook_is_refused_too(install):
    install("empty-dist", "")
    message = "plugin 'empty_dist' (distribution empty-dist 1.2) implements no hook"
    assert problem_of(Plugins.discover()).message == message


def test_a_hook_that_asks_for_arguments_that_it_does_not_get():
    problem = problem_of(registered(hekaton_models=hookimpl(lambda config: [])))
    assert problem.message.startswith("plugin 'mine' (unpackaged): ")
    assert "hekaton_models" in problem.message
    assert "'config'" in problem.message


@pytest.mark.parametrize("flavor", ["wrapper", "hookwrapper"])
@pytest.mark.parametrize("hook", ["hekaton_models", "hekaton_run_ended"])
def test_wrappers_are_refused(flavor, hook):
    def wrap():
        return (yield)

    plugins = registered(**{hook: hookimpl(**{flavor: True})(wrap)})
    assert problem_of(plugins).message == (
        f"plugin 'mine' (unpackaged): '{hook}' must return its value, not wrap other plugins"
    )


def test_a_hook_must_return_a_list():
    problem = problem_of(registered(hekaton_models=hookimpl(lambda: Model("tiny", spec=Ref("a:b")))))
    assert problem.message == "plugin 'mine' (unpackaged): hekaton_models must return a list, not Model"


def test_a_hook_must_return_its_own_kind_of_record():
    problem = problem_of(registered(hekaton_models=hookimpl(lambda: [Converter("c", build=Ref("a:b"))])))
    assert problem.message.startswith(
        "plugin 'mine' (unpackaged): hekaton_models must return Model records, not Converter: Converter("
    )


def test_what_a_record_names_must_be_a_ref():
    problem = problem_of(registered(hekaton_models=hookimpl(lambda: [Model("tiny", spec="a:b")])))
    assert problem.message == ("plugin 'mine' (unpackaged): spec of the model 'tiny' must be a Ref, not str")
    assert problem.hint.startswith("write spec=Ref('module:attribute')")


@pytest.mark.parametrize("name", ["", None])
def test_a_record_must_have_a_name(name):
    problem = problem_of(registered(hekaton_models=hookimpl(lambda: [Model(name, spec=Ref("a:b"))])))
    assert "hekaton_models returned a record whose name is not a word" in problem.message


def test_a_hook_that_raises_makes_the_plugin_broken_and_leaves_nothing_of_it():
    plugins = registered(
        hekaton_models=hookimpl(lambda: [Model("tiny", spec=Ref("a:b"))]),
        hekaton_converters=hookimpl(lambda: [Converter("c", build=Ref("not a reference"))]),
    )
    plugins.check()
    assert plugins.infos[0].status == "broken"
    assert plugins.infos[0].reason == (
        "hekaton_converters raised Ref('not a reference') is not of the form 'module:attribute'"
    )
    with pytest.raises(UnknownName, match=r"plugin 'mine' .*: broken: hekaton_converters raised"):
        plugins.get(Model, "tiny")


def test_no_lifecycle_hook_is_called_on_a_refused_plugin():
    heard = []
    record = Model("tiny", spec=Ref("a:b"))
    plugins = registered(hekaton_models=hookimpl(lambda: [record]))
    for name, models in {"wrong": None, "clashing": [record]}.items():
        module = types.ModuleType(name)
        module.hekaton_models = hookimpl(lambda models=models: models)
        module.hekaton_step_ended = hookimpl(lambda step: heard.append(step))
        plugins.register(module, name=name)
    assert len(plugins.problems) == 2
    plugins.call("hekaton_step_ended", step=1, metrics={}, control=None)
    assert heard == []


def test_lifecycle_hooks_are_called_on_every_plugin_with_what_they_ask_for(tmp_path):
    heard = []
    plugins = Plugins()
    one, two = types.ModuleType("one"), types.ModuleType("two")
    one.hekaton_step_ended = hookimpl(lambda step, metrics: heard.append((step, metrics["loss"])))
    two.hekaton_step_ended = hookimpl(lambda step: heard.append(step))
    two.hekaton_run_started = hookimpl(lambda config, step: heard.append(("started", config, step)))
    two.hekaton_checkpoint_saved = hookimpl(lambda step, folder: heard.append(folder))
    two.hekaton_run_ended = hookimpl(lambda step, error: heard.append(error))
    plugins.register(one, name="one")
    plugins.register(two, name="two")
    plugins.check()

    plugins.call("hekaton_step_ended", step=3, metrics={"loss": 2.5}, control=None)
    assert sorted(heard, key=str) == [(3, 2.5), 3]
    heard.clear()
    plugins.call("hekaton_run_started", config="the configuration", step=0, control=None)
    plugins.call("hekaton_checkpoint_saved", step=3, folder=tmp_path)
    error = ValueError("stopped")
    plugins.call("hekaton_run_ended", step=3, error=error)
    assert heard == [("started", "the configuration", 0), tmp_path, error]
    assert plugins.lifecycle_hooks(plugins.infos[1]) == [
        "hekaton_checkpoint_saved",
        "hekaton_run_ended",
        "hekaton_run_started",
        "hekaton_step_ended",
    ]


def test_the_section_of_a_component():
    schema = Ref("a:b")
    plugins = registered(
        hekaton_sections=hookimpl(
            lambda: [Section("same.name", schema=schema), Section("other", schema=schema)]
        ),
        hekaton_converters=hookimpl(
            lambda: [
                Converter("same.name", build=schema),
                Converter("named", build=schema, section="other"),
                Converter("plain", build=schema),
                Converter("wrong", build=schema, section="othr"),
            ]
        ),
    )
    plugins.check()
    sections = [plugins.section_of(plugins.get(Converter, name)) for name in ("same.name", "named", "plain")]
    assert sections == ["same.name", "other", ""]
    with pytest.raises(UnknownName, match="unknown section 'othr'\n  did you mean 'other'"):
        plugins.section_of(plugins.get(Converter, "wrong"))


@pytest.mark.parametrize("name", ["a..b", "a b", "_a", "a._b", "1a", "ä"])
def test_a_section_has_a_name_that_toml_and_flags_have(name):
    @hookimpl
    def hekaton_sections():
        return [Section(name, schema=Ref("a:b"))]

    problem = problem_of(registered(hekaton_sections=hekaton_sections))
    assert problem.message == f"plugin 'mine' (unpackaged): '{name}' cannot be the name of a section"


@pytest.mark.parametrize(
    ("needs", "wrong"),
    [
        ("torch", "are str, not a tuple of requirements"),
        (("no requirement",), "have 'no requirement', which is no requirement"),
        ((None,), "have None, which is no requirement"),
    ],
)
def test_needs_are_requirements(needs, wrong):
    @hookimpl
    def hekaton_models():
        return [Model("tiny", spec=Ref("a:b"), needs=needs)]

    problem = problem_of(registered(hekaton_models=hekaton_models))
    assert problem.message == f"plugin 'mine' (unpackaged): needs of the model 'tiny' {wrong}"


@pytest.mark.parametrize("where", ["{}", "@hookimpl\n    def hekaton_models():\n        {}"])
def test_what_a_plugin_raises_that_is_no_exception_breaks_it_alone(where, install):
    install("odd-dist", f"""
    class Skipped(BaseException):
        pass

    {where.format("raise Skipped('mine')")}
    """)  # fmt: skip
    (info,) = [info for info in Plugins.discover().infos if info.distribution == "odd-dist"]
    assert info.status == "broken"
    assert info.reason.endswith("Skipped: mine")


def test_what_a_plugin_prints_is_no_output_of_a_verb(install, capsys):
    install("loud-dist", """
    print("imported")

    @hookimpl
    def hekaton_models():
        print("called")
        return []
    """)  # fmt: skip
    Plugins.discover().check()
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.split() == ["imported", "called"]


def test_the_plugin_that_was_being_imported_when_one_interrupts_is_named(install, capsys):
    install("slow-dist", "raise KeyboardInterrupt", entry="slow")
    with pytest.raises(KeyboardInterrupt):
        Plugins.discover()
    assert capsys.readouterr().err == (
        "interrupted while plugin 'slow' (distribution slow-dist 1.2) was imported\n"
    )
