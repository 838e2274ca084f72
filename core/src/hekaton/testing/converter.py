"""Does a converter keep its contract: does what it makes of a model still fit together, and merge back?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hekaton.building import buffer_owners, materialize
from hekaton.checkpoint.tensors.state import model_tensors
from hekaton.contributions import CheckpointFormat, Contribution, ParallelStyle
from hekaton.draft import Draft, apply_converters
from hekaton.errors import PluginError
from hekaton.init import resolve_init
from hekaton.parallel.plan import ParallelPlan, check_plan
from hekaton.plugins import Plugins, kind_name
from hekaton.spec import ModelConverter, TrainSpec
from hekaton.testing.initial import check_initial
from hekaton.testing.plain_run import CPU, plain_run
from hekaton.weights import whole
from hekaton.weights.merge import as_unconverted, merged


def check_converter(
    converter: ModelConverter,
    spec: TrainSpec,
    flavor: str,
    *,
    tolerance: float = 1e-4,
    load: Sequence[str] = (),
) -> Draft:
    """Convert a flavor of a model, in float32 on the CPU, and check what comes of it.

    The plan and the init table fit the converted model, its buffers have owners, something is trained, and
    whatever is trained has a gradient. Every tensor of the model as it was is there under its own name or is
    merged, in its shape; nothing else is left unless the draft has entries for it. A model with the merged
    tensors computes what the converted one does. Initial values follow from initialisers alone, styles and
    the export format are contributed by a plugin, and ``after_step`` called twice does what it does once.

    :param tolerance: of that comparison, relative to the largest output. A draft without merges is not
        compared: it may compute in another precision.
    :param load: plugins that are not installed, as ``--plugins.load`` takes them.
    :returns: the draft, for more checks.
    :raises AssertionError: saying what is wrong.
    :raises ConfigError: from the tables, naming the entry or the parameter.
    """
    what = f"{spec.name} {flavor} after {type(converter).__name__}"
    before = plain_run(spec, flavor, load=load)
    draft = _converted(converter, spec, flavor)
    check_plan(draft.model, draft.plan, what=what)
    buffer_owners(draft.model, what=what)
    initializers = resolve_init(draft.model, draft.init, what=what)
    model = draft.model
    materialize(model, CPU)
    check_initial(model, initializers, what=what)
    _check_names(draft, spec.plan(spec.flavors[flavor]), load, what=what)
    _start(model, draft)
    model.eval()
    outputs = model(**before.inputs)
    if outputs.requires_grad:
        outputs.float().square().mean().backward()
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    assert trained, f"{what}: nothing is trained"
    idle = [name for name, parameter in trained.items() if parameter.grad is None]
    assert not idle, f"{what}: the outputs do not depend on '{idle[0]}', which is trained"
    _check_export(draft, before.model, what=what)
    if draft.merges:
        values = {name: whole(one.detach()) for name, one in model_tensors([model]).items()}
        original = model_tensors([before.model])
        tensors = merged(draft.merges, values)
        known = {name: tensor.read() for name, tensor in tensors.items() if name in original}
        before.model.load_state_dict(known, strict=False)
        with torch.no_grad():
            expected = before.model(**before.inputs)
        difference = (outputs - expected).abs().max() / expected.abs().max()
        assert difference <= tolerance, (
            f"{what}: with its tensors merged, the model gives other outputs: they differ by {difference:.2g}"
        )
    if hasattr(converter, "after_step"):
        _check_after_step(converter, model, what=what)
    return draft


def _check_names(draft: Draft, before: ParallelPlan, load: Sequence[str], *, what: str) -> None:
    """The styles that a draft adds to the model's plan, and its export format, are known."""
    plugins = Plugins.discover(load=load)
    styles = {*draft.plan.tensor.values(), *draft.plan.experts.values()}
    added = styles - {*before.tensor.values(), *before.experts.values()}
    used: set[tuple[type[Contribution], str]] = {(ParallelStyle, style) for style in added}
    if draft.export_format != "hf":  # which a run needs only where it exports
        used.add((CheckpointFormat, draft.export_format))
    for kind, name in sorted(used, key=str):
        assert name in plugins.all(kind), (
            f"{what}: no installed plugin contributes the {kind_name(kind)} '{name}': name the module or "
            "file of the plugin that does, load=['my_plugin']"
        )


