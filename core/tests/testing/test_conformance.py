"""The conformance kit finds what is wrong with a plugin or a model."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from hekaton.contributions import Converter, Model, Ref, Section, hookimpl
from hekaton.errors import ConfigError
from hekaton.init import Constant, Normal
from hekaton.parallel.plan import ParallelPlan
from hekaton.spec import TrainSpec
from hekaton.testing import check_model, check_plugin


@dataclass(frozen=True)
class Config:
    vocab_size: int = 11
    dim: int = 8
    sees: str = "past of the document"
    unused: bool = False


class Mean(nn.Module):
    """Adds to each token the mean over the tokens that it sees."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.sees = config.sees
        self.linear = nn.Linear(config.dim, config.dim)

    def forward(self, x, documents):
        seen = torch.ones(x.shape[1], x.shape[1]).expand(x.shape[0], -1, -1)
        if self.sees != "everything of the document":
            seen = seen.tril()
        if self.sees != "past of everything":
            seen = seen * (documents[:, :, None] == documents[:, None, :])
        if self.sees == "all but itself":
            seen = seen.tril(-1)
            return self.linear(seen @ x / seen.sum(-1, keepdim=True).clamp(min=1))
        return x + self.linear(seen @ x / seen.sum(-1, keepdim=True))


class Small(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList([Mean(config)])
        self.output = nn.Linear(config.dim, config.vocab_size)
        if config.unused:
            self.layers[0].spare = nn.Linear(config.dim, config.dim)

    def forward(self, tokens, positions, documents):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x, documents)
        return self.output(x[:, -1] if self.layers[0].sees == "last" else x)


def init(config):
    table = {
        "{embedding,output}.weight": Normal(1.0),
        "layers.*.linear.{weight,bias}": Normal(0.5),
        "output.bias": Constant(0.0),
    }
    return table | ({"layers.*.spare.{weight,bias}": Normal(1.0)} if config.unused else {})


SPEC = TrainSpec(
    name="small",
    model=Small,
    flavors={"tiny": Config(), "large": Config(dim=64)},
    plan=lambda config: ParallelPlan(block="layers.*"),
    init=init,
)


def test_a_sound_model_passes():
    check_model(SPEC)
    check_model(SPEC, flavor="large")


@dataclass
class Thawed:
    vocab_size: int = 11
    dim: int = 8
    sees: str = ""
    unused: bool = False


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (replace(SPEC, flavors={}), "small has no flavors"),
        (replace(SPEC, flavors={"tiny": Thawed()}), "small tiny: the flavor must be a frozen dataclass"),
        (replace(SPEC, defaults={"tny": {}}), "small has defaults for 'tny', which is no flavor"),
        (
            replace(SPEC, flavors={"tiny": Config(unused=True)}),
            "small tiny: the loss does not depend on 'layers.0.spare.weight'",
        ),
        (
            replace(SPEC, flavors={"tiny": Config(sees="everything of the document")}),
            "small tiny: a token's output depends on a later token",
        ),
        (
            replace(SPEC, flavors={"tiny": Config(sees="past of everything")}),
            "small tiny: a token's output depends on another document's tokens",
        ),
        (
            replace(SPEC, flavors={"tiny": Config(sees="all but itself")}),
            "small tiny: a token's output does not depend on the token",
        ),
        (
            replace(SPEC, flavors={"tiny": Config(sees="last")}),
            r"small tiny: outputs must be of shape \(batch, seq, vocab\), not \(2, 11\)",
        ),
        (
            replace(SPEC, init=lambda config: init(config) | {"{embedding,output}.weight": Normal(1e30)}),
            "small tiny: the loss is ",
        ),
        (
            replace(SPEC, model=lambda config: Small(config).to_empty(device="cpu")),
            r"small tiny: does not build on the meta device but on \['cpu'\]",
        ),
    ],
)
def test_an_unsound_model_does_not(spec, message):
    with pytest.raises(AssertionError, match=message):
        check_model(spec)


def test_a_flavor_that_does_not_exist():
    with pytest.raises(AssertionError, match="small has no flavor 'huge'"):
        check_model(SPEC, flavor="huge")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            replace(SPEC, plan=lambda config: ParallelPlan(block="blocks.*")),
            r"plan of small tiny, block: entry 'blocks\.\*' matches nothing",
        ),
        (
            replace(SPEC, init=lambda config: {"output.weight": Normal(1.0)}),
            "init table of small tiny: no entry for embedding.weight",
        ),
        (
            replace(SPEC, init=lambda config: init(config) | {"head.weight": Normal(1.0)}),
            "init table of small tiny: entry 'head.weight' matches nothing",
        ),
    ],
)
def test_tables_that_do_not_fit(spec, message):
    with pytest.raises(ConfigError, match=message):
        check_model(spec)


