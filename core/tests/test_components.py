"""What a plugin builds is compared with the contract of its kind when a run builds it."""

import sys
import types

import numpy as np
import pytest
import torch
from torch import nn

from hekaton import contributions as c
from hekaton import optim
from hekaton.components import _wrong, build_component, check_shared_out, wrong_value
from hekaton.config import load
from hekaton.config.sections import OptimizerSection
from hekaton.data import TextTokenizer
from hekaton.errors import PluginError
from hekaton.evaluating import Evaluations
from hekaton.metrics import with_own
from hekaton.parameters import group_names, parameter_groups, roles, trained_names
from hekaton.plugins import Plugins
from hekaton.rules import check

KINDS = {
    "converters": (c.Converter, "convert"),
    "datasets": (c.Dataset, "fingerprint, __len__, fetch"),
    "tokenizers": (c.Tokenizer, "vocab_size, bos_id, eos_id, fingerprint, encode_batch, decode"),
    "objectives": (c.Objective, "weights, inputs, targets, prepare, count, loss"),
    "loggers": (c.Logger, "log, close"),
}
OTHERS = {
    "optimizers": (c.Optimizer, "not an optimizer or a list of them"),
    "lr_schedules": (c.LRSchedule, "which cannot be called"),
    "dispatchers": (c.Dispatcher, "which cannot be called"),
    "parallel_styles": (c.ParallelStyle, "not a torch.distributed.tensor.parallel.ParallelStyle"),
}
WRONG = {
    **{hook: (kind, f"which has no {members}") for hook, (kind, members) in KINDS.items()},
    **OTHERS,
}


@pytest.mark.parametrize("hook", WRONG)
def test_what_is_not_of_its_kind_is_rejected_with_its_plugin(hook, monkeypatch):
    kind, wrong = WRONG[hook]
    code = types.ModuleType("wrong_code")
    code.build = lambda section, *arguments: object()
    monkeypatch.setitem(sys.modules, "wrong_code", code)

    def contribute():
        return [kind("mine", build=c.Ref("wrong_code:build"), summary="wrong")]

    contribute.__name__ = f"hekaton_{hook}"
    plugin = types.ModuleType("wrong")
    setattr(plugin, contribute.__name__, c.hookimpl(contribute))
    plugins = Plugins()
    plugins.register(plugin, name="wrong")
    plugins.check()
    with pytest.raises(PluginError) as caught:
        build_component(load([], []).config, plugins, kind, "mine")
    assert "'mine' of plugin 'wrong' (unpackaged): " in str(caught.value)
    assert f"build returned object, {wrong}\n  'wrong_code:build' builds it" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({}, ""),
        ({"bos_id": None, "vocab_size": np.int64(300)}, ""),
        ({"vocab_size": "300"}, "whose vocab_size is '300', not a whole number"),
        ({"vocab_size": 0}, "whose vocab_size is 0, not above 0"),
        ({"eos_id": True}, "whose eos_id is True, not a whole number"),
        ({"fingerprint": None}, "whose fingerprint is None, not a text"),
    ],
)
def test_texts_and_numbers_of_what_is_built_are_what_its_kind_says(changed, wrong):
    tokenizer = types.SimpleNamespace(
        **{"vocab_size": 300, "bos_id": 0, "eos_id": 1, "fingerprint": "f", **changed}
    )
    assert wrong_value(TextTokenizer, tokenizer) == wrong
    tokenizer.encode_batch = tokenizer.decode = print
    assert _wrong(c.Tokenizer, tokenizer) == wrong


def groups():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    settings = OptimizerSection(implementation="for-loop")
    names = group_names(trained_names(model), settings, what="the model")
    return parameter_groups(model, names, roles(model, vocab_size=None), settings), settings


