"""What is known of a run once it is built: its data, its model, and how that is cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from hekaton.components import build_component
from hekaton.contributions import IdentitySubject
from hekaton.data import KnownFiles
from hekaton.errors import PluginError
from hekaton.identity import code
from hekaton.identity.handshake import agree
from hekaton.identity.subjects import INSTALL, SAME_CODE, Subject, digest_of, of_imported, of_torch
from hekaton.identity.values import model_values, plain

if TYPE_CHECKING:
    from hekaton.assembly import Assembled
    from hekaton.config import JobConfig
    from hekaton.data import Documents
    from hekaton.plugins import Plugins


def agree_on_run(
    assembled: Assembled,
    documents: Documents,
    validation: Mapping[str, Documents],
    *,
    encoders: Mapping[str, str],
) -> None:
    """Compare what is known once a run is built; collective.

    :param validation: what it is called -> the documents that are validated on.
    :param encoders: what data is called -> the fingerprint of what encodes its documents.
    :raises Disagreement: on all processes, where they differ.
    """
    agree(lambda: of_run(assembled, documents, validation, encoders))


def agree_on_imports(plugins: Plugins) -> None:
    """Compare the modules that have been imported until now; collective.

    :raises Disagreement: on all processes, where they differ.
    """
    agree(lambda: [of_imported(plugins)])


def of_run(
    assembled: Assembled,
    documents: Documents,
    validation: Mapping[str, Documents],
    encoders: Mapping[str, str],
) -> list[Subject]:
    """All processes have these subjects, in this order."""
    stages = assembled.built.layout.stages
    cut = [] if stages is None else list(stages.modules)
    mine = assembled.meshes.dense["pp"].get_local_rank() if assembled.dims.pp > 1 else 0
    parts = plan_values(assembled)
    return [
        Subject(
            name="data",
            values={
                **data_values(assembled, documents, validation),
                **{f"encoding of the {what}": encoder for what, encoder in encoders.items()},
            },
            details=lambda: files_of_data(assembled, documents, validation),
            absent="not there",
            cure="give all machines the same files: training.dataset_path, validation.dataset_path, "
            "model.hf_assets_path",
        ),
        Subject(
            name="versions of what was imported",
            values=code.imported_versions(assembled.plugins),
            cure=INSTALL,
            optional=True,
        ),
        Subject(name="model", values=model_values(assembled.meta.config), cure=SAME_CODE),
        of_torch(),
        Subject(
            name="what plugins compare",
            values=contributed_values(assembled.config, assembled.plugins),
            cure="make them the same on all machines: environment variables in what starts the run",
        ),
        of_imported(assembled.plugins),
        Subject(
            name="stages",
            values={f"modules of stage {number}": plain(one) for number, one in enumerate(cut)},
            cure=SAME_CODE,
        ),
        *(
            Subject(name="plan", values=parts if rank == mine else None, absent="not there", cure=SAME_CODE)
            for rank in range(assembled.dims.pp)
        ),
    ]


def data_values(
    assembled: Assembled, documents: Documents, validation: Mapping[str, Documents]
) -> dict[str, str]:
    """The identities of data and tokenizer."""
    assert assembled.tokenizer is not None
    values = {"tokenizer": assembled.tokenizer.fingerprint, "training data": documents.fingerprint}
    return values | {what: one.fingerprint for what, one in validation.items()}


MOST_FILES = 1000
"""Files that are looked at one by one; of more, so many groups of files that follow each other."""


def files_of_data(
    assembled: Assembled, documents: Documents, validation: Mapping[str, Documents]
) -> dict[str, str]:
    """The content of data and tokenizer file by file, as far as they know their files."""
    of_all: dict[str, object] = {
        "tokenizer": assembled.tokenizer, "training data": documents, **validation,
    }  # fmt: skip
    return {
        f"{what}: {name}": content
        for what, one in of_all.items()
        if isinstance(one, KnownFiles)
        for name, content in grouped(one.files()).items()
    }


def grouped(files: Mapping[str, str], *, most: int = MOST_FILES) -> dict[str, str]:
    """Contents by file; with more than ``most`` files one digest for each of so many groups of neighbours."""
    names = sorted(files)
    size = -(-len(names) // most)
    if size <= 1:
        return dict(files)
    groups = [names[start : start + size] for start in range(0, len(names), size)]
    return {
        f"{group[0]} to {group[-1]}": f"{len(group):,} files, "
        + digest_of({name: files[name] for name in group})
        for group in groups
    }


def plan_values(assembled: Assembled) -> dict[str, str]:
    """Shape, type and placements of each parameter and buffer of this rank's parts."""
    return {
        f"plan of {name}": _described(tensor)
        for part in assembled.parts
        for name, tensor in (*part.named_parameters(), *part.named_buffers())
    }


def _described(tensor: torch.Tensor) -> str:
    text = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
    if not isinstance(tensor, DTensor):
        return text
    names = tensor.device_mesh.mesh_dim_names or ()
    placements = ", ".join(f"{name} {one}" for name, one in zip(names, tensor.placements, strict=False))
    return f"{text} {placements}"


def contributed_values(config: JobConfig, plugins: Plugins) -> dict[str, Any]:
    """What the subjects of plugins say, as ``NAME.key``.

    :raises PluginError: for one that returns no mapping.
    """
    values: dict[str, Any] = {}
    for name, contributed in plugins.all(IdentitySubject).items():
        said = build_component(config, plugins, IdentitySubject, name, config)
        if not isinstance(said, Mapping):
            raise PluginError(
                f"{contributed.plugin}: the identity subject '{name}' must return a mapping, not "
                f"{type(said).__name__}"
            )
        values |= {f"{name}.{key}": plain(value) for key, value in said.items()}
    return values
