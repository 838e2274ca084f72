"""Images from noise: Euler steps along the velocity, with guidance (Esser et al., 2024; the schedule is that
of diffusers' ``FluxPipeline``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hekaton.draws import Draw
from hekaton.errors import ConfigError
from hekaton_flux.encoders import FrozenEncoders
from hekaton_flux.images import Pixels
from hekaton_flux.model import FluxConfig, patch_positions, sinusoids, unpack

PIXELS_PER_LATENT = 8
_SHIFTS = ((256, 0.5), (4096, 1.15))
"""Patches, and the logarithm of the shift for so many (``calculate_shift`` of diffusers)."""


def times(steps: int, patches: int, *, shifted: bool) -> torch.Tensor:
    """From noise to image: (steps + 1,), float64, from 1 to 0.

    :param shifted: give more steps to noise, the more the more patches an image has, as for dev.
    """
    even = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
    if shifted:
        (few, low), (many, high) = _SHIFTS
        factor = math.exp(low + (patches - few) * (high - low) / (many - few))
        even = factor / (factor + 1 / even - 1)
    return torch.cat((even, even.new_zeros(1)))


def model_inputs(
    config: FluxConfig,
    *,
    img: torch.Tensor,
    at: torch.Tensor,
    txt: torch.Tensor,
    y: torch.Tensor,
    side: tuple[int, int],
    guidance: float,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """What the model's forward takes.

    :param img: (rows, patches, channels); :param at: (rows,), the times; :param txt: (rows, text, text_dim);
    :param y: (rows, pooled_dim).
    :param side: height and width of the latents.
    :param guidance: the scale, for a model that is given it.
    """
    inputs = {
        "img": img.to(dtype),
        "img_ids": patch_positions(*side, device=img.device).expand(len(img), -1, -1),
        "txt": txt.to(dtype),
        "timesteps": sinusoids(at).to(dtype),
        "y": y.to(dtype),
    }
    if config.guidance:
        inputs["guidance"] = sinusoids(torch.full_like(at, guidance)).to(dtype)
    return inputs


@dataclass(frozen=True, kw_only=True)
class ImageSampling:
    """How images are made.

    :param steps: evaluations of the velocity.
    :param guidance: the scale that the model is given, where it takes one. For others the velocity is
        ``empty + guidance * (prompt - empty)`` of those for the prompt and for an empty text (Ho and
        Salimans, 2022); 1 leaves the empty text out.
    :param seed: the same seed, prompt and place give the same image.
    :param size: height and width, in pixels.
    """

    steps: int
    guidance: float
    seed: int
    size: tuple[int, int]

    def __post_init__(self) -> None:
        """:raises ConfigError: for what no image can be made with."""
        if self.steps < 1:
            raise ConfigError(f"steps = {self.steps}: at least 1 is needed")
        if not 0 <= self.guidance <= 100:
            raise ConfigError(f"guidance = {self.guidance:g}: a scale from 0 to 100 was expected")
        check_size(self.size)


def check_size(size: tuple[int, int]) -> None:
    """:raises ConfigError: for a height or width that no image has."""
    wrong = next((side for side in size if side % 16 or not 0 < side <= 4096), None)
    if wrong is not None:
        raise ConfigError(
            f"an image side of {wrong} pixels: it must be a multiple of 16, and at most 4096",
            hint=f"the nearest is {min(4096, max(16, round(wrong / 16) * 16))}",
        )


def make_images(
    velocity: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    config: FluxConfig,
    encoders: FrozenEncoders,
    prompts: Sequence[str],
    sampling: ImageSampling,
    *,
    device: torch.device,
    dtype: torch.dtype,
    rows: int = 8,
) -> Iterator[Pixels]:
    """An image for each prompt, (height, width, 3).

    What is made does not depend on ``rows``, rounding apart: noise is drawn for the place of the prompt.

    :param velocity: the model, called with its inputs.
    :param dtype: what the model computes in; latents are kept in float32.
    :param rows: prompts that pass through the model together; with an empty text for each they are twice so
        many.
    """
    side = (sampling.size[0] // PIXELS_PER_LATENT, sampling.size[1] // PIXELS_PER_LATENT)
    for first in range(0, len(prompts), rows):
        places = range(first, min(first + rows, len(prompts)))
        latents = _latents(
            velocity, config, encoders, [prompts[place] for place in places], places, sampling,
            side=side, device=device, dtype=dtype,
        )  # fmt: skip
        if not bool(latents.isfinite().all()):
            raise ConfigError(
                "the model's velocities are not finite", hint="its weights are, or its dtype overflows"
            )
        yield from (encoders.pixels(one.numpy()) for one in latents)


def _latents(
    velocity: Callable[[dict[str, torch.Tensor]], torch.Tensor],
    config: FluxConfig,
    encoders: FrozenEncoders,
    prompts: Sequence[str],
    places: Sequence[int],
    sampling: ImageSampling,
    *,
    side: tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """(rows, latent_channels, height / 8, width / 8), float32, on the CPU."""
    patches = side[0] // 2 * (side[1] // 2)
    draw = Draw(seed=sampling.seed, step=0, rows=places, device=device, purpose="images")
    img = draw.normal("noise", (patches, config.channels))
    given = {text: _text(encoders, text, device) for text in {*prompts, ""}}
    with_empty = not config.guidance and sampling.guidance != 1
    texts = [*prompts, *([""] * len(prompts) if with_empty else [])]
    txt = torch.stack([given[text][0] for text in texts])
    y = torch.stack([given[text][1] for text in texts])
    schedule = times(sampling.steps, patches, shifted=config.guidance)
    for now, then in zip(schedule[:-1].tolist(), schedule[1:].tolist(), strict=True):
        both = torch.cat((img, img)) if with_empty else img
        inputs = model_inputs(
            config, img=both, at=both.new_full((len(both),), now), txt=txt, y=y, side=side,
            guidance=sampling.guidance, dtype=dtype,
        )  # fmt: skip
        found = velocity(inputs).float()
        if with_empty:
            of_prompt, of_empty = found.chunk(2)
            found = of_empty + sampling.guidance * (of_prompt - of_empty)
        img = img + (then - now) * found
    return unpack(img, *side).cpu()


def _text(encoders: FrozenEncoders, text: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    states, pooled = encoders.text(text)
    return torch.from_numpy(states).to(device), torch.from_numpy(pooled).to(device)


def grid(images: Sequence[Pixels], *, columns: int, gap: int = 2) -> Pixels:
    """Images of one size side by side, row by row."""
    height, width, _ = images[0].shape
    rows = -(-len(images) // columns)
    whole = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, image in enumerate(images):
        top, left = number // columns * (height + gap), number % columns * (width + gap)
        whole[top : top + height, left : left + width] = image
    return whole


def titled(prompts: Sequence[str], images: Iterator[Pixels]) -> Mapping[str, Pixels]:
    """The images of a run by their prompts, each once."""
    return {f"samples/{prompt}": image for prompt, image in zip(prompts, images, strict=True)}
