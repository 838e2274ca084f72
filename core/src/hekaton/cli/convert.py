"""``hekaton convert from-FORMAT | to-FORMAT | to-torch``: checkpoints to and from other layouts."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hekaton.cli import plugin_flags
from hekaton.cli.arguments import VerbParser, as_path
from hekaton.config.base import shortened
from hekaton.contributions import CheckpointFormat
from hekaton.errors import ConfigError, choices_hint
from hekaton.json_text import KeyTwice, parsed

if TYPE_CHECKING:
    from hekaton.weights import LazyTensor

USAGE = """\
usage: hekaton convert from-hf IN OUT [--model_name NAME] [--model_flavor FLAVOR] [--leave_out PARTS]
                               [--overrides JSON]
       hekaton convert to-hf IN OUT [--model_name NAME] [--model_flavor FLAVOR]
                             [--hf_assets_path FOLDER] [--export_dtype DTYPE] [--max_shard_size SIZE]
       hekaton convert to-torch IN OUT.pt

from-hf    make a checkpoint, to be given as checkpoint.initial_load_path, out of a folder with config.json
           and safetensors. Without a name and a flavor it is the one that config.json fits
to-hf      make a folder for from_pretrained out of the model of a checkpoint: of a run's checkpoint/step-N,
           or what from-hf wrote
to-torch   make a file for torch.load, a dict of the model's tensors

  --model_name NAME         the model; checked where the checkpoint says which one it is
  --model_flavor FLAVOR     its flavor; checked likewise
  --overrides JSON          fields of the flavor to replace, as model.overrides of the run that is to start
                            from OUT, such as '{"n_mtp_layers": 1}'; in them config.json may differ
  --leave_out PARTS         other models in IN that are not read, such as vision, with commas between
  --hf_assets_path FOLDER   copy the tokenizer's files from here
  --export_dtype DTYPE      float32, bfloat16 or float16; by default as in the checkpoint
  --max_shard_size SIZE     of one file of safetensors, such as 500MB; 5GB by default
  --plugins.load NAME       also load this module, or this .py file, as a plugin
  --plugins.disable NAME    leave this plugin out

Tensors are converted one by one, so that a model of any size needs little memory. OUT is a new or an empty
folder; it appears when the conversion is whole. Other formats that plugins contribute have from-NAME and
to-NAME too."""
_MODEL = ("model_name", "model_flavor")


def run(arguments: list[str]) -> int:
    """Run ``hekaton convert ARGUMENTS``."""
    flags, rest = plugin_flags(arguments)
    if not rest or set(rest) & {"-h", "--help"}:
        print(USAGE)
        return 0
    plugins = flags.discover()
    plugins.check()
    verb, *rest = rest
    way, _, name = verb.partition("-")
    if verb == "to-torch":
        _to_torch(_parsed(rest))
    elif way == "from" and name:
        plugins.get(CheckpointFormat, name)
        _import(plugins, name, _parsed(rest, *_MODEL, "leave_out", "overrides"))
    elif way == "to" and name:
        plugins.get(CheckpointFormat, name)
        _export(plugins, name, _parsed(rest, *_MODEL, "hf_assets_path", "export_dtype", "max_shard_size"))
    else:
        ways = [f"{way}-{name}" for name in plugins.all(CheckpointFormat) for way in ("from", "to")]
        raise ConfigError(f"unknown verb 'convert {verb}'", hint=choices_hint(verb, [*ways, "to-torch"]))
    return 0


def _parsed(arguments: list[str], *options: str) -> argparse.Namespace:
    parser = VerbParser("convert")
    parser.add_argument("source", metavar="IN", type=as_path)
    parser.add_argument("target", metavar="OUT", type=as_path)
    for option in options:
        of_type: Any = _TYPES.get(option, str)
        choices = ["float32", "bfloat16", "float16"] if option == "export_dtype" else None
        parser.add_argument(f"--{option}", type=of_type, choices=choices)
    return parser.parse_args(arguments)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _table(text: str) -> dict[str, Any]:
    try:
        value = parsed(text)
    except KeyTwice as error:
        raise argparse.ArgumentTypeError(f"{shortened(text)}: {error}") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'{shortened(text)} is not a table such as {{"n_layers": 2}}')
    return value


def _size(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*(KB|MB|GB|)", text.upper())
    if match is None or int(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a size such as 5GB or 500MB")
    return int(match[1]) * {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}[match[2]]


_TYPES = {"hf_assets_path": as_path, "max_shard_size": _size, "leave_out": _names, "overrides": _table}


def _import(plugins: Any, format_name: str, given: argparse.Namespace) -> None:
    from hekaton.checkpoint.runs.conversion import import_weights

    found = import_weights(
        plugins,
        given.source,
        given.target,
        format_name=format_name,
        model=given.model_name,
        flavor=given.model_flavor,
        leave_out=given.leave_out or (),
        overrides=given.overrides or {},
        progress=_progress,
    )
    if given.model_flavor is None:
        print(f"{given.source}: its config.json is that of {found}")
    print(f"wrote {given.target}: start from it with --checkpoint.initial_load_path {given.target}")


def _export(plugins: Any, format_name: str, given: argparse.Namespace) -> None:
    from hekaton.checkpoint.runs.conversion import export_weights
    from hekaton.weights.format import WriteOptions

    options = WriteOptions(assets=given.hf_assets_path)
    if given.max_shard_size is not None:
        options = WriteOptions(assets=given.hf_assets_path, max_shard_size=given.max_shard_size)
    found = export_weights(
        plugins,
        given.source,
        given.target,
        format_name=format_name,
        model=given.model_name,
        flavor=given.model_flavor,
        dtype=given.export_dtype,
        options=options,
        progress=_progress,
    )
    print(f"wrote {given.target}: {found}")
    if given.hf_assets_path is None:
        print("without a tokenizer: --hf_assets_path copies one")


def _to_torch(given: argparse.Namespace) -> None:
    from hekaton.checkpoint.runs.conversion import to_torch

    to_torch(given.source, given.target, progress=_progress)
    print(f"wrote {given.target}")


@contextlib.contextmanager
def _progress(tensors: Mapping[str, LazyTensor]) -> Iterator[Callable[[int], None]]:
    """A bar over the bytes, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=sum(tensor.nbytes for tensor in tensors.values()))
        yield lambda count: bar.advance(task, count)