@torch.no_grad()
def _check_after_step(converter: Any, model: nn.Module, *, what: str) -> None:
    """It is called again when a run resumes, so that a second call must change nothing."""
    converter.after_step([model])
    once = {name: tensor.clone() for name, tensor in model_tensors([model]).items()}
    converter.after_step([model])
    for name, tensor in model_tensors([model]).items():
        same = (
            torch.equal(tensor.nan_to_num(), once[name].nan_to_num()) if tensor.is_floating_point() else True
        )
        assert same, (
            f"{what}: after_step, called twice, changes '{name}' twice: a run that resumes calls it again"
        )


def _converted(converter: ModelConverter, spec: TrainSpec, flavor: str) -> Draft:
    config = spec.flavors[flavor]
    with torch.device("meta"):
        model = spec.model(config)
    draft = Draft(what=spec.name, config=config, model=model, plan=spec.plan(config), init=spec.init(config))
    draft = apply_converters(draft, {type(converter).__name__: converter})
    devices = {one.device.type for one in draft.model.parameters()}
    assert devices == {"meta"}, (
        f"{spec.name}: parameters that are added must be on the meta device, not {devices}"
    )
    return draft


def _start(model: nn.Module, draft: Draft) -> None:
    """Move what merges add away from its initial values, which may be 0 so that they do nothing."""
    named = model_tensors([model])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for merge in draft.merges:
            for i, part in enumerate(merge.parts):
                if i != merge.like and part in named and named[part].is_floating_point():
                    named[part].add_(0.1 * torch.randn(named[part].shape, generator=generator))


def _check_export(draft: Draft, before: nn.Module, *, what: str) -> None:
    """Every tensor of the model as it was comes from one of the converted model or from a merge."""
    tensors, original = model_tensors([draft.model]), model_tensors([before])
    for merge in draft.merges:
        missing = [part for part in merge.parts if part not in tensors]
        assert not missing, f"{what}: the merge of '{merge.into}' names '{missing[0]}', which is no tensor"
    exported = merged(draft.merges, {name: whole(one.detach()) for name, one in tensors.items()})
    lost = [name for name in original if name not in exported]
    assert not lost, f"{what}: an export has no '{lost[0]}': keep its name, or give a merge"
    for name, tensor in original.items():
        shape = exported[name].shape
        assert shape == tuple(tensor.shape), (
            f"{what}: '{name}' is exported as {shape}, and was {tuple(tensor.shape)}"
        )
        try:
            exported[name].read()
        except PluginError as e:
            raise AssertionError(f"{what}: {e}") from e
    left = [name for name in exported if name not in original]
    entries = [ours for entry in draft.weight_entries for ours in entry.ours]
    for name in left:
        assert any(_stands_for(ours, name) for ours in entries), (
            f"{what}: an export has no place for '{name}': give a merge, or an entry of the weight table"
        )
    for ours in entries:
        assert any(_stands_for(ours, name) for name in left), (
            f"{what}: the entry '{ours}' of the weight table stands for no tensor that was added"
        )
    foreign = [name for name in as_unconverted(draft.merges, tensors) if name not in (*original, *left)]
    assert not foreign, f"{what}: '{foreign[0]}' is no tensor of the model as it was"


def _stands_for(ours: str, name: str) -> bool:
    """Whether an entry's name, with numbers for ``{i}`` and ``{e}``, is that of a tensor."""
    return re.fullmatch(re.escape(ours).replace(r"\{i\}", r"\d+").replace(r"\{e\}", r"\d+"), name) is not None
