"""Train Flux's debug model on drawn shapes, and judge its images by colour and shape.

    python benchmarks/flux_samples.py --folder samples_run                    train, then judge
    python benchmarks/flux_samples.py --folder samples_run --judge            judge what is there
    python benchmarks/flux_samples.py --folder samples_run --grid samples.png and write a grid of images

The judge looks at pixels alone. Prints the validation loss at the first and the last validation, how many
images of each prompt are right, and the seconds of wall time and of CPU time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hekaton_flux.images import BACKGROUND, COLORS, SHAPES

FILE = Path(__file__).parents[1] / "model_zoo/flux/train_configs/debug_model.toml"
COUNT = 32
SIDE, WORDS = 64, 4
"""Pixels and words, as in the run file."""
FAINT = 0.25
"""Shares of the colour below it are background."""
SQUARE, TRIANGLE = 0.9, 0.74
"""A square fills its box, a disc 0.785 of it (pi / 4), a triangle half, and of blocks of 8 pixels about two
thirds: the limits lie between."""
EMPTY = 0.02
"""Of an image: what covers less is nothing."""


def judge(pixels: npt.NDArray[np.uint8]) -> tuple[str, str]:
    """Colour and shape of what is on the dark background.

    Of each pixel the share of the colour follows from its place on the line from background to colour. The
    shape is told by how much of the box around it it fills; the sides of the box are sums of the largest
    shares of its columns and rows, so that blurred edges count in part.

    :param pixels: (height, width, 3)
    """
    background = np.array(BACKGROUND, np.float64)
    away = pixels.astype(np.float64) - background
    distance = np.sqrt((away**2).sum(axis=-1))
    strong = distance >= 0.7 * distance.max()
    if distance.max() < 60:
        return "nothing", "nothing"
    mean = away[strong].mean(axis=0)
    color = min(COLORS, key=lambda name: float(((mean - (np.array(COLORS[name]) - background)) ** 2).sum()))
    line = np.array(COLORS[color]) - background
    share = np.clip(away @ line / (line @ line), 0, 1)
    share[share < FAINT] = 0
    if share.mean() < EMPTY:
        return color, "nothing"
    box = share.max(axis=0).sum() * share.max(axis=1).sum()
    fill = share.sum() / box
    return color, "square" if fill >= SQUARE else "triangle" if fill < TRIANGLE else "circle"


def train(folder: Path, steps: int | None) -> None:
    words = ["train", str(FILE), "--job.dump_folder", str(folder)]
    words += ["--training.steps", str(steps)] if steps else []
    subprocess.run([sys.executable, "-m", "hekaton", *words], check=True)


def validation_losses(folder: Path) -> list[tuple[int, float]]:
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [(line["step"], line["validation_loss"]) for line in lines if "validation_loss" in line]


def images_of(
    folder: Path, prompts: list[str], count: int, guidance: float
) -> dict[str, list[npt.NDArray[np.uint8]]]:
    """``count`` images of each prompt, as ``hekaton flux generate`` makes them."""
    import torch

    from hekaton.loading import load_checkpoint
    from hekaton.plugins import Plugins
    from hekaton_flux.encoders import TrialEncoders
    from hekaton_flux.sampling import ImageSampling, make_images

    cpu = torch.device("cpu")
    loaded = load_checkpoint(str(folder), Plugins.discover(), device=cpu)
    sampling = ImageSampling(steps=30, guidance=guidance, seed=0, size=(SIDE, SIDE))
    with torch.inference_mode():
        return {
            prompt: list(
                make_images(
                    lambda inputs: loaded.model(**inputs), loaded.config, TrialEncoders(WORDS),
                    [prompt] * count, sampling, device=cpu, dtype=torch.float32, rows=count,
                )
            )
            for prompt in prompts
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument(
        "--all", action="store_true", help="every colour and shape, and not a red circle alone"
    )
    parser.add_argument("--grid", type=Path)
    given = parser.parse_args()
    began = time.monotonic()
    if not given.judge:
        train(given.folder, given.steps)
        (first, before), *_, (last, after) = validation_losses(given.folder)
        print(f"validation loss {before:.4f} at step {first}, {after:.4f} at step {last}")
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(f"training: {time.monotonic() - began:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of CPU")
    prompts = (
        [f"a {color} {shape}" for color in COLORS for shape in SHAPES] if given.all else ["a red circle"]
    )
    images = images_of(given.folder, prompts, given.count, given.guidance)
    for prompt, some in images.items():
        judged = Counter(f"a {color} {shape}" for color, shape in map(judge, some))
        print(f"{prompt}: {judged[prompt]} of {len(some)} right; {dict(judged.most_common(4))}")
    if given.grid:
        write_grid(given.folder, given.grid, given.guidance)


def write_grid(folder: Path, path: Path, guidance: float) -> None:
    """Four images of each of six prompts, a prompt in each column of the docs' picture."""
    from PIL import Image

    from hekaton_flux.sampling import grid

    prompts = [
        "a red circle", "a green square", "a blue triangle", "a yellow circle", "a purple square",
        "a white triangle",
    ]  # fmt: skip
    images = images_of(folder, prompts, 4, guidance)
    in_rows = [images[prompt][number] for number in range(4) for prompt in prompts]
    Image.fromarray(grid(in_rows, columns=len(prompts))).quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    main()
