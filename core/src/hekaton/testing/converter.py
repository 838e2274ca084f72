"""Does a converter keep its contract: does what it makes of a model still fit together, and merge back?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from hekaton.building import buffer_owners, materialize
from hekaton.draft import Draft, apply_converters
from hekaton.init import initialize, resolve_init
from hekaton.parallel.plan import check_plan
from hekaton.spec import ModelConverter, TrainSpec
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
    merged, in its shape; nothing else is left unless the draft has rows for it. A model with the merged
    tensors computes what the converted one does.

    :param tolerance: of that comparison, relative to the largest output. A draft without merges is not
        compared: it may compute in another precision.
    :param load: plugins that are not installed, as ``--plugins.load`` takes them.
    :returns: the draft, for more checks.
    :raises AssertionError: saying what is wrong.
    :raises ConfigError: from the tables, naming the row or the parameter.
    """
    what = f"{spec.name} {flavor} after {type(converter).__name__}"
    before = plain_run(spec, flavor, load=load)
    draft = _converted(converter, spec, flavor)
    check_plan(draft.model, draft.plan, what=what)
    buffer_owners(draft.model, what=what)
    initializers = resolve_init(draft.model, draft.init, what=what)
    model = draft.model
    materialize(model, CPU)
    initialize(model, initializers, seed=0)
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
        tensors = merged(draft.merges, {name: whole(one.detach()) for name, one in _named(model).items()})
        known = {name: tensor.read() for name, tensor in tensors.items() if name in _named(before.model)}
        before.model.load_state_dict(known, strict=False)
        with torch.no_grad():
            expected = before.model(**before.inputs)
        difference = (outputs - expected).abs().max() / expected.abs().max()
        assert difference <= tolerance, (
            f"{what}: with its tensors merged, the model gives other outputs: they differ by {difference:.2g}"
        )
    if hasattr(converter, "after_step"):
        with torch.no_grad():
            converter.after_step([model])
    return draft


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
    named = _named(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for merge in draft.merges:
            for i, part in enumerate(merge.parts):
                if i != merge.like and part in named and named[part].is_floating_point():
                    named[part].add_(0.1 * torch.randn(named[part].shape, generator=generator))


def _check_export(draft: Draft, before: nn.Module, *, what: str) -> None:
    """Every tensor of the model as it was comes from one of the converted model or from a merge."""
    tensors, original = _named(draft.model), _named(before)
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
        made = tuple(exported[name].read().shape)
        assert made == shape, f"{what}: the merge of '{name}' makes {made}, and 'like' is {shape}"
    left = [name for name in exported if name not in original]
    assert draft.weight_entries or not left, (
        f"{what}: an export has no place for '{left[0]}': give a merge, or an entry of the weight table"
    )
    foreign = [name for name in as_unconverted(draft.merges, tensors) if name not in (*original, *left)]
    assert not foreign, f"{what}: '{foreign[0]}' is no tensor of the model as it was"


def _named(model: nn.Module) -> dict[str, torch.Tensor]:
    """A tied tensor once, under the first of its names."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())
