"""``hekaton.load`` and ``hekaton.build``: models outside of a run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import nn

from hekaton.api.places import device_of, whole
from hekaton.api.places import location as location_of
from hekaton.building import build_meta, materialize
from hekaton.checkpoint.disk.folders import folder_at, is_there, reason_of
from hekaton.checkpoint.runs.inspection import find_steps
from hekaton.config.job import config_of
from hekaton.config.plain import check_plain, plain_value
from hekaton.errors import CheckpointError, ConfigError
from hekaton.fetching import fetched
from hekaton.init import initialize
from hekaton.interrupts import imports_are_finished
from hekaton.loaded_model import LoadedModel
from hekaton.loading import Arrange, load_checkpoint, load_folder, loading_ranks
from hekaton.memory import out_of_memory_is_said
from hekaton.mesh import ParallelDims
from hekaton.parallel.fsdp import DTYPES
from hekaton.plugins import Plugins
from hekaton.urls import check_url, is_url

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@imports_are_finished()
def load(
    path: str | PathLike[str],
    *,
    step: int | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    hf_assets_path: str | PathLike[str] | None = None,
    mesh: DeviceMesh | None = None,
    plugins: Sequence[str] | Plugins = (),
    leave_out: Collection[str] = (),
    model_name: str | None = None,
    model_flavor: str | None = None,
    arrange: Arrange | None = None,
) -> LoadedModel:
    """Load a trained model with its tokenizer, whatever layout saved it.

    >>> trained = load("outputs")  # doctest: +SKIP
    >>> logits = trained.model(torch.tensor([trained.encode("def ")]))  # doctest: +SKIP

    :param path: a run's folder or its checkpoint folder, of which the newest good step is loaded; a step
        folder; or a folder in the format of Hugging Face, with ``config.json``. Behind a URL likewise: its
        files are copied to a temporary folder first.
    :param step: of a run, in place of the newest one.
    :param dtype: of the weights; by default as most of them are stored.
    :param hf_assets_path: the tokenizer's folder, where it is not where the run or the folder has it.
    :param mesh: of one dim, over which the parameters are sharded as by FSDP: each of its processes calls
        this and reads its own part.
    :param plugins: modules or ``.py`` files to load as plugins, or the plugins that are found already.
    :param leave_out: other models in a Hugging Face folder that are not read, such as ``vision``.
    :param model_name: which model it is, and ``model_flavor`` its flavor, of an external checkpoint that does
        not say so.
    :param arrange: places the model on the layout of a run, in place of ``mesh``: a function of the
        configuration and the model on the meta device, called before it is given memory and weights.
    :returns: the model in eval mode, its tokenizer and its configuration.
    :raises CheckpointError: where there is no such step, or it is damaged, or of another model.
    :raises DataError: for a tokenizer that is not there, or not the one that the run had.
    """
    location = location_of(path)
    device, left_out = device_of(device), _several(leave_out, what="leave_out")
    if device.type == "meta":
        raise ConfigError("device = 'meta' holds no weights", hint="hekaton.build makes a model there")
    if step is not None:
        step = whole(step, what=f"step = {step!r}: the number of a step was expected")
    found = _plugins(plugins)
    if mesh is not None and (_dims(mesh) != 1 or device.type != mesh.device_type):
        raise ConfigError(f"a mesh of one dim on '{device}' was expected, not {mesh}")
    if arrange is not None and not callable(arrange):
        raise ConfigError(f"arrange = {arrange!r}: a function was expected")
    if mesh is not None and arrange is not None:
        raise ConfigError("mesh shards the model, and arrange places it: give one of them")
    options: dict[str, Any] = {
        "device": device,
        "dtype": None if dtype is None else dtype_name(dtype),
        "assets": None if hf_assets_path is None else location_of(hf_assets_path),
        "mesh": mesh,
        "arrange": arrange,
        "model": _name(model_name, what="model_name"),
    }
    flavor = _name(model_flavor, what="model_flavor")
    ranks = loading_ranks(mesh, arrange)
    with out_of_memory_is_said(f"loading '{location}'", hint="load it over a mesh"):
        if step is not None:
            location = ranks.first(lambda: _step(location, step))
        if not ranks.first(lambda: _in_other_format(location)):
            if left_out:
                raise CheckpointError(
                    "leave_out is of folders in another format: a checkpoint holds one model"
                )
            return load_checkpoint(location, found, flavor=flavor, **options)
        if flavor is not None:
            raise ConfigError("model_flavor is of checkpoints: config.json has the sizes of its model")
        with fetched(folder_at(location)) as place:
            loaded = load_folder(place, found, format_name="hf", leave_out=left_out, **options)
        return dataclasses.replace(loaded, source=location)


@imports_are_finished()
def build(
    name: str,
    flavor: str,
    *,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "float32",
    seed: int = 0,
    plugins: Sequence[str] | Plugins = (),
    **overrides: Any,
) -> nn.Module:
    """Build a model with the weights that a run with this seed starts from.

    >>> model = build("llama3", "debugmodel", n_layers=2)  # doctest: +SKIP

    :param device: ``"meta"`` gives it neither memory nor weights.
    :param seed: as ``debug.seed``.
    :param plugins: modules or ``.py`` files to load as plugins, or the plugins that are found already.
    :param overrides: fields of the model's configuration, as ``model.overrides``.
    :raises UnknownName: for a model or flavor that no plugin contributes.
    :raises ConfigError: for overrides that the model does not take.
    """
    for what, value in (("name", name), ("flavor", flavor)):
        if _name(value, what=what) is None:
            raise ConfigError(f"{what} = {value!r}: a name was expected")
    expected = f"seed = {seed!r}: a number from 0 to 2**63 - 1 was expected"
    seed = whole(seed, what=expected, least=0, end=2**63)
    device = device_of(device)
    found = _plugins(plugins)
    model = {"name": name, "flavor": flavor, "overrides": _overrides(overrides)}
    try:
        config = config_of(found, {"model": model, "training": {"dtype": dtype_name(dtype)}})
    except ValidationError as error:  # what no field of a model may be: null, or not finite
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"model.overrides of {name}: {said}") from error
    try:
        meta = build_meta(config, found, ParallelDims())
    except RuntimeError as error:  # torch's, of a tensor that no address reaches
        if "overflow" not in str(error):
            raise
        raise ConfigError(f"model.overrides of {name}: a tensor is too large: {error}") from error
    if device.type != "meta":
        with out_of_memory_is_said(f"building {name} {flavor}", hint='device = "meta" takes none'):
            materialize(meta.model, device)
            initialize(meta.model, meta.initializers, seed=seed)
    return meta.model


def dtype_name(dtype: str | torch.dtype) -> str:
    """:raises ConfigError: for one that models are not kept in."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"dtype = {name}: one of {', '.join(DTYPES)} was expected")
    return name


