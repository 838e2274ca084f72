"""The conformance kit finds what is wrong with converters, optimizers, buffers and rules."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from hekaton import optim
from hekaton.config.sections.muon import MuonSection
from hekaton.draft import Merge
from hekaton.errors import CheckpointError, ConfigError, PluginError
from hekaton.init import Constant, Normal
from hekaton.muon import build as muon
from hekaton.parallel.plan import ParallelPlan
from hekaton.spec import TrainSpec
from hekaton.testing import check_buffers, check_converter, check_optimizer, check_plugin, check_rule
from hekaton.weights import entry


@dataclass(frozen=True)
class Config:
    vocab_size: int = 11
    dim: int = 8


class Small(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList([nn.Linear(config.dim, config.dim, bias=False)])
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(self, tokens, positions, documents):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + layer(x)
        return self.output(x)


SPEC = TrainSpec(
    name="small",
    model=Small,
    flavors={"tiny": Config()},
    plan=lambda config: ParallelPlan(block="layers.*"),
    init=lambda config: {"**.weight": Normal(0.5)},
)


class Gain(nn.Module):
    """A linear layer whose outputs have a gain each."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear
        self.gain = nn.Parameter(torch.empty(linear.out_features, device=linear.weight.device))

    def forward(self, x):
        return self.gain * self.linear(x)


class Gains:
    """A right converter, but for what the parameters say."""

    def __init__(
        self, *, factor=1.0, merged=True, trained="**.gain", device="meta", part="layers.0.gain", used=True,
        changed=None,
    ):  # fmt: skip
        self.factor, self.merged, self.trained, self.device = factor, merged, trained, device
        self.part, self.used, self.changed = part, used, changed or (lambda draft: draft)

    def convert(self, draft):
        layers = draft.model.layers
        layers[0] = Gain(layers[0])
        layers[0].gain = nn.Parameter(torch.ones(8, device=self.device))
        if not self.used:
            layers[0].forward = layers[0].linear.forward
        merge = Merge(
            into="layers.0.weight",
            parts=["layers.0.linear.weight", self.part],
            make=lambda parts: self.factor * parts[1][:, None] * parts[0],
        )
        converted = replace(
            draft.with_entries(init={"**.gain": Constant(1.0)}),
            trained=[self.trained],
            merges=[merge] if self.merged else [],
        )
        return self.changed(converted)


class Halving(Gains):
    def after_step(self, model_parts):
        for parameter in model_parts[0].parameters():
            parameter.mul_(0.5)


def gain_by(initializer):
    return lambda draft: replace(draft, init={**draft.init, "**.gain": initializer})


def drawn_by_torch(tensor, *, name, generator):
    tensor.normal_()


def left_as_it_was(tensor, *, name, generator):
    pass


def with_style(draft):
    everything = {"layers.*": "my_colwise", "{embedding,norm,output}": "replicate"}
    return replace(draft, plan=replace(draft.plan, tensor=everything))


def made_by(make):
    return lambda draft: replace(draft, merges=[replace(one, make=make) for one in draft.merges])


def test_a_right_converter_passes():
    draft = check_converter(Gains(), SPEC, "tiny")
    assert dict(draft.model.named_parameters()).keys() >= {"layers.0.gain", "layers.0.linear.weight"}