def plugin(**attributes: object) -> types.ModuleType:
    module = types.ModuleType("mine")
    vars(module).update({"HEKATON_API": ">=1,<2"} | attributes)
    return module


def models(*records: Model) -> dict[str, object]:
    return {"hekaton_models": hookimpl(lambda: list(records))}


@pytest.fixture(autouse=True)
def code(monkeypatch):
    module = types.ModuleType("code_of_mine")
    module.spec = SPEC
    monkeypatch.setitem(sys.modules, "code_of_mine", module)


SOUND = Model("small", spec=Ref("code_of_mine:spec"), summary="sound")


def test_a_sound_plugin_passes():
    check_plugin(plugin(**models(SOUND)))
    check_plugin("hekaton.plugins.builtin")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (plugin(), "implements no hook"),
        (plugin(hekaton_modls=hookimpl(lambda: [])), "unknown hook 'hekaton_modls'"),
        (plugin(HEKATON_API=">=9", **models(SOUND)), "is incompatible: built for plugin API >=9"),
        (plugin(**models(replace(SOUND, summary=""))), "model 'small': it has no summary"),
        (plugin(**models(replace(SOUND, name="other"))), "model 'other': its TrainSpec is named 'small'"),
        (
            plugin(**models(replace(SOUND, section="none"))),
            "model 'small': the plugin contributes no section 'none'",
        ),
        (plugin(**models(replace(SOUND, spec=Ref("code_of_mine:gone")))), "cannot load 'code_of_mine:gone'"),
        (plugin(**models(replace(SOUND, spec=Ref("json:loads")))), "model 'small': spec is no TrainSpec but"),
        (
            plugin(
                hekaton_sections=hookimpl(
                    lambda: [Section("s", schema=Ref("pydantic:BaseModel"), summary="s")]
                )
            ),
            "section 's': schema is no subclass of SectionModel but",
        ),
        (
            plugin(hekaton_converters=hookimpl(lambda: [Converter("c", build=Ref("sys:path"), summary="c")])),
            "converter 'c': .* cannot be called",
        ),
    ],
)
def test_an_unsound_plugin_does_not(module, message):
    with pytest.raises(AssertionError, match=message):
        check_plugin(module)


def test_a_plugin_that_does_not_state_its_api():
    module = plugin(**models(SOUND))
    del module.HEKATON_API
    with pytest.raises(AssertionError, match="does not state HEKATON_API"):
        check_plugin(module)


def test_a_plugin_that_imports_torch(tmp_path, monkeypatch):
    (tmp_path / "heavy_plugin.py").write_text(
        "import torch\nfrom hekaton.contributions import hookimpl\nHEKATON_API = '>=1'\n"
        "@hookimpl\ndef hekaton_models(): return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AssertionError, match="importing heavy_plugin imports torch; name it with a Ref"):
        check_plugin("heavy_plugin")
    monkeypatch.delitem(sys.modules, "heavy_plugin")


def test_everything_wrong_is_listed_together():
    with pytest.raises(AssertionError) as caught:
        check_plugin(plugin(**models(replace(SOUND, summary="", section="none"))))
    assert "no summary" in str(caught.value)
    assert "no section 'none'" in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"flops_per_unit": lambda config, seq_len: -1.0}, "flops_per_unit gives -1.0, not a finite number"),
        (
            {"flops_per_unit": lambda config, seq_len: "6e9"},
            "flops_per_unit gives '6e9', not a finite number",
        ),
        ({"terms": lambda config: {"balance": 0.1}}, "TrainSpec.terms has 'balance', which no layer adds"),
        (
            {"init": lambda config: {**init(config), "output.bias": drawn_by_torch}},
            "'output.bias' depend on more",
        ),
    ],
)
def test_what_a_model_says_of_itself_is_checked(changed, message):
    with pytest.raises(AssertionError, match=message):
        check_model(replace(SPEC, **changed), layouts=False)


def drawn_by_torch(tensor, *, name, generator):
    tensor.normal_()
