"""Checkpoints to and from other layouts, tensor by tensor."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from hekaton.building import build_meta
from hekaton.checkpoint.disk.folders import sync
from hekaton.checkpoint.tensors.model_only import StoredModel, open_model, write_model
from hekaton.checkpoint.tensors.state import model_tensors
from hekaton.config.job import config_of
from hekaton.config.validation import ITS_PLUGINS, in_words
from hekaton.contributions import Model
from hekaton.draft import Draft
from hekaton.errors import CheckpointError, HekatonError
from hekaton.identity.values import model_values
from hekaton.mesh import ParallelDims
from hekaton.overrides import override
from hekaton.plugins import Plugins
from hekaton.spec import load_spec
from hekaton.weights import LazyTensor
from hekaton.weights.counterpart import (
    Counterpart,
    adapter_of,
    base_of,
    build_format,
    differing,
    export,
    identify,
)
from hekaton.weights.facts import facts_of_step
from hekaton.weights.format import WriteOptions
from hekaton.weights.lazy import Region

log = logging.getLogger("hekaton")

PARTIAL = ".partial"
Progress = Callable[[Mapping[str, LazyTensor]], contextlib.AbstractContextManager[Callable[[int], None]]]
"""Opened with what is to be read; what it gives is called with the number of bytes after each read."""


def import_weights(
    plugins: Plugins,
    source: Path,
    target: Path,
    *,
    format_name: str,
    model: str | None = None,
    flavor: str | None = None,
    leave_out: Collection[str] = (),
    overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Counterpart:
    """Make a checkpoint that a run can start from out of a folder in another format.

    :param model: by default the one whose adapter knows the architecture of ``source``.
    :param flavor: by default the one that the ``config.json`` of ``source`` fits.
    :param leave_out: other models in ``source`` that are not read, such as ``vision``.
    :param overrides: fields of the flavor to replace; in them the ``config.json`` may differ.
    :returns: what it was taken for.
    :raises CheckpointError: when the folder is not what it should be, or is damaged; ``target`` is left as
        it was.
    """
    _check_paths(source, target)
    weights = build_format(plugins, format_name).open(source)
    found = identify(
        plugins, weights.config, model=model, flavor=flavor, overrides=overrides, what=str(source)
    )
    tensors = found.from_hf(weights, leave_out=leave_out, what=str(source))
    for notice in found.table.notices(weights.tensors):
        log.warning("%s: %s", source, notice)
    found.check_shapes(tensors, model_tensors([found.on_meta()]), what=str(source))
    describe = {
        "model": found.spec.name,
        "flavor": found.flavor,
        "layout": {},
        "config": {
            "model": {"name": found.spec.name, "flavor": found.flavor, "overrides": dict(overrides or {})}
        },
        "converted_from": format_name,
        "facts": found.facts_of(weights).to_json(),
        "identity": model_values(found.config),
    }
    with _whole_or_not_there(target) as partial, _watched(tensors, progress) as watched:
        write_model(partial, watched, describe=describe)
    return found


def export_weights(
    plugins: Plugins,
    source: Path,
    target: Path,
    *,
    format_name: str,
    model: str | None = None,
    flavor: str | None = None,
    dtype: str | None = None,
    options: WriteOptions | None = None,
    progress: Progress | None = None,
) -> Counterpart:
    """Write the model of a checkpoint into a folder in another format.

    :param model: by default the one that the checkpoint says it is of, and so is ``flavor``.
    :param dtype: precision of floating-point tensors; by default as in the checkpoint.
    :raises CheckpointError: as :func:`import_weights`.
    """
    _check_paths(source, target)
    stored = open_model(source)
    found = _described(plugins, stored, model=model, flavor=flavor)
    found.check_shapes(stored.tensors, model_tensors([found.on_meta()]), what=str(source))
    facts = facts_of_step(stored.manifest.describe)
    base = base_of(stored.manifest.describe.get("config", {}))
    exported = export(found, stored.tensors, dtype=dtype, facts=facts, what=str(source), base=base)
    writer = build_format(plugins, format_name)
    with (
        _whole_or_not_there(target) as partial,
        _watched(exported.tensors, progress) as watched,
        stored.verified(),
    ):
        writer.write(partial, dataclasses.replace(exported, tensors=watched), options or WriteOptions())
    return found


def to_torch(source: Path, target: Path, *, progress: Progress | None = None) -> None:
    """Write the model of a checkpoint as a dict of tensors, a file for ``torch.load``."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from hekaton.checkpoint.tensors.dcp import plain_errors

    _check_source(source)
    if target.exists():
        raise CheckpointError(f"'{target}' exists", hint="give the name of a new file")
    stored = open_model(source)
    partial = target.with_name(target.name + PARTIAL)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            plain_errors(),
            partial.open("wb") as file,
            FakeTensorMode(),
            torch.serialization.skip_data(materialize_fake_tensors=True),
        ):
            # A file with room for the values, which follow one tensor at a time.
            room = {name: torch.empty(one.shape, dtype=one.dtype) for name, one in stored.tensors.items()}
            torch.save(room, file)
        places: Any = torch._C.PyTorchFileReader(str(partial))
        with _watched(stored.tensors, progress) as watched, stored.verified(), partial.open("r+b") as file:
            for number, tensor in enumerate(watched.values()):
                file.seek(places.get_record_offset(f"data/{number}"))
                file.write(tensor.read().contiguous().flatten().view(torch.uint8).numpy().data)
        partial.rename(target)
    except OSError as error:
        raise CheckpointError(f"cannot write '{target}': {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _described(
    plugins: Plugins, stored: StoredModel, *, model: str | None, flavor: str | None
) -> Counterpart:
    """The model of a checkpoint, as its manifest says, and the user."""
    describe = stored.manifest.describe
    of_model, of_flavor = describe.get("model"), describe.get("flavor")
    name = model or of_model
    if name is None:
        raise CheckpointError(f"{stored.folder} does not name its model", hint="set --model_name")
    adapter = adapter_of(plugins, name)
    if of_model not in (None, name):
        raise CheckpointError(f"{stored.folder} is of model {of_model}, not {name}")
    spec = load_spec(plugins.get(Model, name))
    chosen = flavor or of_flavor
    if chosen is None:
        raise CheckpointError(f"{stored.folder} does not name its flavor", hint="set --model_flavor")
    config = spec.flavor(chosen)
    if of_flavor is not None and of_flavor in spec.flavors:
        differences = differing(spec.flavors[of_flavor], config)
        if differences:
            raise CheckpointError(
                f"{stored.folder} is {name} {of_flavor}, not {flavor}", hint="\n".join(differences)
            )
    overrides = describe.get("config", {}).get("model", {}).get("overrides", {})
    return Counterpart(
        spec=spec,
        flavor=chosen,
        config=override(config, overrides, name),
        adapter=adapter,
        draft=_converted(plugins, stored),
    )