@pytest.mark.parametrize(
    ("converter", "message"),
    [
        (Gains(factor=2.0), "with its tensors merged, the model gives other outputs"),
        (Gains(merged=False), "an export has no 'layers.0.weight': keep its name, or give a merge"),
        (Gains(part="layers.0.scale"), "names 'layers.0.scale', which is no tensor"),
        (Gains(device="cpu"), "must be on the meta device"),
        (Gains(used=False), "do not depend on 'layers.0.gain', which is trained"),
        (Gains(changed=gain_by(drawn_by_torch)), "'layers.0.gain' depend on more than the initialiser's arg"),
        (Gains(changed=gain_by(left_as_it_was)), "'layers.0.gain' depend on more than the initialiser's arg"),
        (Gains(changed=gain_by(Constant(math.nan))), "initial values of 'layers.0.gain' are not finite"),
        (
            Gains(changed=made_by(lambda parts: parts[0][:3])),
            r"the merge of 'layers.0.weight' makes \(3, 8\)",
        ),
        (Gains(changed=made_by(lambda parts: None)), "the merge of 'layers.0.weight' makes NoneType"),
        (
            Gains(changed=lambda draft: replace(draft, weight_entries=[entry("gain", "gain")])),
            "stands for no",
        ),
        (Gains(changed=lambda draft: replace(draft, export_format="pet")), "the checkpoint format 'pet'"),
        (Gains(changed=with_style), "the parallel style 'my_colwise': name the module or file"),
        (Halving(), "after_step, called twice, changes 'embedding.weight' twice"),
    ],
)
def test_a_wrong_converter_fails(converter, message):
    with pytest.raises(AssertionError, match=message):
        check_converter(converter, SPEC, "tiny")


def test_a_merge_like_a_part_that_it_does_not_have_is_an_error():
    with pytest.raises(PluginError, match="like part 2, and has 2 parts"):
        Merge(into="w", parts=["w", "gain"], make=lambda parts: parts[0], like=2)


class AddsWithoutInit:
    def convert(self, draft):
        draft.model.layers[0] = Gain(draft.model.layers[0])
        return draft


class AddsMore:
    def convert(self, draft):
        draft.model.layers[0].register_buffer("count", torch.empty(1, device="meta"))
        draft.model.layers[0].reset_buffers = lambda: draft.model.layers[0].count.zero_()
        return draft


def test_the_tables_of_a_converter_are_checked():
    with pytest.raises(ConfigError, match=r"small tiny after AddsWithoutInit: no entry for layers\.0\.gain"):
        check_converter(AddsWithoutInit(), SPEC, "tiny")
    with pytest.raises(AssertionError, match=r"an export has no place for 'layers\.0\.count'"):
        check_converter(AddsMore(), SPEC, "tiny")


@pytest.mark.parametrize(
    ("build", "section"), [(optim.adamw, None), (optim.adam, None), (muon, MuonSection())]
)
def test_our_optimizers_pass(build, section):
    check_optimizer(build, section=section)


def one_group(section, settings, groups):
    return torch.optim.AdamW(
        [one.parameter for group in groups for one in group.parameters],
        lr=settings.lr,
        weight_decay=settings.weight_decay,
    )


def first_group(section, settings, groups):
    return optim.adamw(section, settings, groups[:1])


def without_experts(section, settings, groups):
    of_matrices = [
        group.as_torch([one for one in group.parameters if one.role != "expert"]) for group in groups
    ]
    return torch.optim.AdamW(of_matrices)


