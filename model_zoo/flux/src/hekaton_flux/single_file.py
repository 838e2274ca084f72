"""The single file that FLUX.1 was published in (``flux1-dev.safetensors``), as a format of weights: its
tensors under the names of diffusers, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hekaton.checkpoint.disk.folders import reason_of
from hekaton.errors import CheckpointError, ConfigError
from hekaton.weights import LazyTensor
from hekaton.weights.format import Weights, WriteOptions
from hekaton_flux.diffusers import read_config, single_file_table, table, write_config
from hekaton_flux.model import FluxConfig

NAME = "flux1.safetensors"
_MARK = "double_blocks.0.img_attn.norm.query_norm.scale"
"""A tensor of the transformer, which the autoencoder beside it does not have."""


class SingleFile:
    """A folder with the file in it."""

    def open(self, folder: Path) -> Weights:
        """:raises CheckpointError: when there is none, or several, or it is damaged."""
        tensors = _transformer_in(folder)
        try:
            config = config_of({name: tensor.shape for name, tensor in tensors.items()})
        except (KeyError, IndexError, ValueError, ArithmeticError, ConfigError) as e:
            raise CheckpointError(f"'{folder}': its tensors are of no FLUX.1: {e}") from e
        ours = single_file_table(config).from_hf(tensors, what=str(folder))
        return Weights(config=write_config(config), tensors=table(config).to_hf(ours, what=str(folder)))

    def write(self, folder: Path, weights: Weights, options: WriteOptions) -> None:
        """One file, for which all tensors are held in memory.

        :raises CheckpointError: for a model that its tensors alone do not tell, and when the disk refuses.
        """
        config = read_config(weights.config)
        what = str(folder)
        _check_tells(config)
        if options.rank != 0:
            return
        there = single_file_table(config).to_hf(table(config).from_hf(weights.tensors, what=what), what=what)
        try:
            save_file({name: tensor.read().contiguous() for name, tensor in there.items()}, folder / NAME)
        except (OSError, SafetensorError) as e:
            raise CheckpointError(f"cannot write '{folder / NAME}': {e}") from e


def config_of(shapes: dict[str, tuple[int, ...]]) -> FluxConfig:
    """The configuration of a model with tensors of these shapes. What the shapes do not tell is as published:
    the axes of positions have 1, 3.5 and 3.5 eighths of a head's channels."""
    dim, channels = shapes["img_in.weight"]
    (head_dim,) = shapes[_MARK]
    blocks = {
        kind: len({name.split(".")[1] for name in shapes if name.startswith(f"{kind}_blocks.")})
        for kind in ("double", "single")
    }
    return FluxConfig(
        dim=dim, n_heads=dim // head_dim, n_double_blocks=blocks["double"], n_single_blocks=blocks["single"],
        axes=(head_dim // 8, head_dim * 7 // 16, head_dim * 7 // 16), channels=channels,
        text_dim=shapes["txt_in.weight"][1], pooled_dim=shapes["vector_in.in_layer.weight"][1],
        guidance="guidance_in.in_layer.weight" in shapes,
    )  # fmt: skip


def _check_tells(config: FluxConfig) -> None:
    """:raises CheckpointError: for a model of which the file would not be read back as what it is."""
    told = (config.head_dim // 8, config.head_dim * 7 // 16, config.head_dim * 7 // 16)
    if config.axes != told:
        raise CheckpointError(
            f"the single file of FLUX.1 cannot say axes = {list(config.axes)}: they are taken to be 1, 3.5 "
            f"and 3.5 eighths of the {config.head_dim} channels of a head",
            hint="hekaton convert to-hf writes them into config.json",
        )


def _transformer_in(folder: Path) -> dict[str, LazyTensor]:
    found = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as opened:
                names = set(opened.keys())
        except (OSError, SafetensorError) as e:
            reason = reason_of(e) if isinstance(e, OSError) else e
            raise CheckpointError(f"cannot read '{path}': {reason}") from e
        if _MARK in names:
            found.append(path)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise CheckpointError(
            f"'{folder}' has not one file of a FLUX.1 transformer, but {names}",
            hint="put the one that is meant, such as flux1-dev.safetensors, into a folder of its own",
        )
    return _tensors_of(found[0])


def _tensors_of(path: Path) -> dict[str, LazyTensor]:
    tensors = {}
    with safe_open(path, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118, it is not a dict
            view = opened.get_slice(name)
            first = view[:1] if view.get_shape() else view[...]
            tensors[name] = LazyTensor(tuple(view.get_shape()), first.dtype, _reader(path, name))
    return tensors


def _reader(path: Path, name: str) -> Any:
    def read(region: Any) -> Any:
        try:
            with safe_open(path, framework="pt") as opened:
                return opened.get_slice(name)[region]
        except (OSError, SafetensorError) as e:
            raise CheckpointError(f"cannot read '{name}' in '{path}': {e}") from e

    return read


def build(section: Any) -> SingleFile:
    """The format ``flux_file``."""
    return SingleFile()