def _name(given: str | None, *, what: str) -> str | None:
    """:raises ConfigError: for what is none."""
    if given is not None and not isinstance(given, str):
        raise ConfigError(f"{what} = {given!r}: a name was expected")
    return given


def _plugins(given: Sequence[str] | Plugins) -> Plugins:
    """:raises HekatonError: for a plugin that cannot be loaded."""
    if isinstance(given, Plugins):
        return given
    found = Plugins.discover(load=_several(given, what="plugins"))
    found.check()
    return found


def _several(given: Collection[str], *, what: str) -> list[str]:
    """:raises ConfigError: for one name, which would be taken for a list of letters, and what is no list."""
    if isinstance(given, str | PathLike):
        raise ConfigError(f"{what} = {given!r}: a list was expected", hint=f"write [{str(given)!r}]")
    if not isinstance(given, Collection):
        raise ConfigError(f"{what} = {given!r}: a list was expected")
    for one in given:
        if not isinstance(one, str | PathLike):
            raise ConfigError(f"{what} = {given!r}: a list of names was expected")
    return [str(one) for one in given]


def _overrides(given: dict[str, Any]) -> Any:
    """Fields of a model as a TOML file would have them.

    :raises ConfigError: for what cannot be in one.
    """
    values = plain_value(given)
    check_plain(values, ("model", "overrides"), lambda path: "")
    return json.loads(json.dumps(values, default=str))  # of no type that a field takes


def _dims(mesh: DeviceMesh) -> int:
    """The dims of a mesh, 0 of what is none."""
    from torch.distributed.device_mesh import DeviceMesh

    return mesh.ndim if isinstance(mesh, DeviceMesh) else 0


def _step(location: str, number: int) -> str:
    """The folder of a step of a run."""
    steps = {one.number: one for one in find_steps(location)}
    if number not in steps:
        there = ", ".join(str(one) for one in sorted(one for one in steps if one is not None))
        raise CheckpointError(f"there is no step {number} in '{location}'", hint=f"there are: {there}")
    return str(steps[number].folder)


def _in_other_format(location: str) -> bool:
    """Whether a folder has a ``config.json``, as those of Hugging Face."""
    if is_url(location):
        check_url(location)
    try:
        return is_there(folder_at(location) / "config.json")
    except OSError as error:
        raise CheckpointError(f"cannot read '{location}': {reason_of(error)}") from error
