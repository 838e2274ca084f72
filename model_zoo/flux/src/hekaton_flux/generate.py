"""``hekaton flux generate``: images of texts, by a trained model."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hekaton.cli import plugin_flags, trained_model
from hekaton.cli.arguments import MOST_SEED, VerbParser, as_path, check_numbers
from hekaton.errors import ConfigError
from hekaton.urls import is_url

if TYPE_CHECKING:
    from hekaton.loaded_model import LoadedModel
    from hekaton.plugins import Plugins
    from hekaton_flux.settings import FlowMatchingSection

USAGE = """\
usage: hekaton flux generate --checkpoint PATH --prompt TEXT --out FILE.png [options]
       hekaton flux generate --hf PATH --prompt TEXT --out FILE.png [options]

Make an image of each prompt, on one device, and write them side by side as a PNG.

  --checkpoint PATH        a run's folder, of which the newest good step is read, or one step folder
  --hf PATH                a folder as FLUX.1 is published in, with transformer, text_encoder, text_encoder_2,
                           tokenizer, tokenizer_2 and vae in it, or the folder of a transformer alone
  --prompt TEXT            the text; may be given several times
  --out FILE.png           where to write
  --steps N                evaluations of the velocity; 30 by default, 4 for a model that was trained for few
  --guidance G             the guidance scale; by default 3.5 for a model that takes one and 3 for one that
                           was trained with dropped texts. A model with neither, as schnell, takes none
  --seed N                 of the noise; 0 by default
  --count N                images of each prompt; 1 by default
  --size WIDTHxHEIGHT      in pixels, multiples of 16; by default that of the run, or 1024x1024
  --batch_size N           images that are made together; 8 by default
  --text_encoder FOLDER    the encoders, where they are not those of the run or beside the transformer;
  --pooled_encoder FOLDER  also --autoencoder PATH, and --text_length N, tokens of the text
  --device DEVICE          cpu or cuda; by default CUDA where there is a device
  --dtype DTYPE            float32, bfloat16 or float64; by default as the weights are stored
  --plugins.load NAME      also load this module, or this .py file, as a plugin
  --plugins.disable NAME   leave this plugin out"""

_LIMITS = {
    "count": (1, 2**12), "batch_size": (1, 2**12), "steps": (1, 10_000), "text_length": (1, 2**12),
    "seed": (0, MOST_SEED),
}  # fmt: skip
_MOST_PIXELS = 2**28
"""Of all images of a file together, which take 3 bytes each, twice."""
_ENCODERS = ("text_encoder", "pooled_encoder", "autoencoder")
_PUBLISHED = {"text_encoder": "text_encoder_2", "pooled_encoder": "text_encoder", "autoencoder": "vae"}
"""Where they are in a folder that FLUX.1 is published in."""
_SCHNELL_LENGTH = 256
"""Tokens of a text of schnell, and twice so many of dev."""


def run(arguments: list[str]) -> int:
    """Run ``hekaton flux generate ARGUMENTS``."""
    flags, words = plugin_flags(arguments)
    if not words or set(words) & {"-h", "--help"}:
        print(USAGE)
        return 0
    given = _parsed(words)
    plugins = flags.discover()
    plugins.check()
    from hekaton.metrics import set_up_logging

    set_up_logging(0, 1)
    began = time.monotonic()
    loaded, section = _loaded(given, plugins)
    count = _make(loaded, section, given)
    print(f"{given.out}: {count:,} image(s) by {loaded.source}, {time.monotonic() - began:.1f} s")
    return 0


def _parsed(words: list[str]) -> argparse.Namespace:
    parser = VerbParser("flux generate")
    trained_model.add_arguments(parser, of_text=False)
    parser.add_argument("--prompt", action="append", required=True)
    parser.add_argument("--out", type=as_path, required=True)
    for name, kind, default in (
        ("steps", int, None), ("guidance", float, None), ("seed", int, 0), ("count", int, 1),
        ("size", str, None), ("batch_size", int, 8), ("text_length", int, None),
        *((name, str, None) for name in _ENCODERS),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=default)
    given = parser.parse_args(words)
    check_numbers(given, _LIMITS)
    if given.guidance is not None and not 0 <= given.guidance <= 100:
        raise ConfigError(f"--guidance {given.guidance:g}: a scale from 0 to 100 was expected")
    if given.out.suffix.lower() != ".png":
        raise ConfigError(f"--out {given.out}: the name of a .png file was expected")
    if given.out.is_dir():
        raise ConfigError(f"--out {given.out}: it is a folder, the name of a .png file was expected")
    if not given.out.absolute().parent.is_dir():
        raise ConfigError(f"--out {given.out}: there is no folder '{given.out.absolute().parent}'")
    if given.size is not None or given.hf is not None:
        from hekaton_flux.sampling import check_size

        check_size(size := _size(given.size, None))
        _check_grid(given, size)
    return given


def _check_grid(given: argparse.Namespace, size: tuple[int, int]) -> None:
    """:raises ConfigError: when the images side by side are larger than a file is made."""
    height, width = size
    count, most = len(given.prompt) * given.count, max(1, _MOST_PIXELS // (height * width))
    if count > most:
        raise ConfigError(
            f"{count:,} images of {width}x{height} pixels are too many for one file: at most {most:,}",
            hint="give a smaller --count, or fewer prompts, in several calls",
        )


def _loaded(given: argparse.Namespace, plugins: Plugins) -> tuple[LoadedModel, FlowMatchingSection | None]:
    """The model, and of a run how it was trained."""
    from hekaton.checkpoint.tensors.model_only import open_model
    from hekaton.config.job import config_of
    from hekaton_flux.model import FluxConfig

    told = trained_model.said(given)
    if is_url(path := given.checkpoint or given.hf):
        raise ConfigError(f"'{path}' is a URL", hint="copy the model to this machine, and give its folder")
    if given.hf is not None and (inside := as_path(given.hf) / "transformer").is_dir():
        told["hf"] = str(inside)
    loaded = trained_model.load(plugins, **told)
    section: Any = None
    if given.checkpoint is not None:
        content = open_model(Path(loaded.source)).manifest.describe.get("config", {})
        if "flow_matching" in content:
            section = config_of(plugins, content).section("flow_matching")
    if not isinstance(loaded.config, FluxConfig):
        raise ConfigError(
            f"{loaded.source} is of the model '{loaded.spec.name}', which makes no images",
            hint="hekaton generate",
        )
    return loaded, section


def _make(loaded: LoadedModel, section: FlowMatchingSection | None, given: argparse.Namespace) -> int:
    import torch
    from PIL import Image

    from hekaton_flux.encoder_choice import frozen_encoders
    from hekaton_flux.objective import check_encoder_sizes
    from hekaton_flux.sampling import ImageSampling, grid, make_images

    guidance = _guidance(loaded, section, given.guidance)
    steps = given.steps or (4 if section is None and not loaded.config.guidance else 30)
    sampling = ImageSampling(steps=steps, guidance=guidance, seed=given.seed, size=_size(given.size, section))
    _check_grid(given, sampling.size)
    encoders = frozen_encoders(_encoders(loaded, section, given))
    check_encoder_sizes(encoders.sizes, loaded.config)
    first = next(loaded.model.parameters())
    prompts = [prompt for prompt in given.prompt for _ in range(given.count)]
    with torch.inference_mode():
        images = list(
            make_images(
                lambda inputs: loaded.model(**inputs), loaded.config, encoders, prompts, sampling,
                device=first.device, dtype=first.dtype, rows=given.batch_size,
            )
        )  # fmt: skip
    columns = given.count if given.count > 1 and len(given.prompt) > 1 else _columns(len(images))
    try:
        Image.fromarray(grid(images, columns=columns)).save(given.out)
    except OSError as e:
        raise ConfigError(f"cannot write '{given.out}': {e.strerror or e}") from e
    return len(images)


def _guidance(loaded: LoadedModel, section: FlowMatchingSection | None, given: float | None) -> float:
    """:raises ConfigError: for a scale with which the model can do nothing."""
    if loaded.config.guidance:
        return 3.5 if given is None else given
    if section is not None and section.text_dropout > 0:
        return 3.0 if given is None else given
    if given is not None and given != 1:
        raise ConfigError(
            f"--guidance {given:g}: the model of {loaded.source} takes no guidance scale, and was not "
            "trained with dropped texts, as schnell",
            hint="leave out --guidance",
        )
    return 1.0


def _size(given: str | None, section: FlowMatchingSection | None) -> tuple[int, int]:
    """Height and width."""
    if given is None:
        return (1024, 1024) if section is None else (section.image_size, section.image_size)
    width, by, height = given.partition("x")
    if not (by and width.isdecimal() and height.isdecimal() and len(given) < 16):
        raise ConfigError(f"--size {given}: WIDTHxHEIGHT was expected, such as 1024x768")
    return int(height), int(width)


def _encoders(
    loaded: LoadedModel, section: FlowMatchingSection | None, given: argparse.Namespace
) -> FlowMatchingSection:
    """The section that names the encoders."""
    from hekaton_flux.settings import FlowMatchingSection

    named = {name: getattr(given, name) for name in _ENCODERS if getattr(given, name) is not None}
    if section is None:
        around = Path(loaded.source).parent
        if (around / "model_index.json").is_file():
            named = {name: str(around / inside) for name, inside in _PUBLISHED.items()} | named
        if missing := [f"--{name}" for name in _ENCODERS if name not in named]:
            raise ConfigError(
                f"the encoders are missing: there are none beside {loaded.source}",
                hint=f"say {', '.join(missing)}",
            )
        length = given.text_length or (2 if loaded.config.guidance else 1) * _SCHNELL_LENGTH
        return FlowMatchingSection(text_length=length, **named)
    before = section.model_dump() | ({"encoded": ""} if named or not section.encoded else {})
    if given.text_length is not None:
        before["text_length"] = given.text_length
    return FlowMatchingSection.model_validate(before | named)


def _columns(count: int) -> int:
    """Of a grid that is about square, and rather wide."""
    return next(columns for columns in range(1, count + 1) if columns * columns >= count)
