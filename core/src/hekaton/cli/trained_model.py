"""The trained model of a verb: the arguments that say which, and its loading by :func:`hekaton.load`."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hekaton.errors import CheckpointError, ConfigError
from hekaton.paths import expanded
from hekaton.urls import is_url

if TYPE_CHECKING:
    import torch

    from hekaton.loaded_model import LoadedModel
    from hekaton.loading import Arrange
    from hekaton.plugins import Plugins

SOURCES = """\
  --checkpoint PATH         a run's folder, of which the newest good step is read, one step folder, or a URL
  --hf PATH                 a folder with config.json, safetensors and the tokenizer; or a URL of one"""

OPTIONS = """\
  --device DEVICE           cpu or cuda; by default CUDA where there is a device
  --dtype DTYPE             float32, bfloat16 or float64; by default as the weights are stored
  --hf_assets_path FOLDER   the tokenizer, where it is not at the place that the run or the folder has it
  --model_name NAME         the model, where the checkpoint does not say which one it is of
  --model_flavor FLAVOR     its flavor, likewise
  --leave_out PARTS         other models in the folder that are not read, such as vision, with commas between
  --plugins.load NAME       also load this module, or this .py file, as a plugin
  --plugins.disable NAME    leave this plugin out"""

_OF_TEXT = ("hf_assets_path", "model_name", "model_flavor", "leave_out")


def add_arguments(parser: argparse.ArgumentParser, *, of_text: bool = True) -> None:
    """Those of :data:`SOURCES` and :data:`OPTIONS`.

    :param of_text: also those of a model of text in a folder of its own.
    """
    source = parser.add_mutually_exclusive_group(required=True)
    for name in ("checkpoint", "hf"):
        source.add_argument(f"--{name}")
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float64"])
    for name in _OF_TEXT if of_text else ():
        parser.add_argument(f"--{name}")


def said(given: argparse.Namespace) -> dict[str, Any]:
    """What :func:`load` is told by parsed arguments."""
    names = ("checkpoint", "hf", "device", "dtype", *_OF_TEXT)
    found = {name: getattr(given, name) for name in names if getattr(given, name, None) is not None}
    if "leave_out" in found:
        found["leave_out"] = [name for name in found["leave_out"].split(",") if name]
    return found


def load(
    plugins: Plugins,
    *,
    checkpoint: str | None = None,
    hf: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | None = None,
    hf_assets_path: str | None = None,
    model_name: str | None = None,
    model_flavor: str | None = None,
    leave_out: Collection[str] = (),
    arrange: Arrange | None = None,
) -> LoadedModel:
    """:func:`hekaton.load` of one of two sources, each of which is of one format.

    :param device: by default CUDA where there is a device.
    :raises ConfigError: for both or none of them, a device that is not there, and what is of the other one.
    :raises HekatonError: as :func:`hekaton.load`.
    """
    import torch

    import hekaton

    if (checkpoint is None) == (hf is None):
        raise ConfigError("say either checkpoint or hf: which model is meant")
    if str(device).startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {device}: there is no CUDA device", hint="say --device cpu")
    if hf is not None and model_flavor is not None:
        raise ConfigError(
            "--model_flavor is of checkpoints: a folder's config.json has the sizes of its model"
        )
    if checkpoint is not None and leave_out:
        raise ConfigError("--leave_out is of folders that --hf names: a checkpoint holds one model")
    path = checkpoint if hf is None else hf
    assert path is not None
    _check_format(path, is_hf=hf is not None)
    return hekaton.load(
        path,
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        dtype=dtype,
        hf_assets_path=hf_assets_path,
        plugins=plugins,
        leave_out=leave_out,
        model_name=model_name,
        model_flavor=model_flavor,
        arrange=arrange,
    )


def _check_format(path: str, *, is_hf: bool) -> None:
    """:raises CheckpointError: for a folder of the other format."""
    if is_url(path):
        return
    try:
        folder = Path(expanded(path))
    except ValueError as error:
        raise ConfigError(f"'{path}': {error}") from error
    if is_hf and not folder.is_dir():
        raise CheckpointError(f"there is no folder '{folder}'")
    if is_hf and not (folder / "config.json").is_file():
        raise CheckpointError(
            f"'{folder}' has no config.json: a folder in the format of Hugging Face was expected",
            hint="--checkpoint PATH takes a run's folder or a step",
        )
    if not is_hf and (folder / "config.json").is_file():
        raise CheckpointError(f"'{folder}' is a folder of another format", hint="say --hf PATH")