class Counting(torch.optim.SGD):
    """Keeps a list, which no checkpoint can hold."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter].setdefault("norms", []).append(1.0)


class Drifting(torch.optim.SGD):
    """Moves weights that have no gradient, and at any rate."""

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(1e-3)


class Forgetful(torch.optim.SGD):
    """Slows down with the number of steps, which it keeps to itself."""

    steps = 0

    def step(self, closure=None):
        self.steps += 1
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] /= self.steps
        super().step(closure)
        for group, rate in zip(self.param_groups, rates, strict=True):
            group["lr"] = rate


class Ascending(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.neg_()
        super().step(closure)


class WithoutDecay(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            group["weight_decay"] = 0.0
        super().step(closure)


def of(kind):
    def build(section, settings, groups):
        return kind([group.as_torch() for group in groups], lr=settings.lr)

    return build


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (one_group, r"'norm.weight' has the rate 0.0008, its group's is 0.0004"),
        (first_group, r"is in 0 groups of its optimizers"),
        (without_experts, r"'experts.w' is in 0 groups of its optimizers"),
        (of(Drifting), "a step at a rate of 0 changes 'embedding.weight'"),
        (of(Forgetful), "training does not resume exactly: 'embedding.weight' differs"),
        (of(Ascending), "the first step goes up the gradient"),
        (of(WithoutDecay), "optimizer.weight_decay = 0.1 has no effect on 'embedding.weight'"),
        (lambda *_: [None], "build returned NoneType"),
        (lambda *_: None, "build returned NoneType"),
        (lambda *_: [], "build returned no optimizer"),
    ],
)
def test_a_wrong_optimizer_fails(build, message):
    with pytest.raises(AssertionError, match=message):
        check_optimizer(build)


def test_state_that_no_checkpoint_can_hold_fails():
    with pytest.raises(CheckpointError, match=r"keeps 'norms' of 'embedding\.weight' as list"):
        check_optimizer(of(Counting))


class Counted(Small):
    """With a buffer, and what fills it."""

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("table", torch.empty(4))

    def reset_buffers(self):
        self.table.copy_(torch.arange(4.0))


class Partly(Counted):
    def reset_buffers(self):
        self.table[:2] = 0.0


class Replaced(Counted):
    def reset_buffers(self):
        self.table = torch.zeros(5)


class Meddling(Counted):
    def reset_buffers(self):
        super().reset_buffers()
        self.output.weight.data.zero_()


class Unowned(Small):
    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("table", torch.empty(4))


def test_buffers_that_are_filled_pass():
    check_buffers(replace(SPEC, model=Counted), "tiny")
    check_buffers(SPEC, "tiny")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Partly, "does not fill 'table': what was in its memory is still there"),
        (Replaced, r"makes 'table' \(5,\) of torch.float32, it was built as \(4,\)"),
        (Meddling, "changes the parameter 'output.weight'"),
    ],
)
def test_buffers_that_are_not_filled_fail(model, message):
    with pytest.raises(AssertionError, match=message):
        check_buffers(replace(SPEC, model=model), "tiny")


def test_a_buffer_without_an_owner_fails():
    with pytest.raises(ConfigError, match="has buffers and no reset_buffers"):
        check_buffers(replace(SPEC, model=Unowned), "tiny")


def few_steps(run):
    steps = run.config.training.steps
    if steps == 3:
        yield run.violation("three steps are few", "training.steps")
    elif steps == 4:
        yield "four steps are not many"


def always(run):
    yield "this run is watched"


def yields_numbers(run):
    if run.config.training.steps == 3:
        yield 3


def changing(run):
    run.config.model.converters.append("mine")
    yield from ()


def listing(run):
    return []


def test_what_a_right_rule_says_is_returned():
    (violation,) = check_rule(few_steps, "--training.steps", "3")
    assert str(violation) == "three steps are few\n  from: --training.steps"
    assert check_rule(few_steps, "--training.steps", "4") == ["four steps are not many"]
    assert check_rule(few_steps) == []


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (always, "a run that does not use its plugin: this run is watched"),
        (yields_numbers, "it yields int"),
        (listing, "it returns list: write it as a generator"),
        (changing, "it changes the configuration that it is given"),
    ],
)
def test_a_wrong_rule_fails(rule, message):
    with pytest.raises(AssertionError, match=message):
        check_rule(rule, "--training.steps", "3")


def test_a_rule_that_imports_torch_is_named(tmp_path, monkeypatch):
    (tmp_path / "slow_rules.py").write_text("import torch\n\ndef rule(run):\n    yield from ()\n")
    (tmp_path / "with_slow_rules.py").write_text(
        "from hekaton.contributions import Check, Ref, hookimpl\n\nHEKATON_API = '>=1,<2'\n\n\n"
        "@hookimpl\ndef hekaton_checks():\n    return [Check('slow', rule=Ref('slow_rules:rule'), summary='slow')]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        AssertionError, match="check 'slow': importing slow_rules imports torch, in every run"
    ):
        check_plugin("with_slow_rules")