def test_an_optimizer_that_leaves_parameters_out_is_rejected():
    given, settings = groups()
    first = torch.optim.SGD([given[0].parameters[0].parameter], lr=0.1)
    with pytest.raises(PluginError, match=r"'mine' must .* '0\.bias' is in 0 groups, and 2 more"):
        check_shared_out([first], given, name="mine")
    whole = optim.adamw(None, settings, given)
    check_shared_out([whole], given, name="mine")
    with pytest.raises(PluginError, match=r"'0\.weight' is in 2 groups"):
        check_shared_out([whole, first], given, name="mine")
    with pytest.raises(PluginError, match="has a parameter that it was not given"):
        check_shared_out([whole, torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)], given, name="mine")


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"loss": 1.0}, "gives a metric 'loss', which every run has"),
        ({"experts": torch.zeros(())}, "gives 'experts' as Tensor, not as a number"),
        ([1.0], "gives list, not a mapping of names to numbers"),
    ],
)
def test_metrics_of_a_model_replace_none_of_the_runs(own, message):
    with pytest.raises(PluginError, match=message):
        with_own({"loss": 3.0}, own)
    assert with_own({"loss": 3.0}, {"experts": 2}) == {"loss": 3.0, "experts": 2}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", r"check 'mine' of plugin 'rules_of_mine' .* returned NoneType"),
        ("yield 3", r"check 'mine' of plugin 'rules_of_mine' .* yielded int"),
        (
            "yield run.config.modle.name",
            r"check 'mine' of plugin 'rules_of_mine' .* failed: AttributeError: .*'modle'"
            r"\n  from: .*rules_of_mine\.py, line 5"
            "\n  leave the plugin out: HEKATON_DISABLE=rules_of_mine",
        ),
    ],
)
def test_a_rule_that_yields_neither_violations_nor_notices_is_named(body, message, tmp_path):
    file = tmp_path / "rules_of_mine.py"
    file.write_text(
        "from hekaton.contributions import Check, Ref, hookimpl\n\n\ndef rule(run):\n    " + body + "\n\n\n"
        "@hookimpl\ndef hekaton_checks():\n"
        "    return [Check('mine', rule=Ref('rules_of_mine:rule'), summary='wrong')]\n"
    )
    loaded = load([], ["--plugins.load", str(file)])
    try:
        with pytest.raises(PluginError, match=message):
            check(loaded, world_size=1, device_type="cpu", here=False)
    finally:
        del sys.modules["rules_of_mine"]


def wrong_signature(section):
    """Lacks what a dataset is built of."""


def fails(section, path):
    raise OSError("no data")


def test_a_builder_that_cannot_be_called_so_or_fails_is_said_with_its_plugin(monkeypatch):
    plugins = Plugins()
    names = {"wrong_signature": wrong_signature, "fails": fails}
    records = [c.Dataset(name, build=c.Ref(f"{__name__}:{name}")) for name in names]
    plugin = types.ModuleType("wrong")
    plugin.hekaton_datasets = c.hookimpl(lambda: records)
    plugin.hekaton_datasets.__name__ = "hekaton_datasets"
    plugins.register(plugin, name="wrong")
    config = load([], []).config
    with pytest.raises(PluginError) as refused:
        build_component(config, plugins, c.Dataset, "wrong_signature", None)
    assert str(refused.value).startswith("dataset 'wrong_signature' of plugin 'wrong' (unpackaged): ")
    assert "takes 1 positional argument but 2 were given" in str(refused.value)
    assert "docs/contracts/dataset.md" in str(refused.value)
    with pytest.raises(OSError, match="no data") as failed:
        build_component(config, plugins, c.Dataset, "fails", None)
    assert failed.value.__notes__ == ["raised where dataset 'fails' of plugin 'wrong' (unpackaged) was built"]


def test_marks_of_a_tokenizer_are_ids():
    marks = types.SimpleNamespace(
        vocab_size=3, bos_id=2, eos_id=3, fingerprint="marks", encode_batch=None, decode=None
    )
    assert _wrong(c.Tokenizer, marks) == "whose eos_id is 3, and vocab_size 3"
    marks.eos_id = None
    assert not _wrong(c.Tokenizer, marks)


def test_evaluations_give_numbers_by_name_and_each_name_once():
    def judge(found):
        return type("Judge", (), {"due": lambda self, step: True, "__call__": lambda self: found})()

    evaluations = Evaluations({"one": judge({"accuracy": 1}), "other": judge({"f1": 0.5})})
    assert evaluations.due(1)
    assert list(evaluations().values()) == [1.0, 0.5]
    for found, message in (
        (None, "evaluation 'other' gives NoneType, not numbers by name"),
        ({"accuracy": 2}, "evaluations 'one' and 'other' both give 'accuracy'"),
    ):
        evaluations = Evaluations({"one": judge({"accuracy": 1}), "other": judge(found)})
        evaluations.due(1)
        with pytest.raises(PluginError, match=message):
            evaluations()