def _converted(plugins: Plugins, stored: StoredModel) -> Draft | None:
    """The draft of the run that saved a checkpoint, where that had converters.

    :raises CheckpointError: when a converter, or what it was configured with, is not there any more.
    """
    content = stored.manifest.describe.get("config", {})
    if not content.get("model", {}).get("converters"):
        return None
    try:
        return build_meta(config_of(plugins, content), plugins, ParallelDims()).draft
    except (ValidationError, HekatonError) as error:
        names = ", ".join(content["model"]["converters"])
        said = in_words(error) if isinstance(error, ValidationError) else error
        raise CheckpointError(
            f"{stored.folder} was trained with the converters {names}, which cannot be run again: {said}",
            hint=ITS_PLUGINS,
        ) from error


def _check_source(source: Path) -> None:
    if not source.is_dir():
        what = "is not a folder" if source.exists() else "does not exist"
        raise CheckpointError(f"'{source}' {what}")


def _check_paths(source: Path, target: Path) -> None:
    _check_source(source)
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"'{target}' is not a folder")
    if target.exists() and any(target.iterdir()):
        raise CheckpointError(f"'{target}' is not empty", hint="give a new or an empty folder")
    if target.resolve().is_relative_to(source.resolve()):
        raise CheckpointError(
            f"'{target}' is inside of '{source}', which is not changed", hint="give a folder beside it"
        )


@contextlib.contextmanager
def _whole_or_not_there(target: Path) -> Iterator[Path]:
    """A folder to write into, which takes the place of ``target`` once all is well."""
    partial = target.with_name(target.name + PARTIAL)
    try:
        if partial.exists():  # of a conversion that was killed
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        yield partial
        sync(partial)
        partial.rename(target)
        sync(target.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write '{target}': {error.strerror or error}") from error
    finally:
        if partial.exists():
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _watched(
    tensors: Mapping[str, LazyTensor], progress: Progress | None
) -> Iterator[Mapping[str, LazyTensor]]:
    """The same tensors, telling ``progress`` of each read."""
    if progress is None:
        yield tensors
        return
    with progress(tensors) as advance:

        def watched(tensor: LazyTensor) -> LazyTensor:
            def load(region: Region) -> torch.Tensor:
                values = tensor.load(region)
                advance(values.nbytes)
                return values

            return LazyTensor(tensor.shape, tensor.dtype, load)

        yield {name: watched(tensor) for name, tensor in tensors.items()}
