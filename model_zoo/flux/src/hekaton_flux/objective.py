"""Flow matching: the model learns the velocity on the straight line from an image's latents to noise (Lipman
et al., 2022, arXiv 2210.02747; Liu et al., 2022, arXiv 2209.03003)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from hekaton.errors import ConfigError
from hekaton.objective import Batch, BatchTensor, ObjectiveContext
from hekaton_flux.encoders import TrialEncoders
from hekaton_flux.model import SINUSOIDS, FluxConfig, pack, patch_positions, sinusoids
from hekaton_flux.settings import FlowMatchingSection

if TYPE_CHECKING:
    from hekaton.draws import Draw

PIXELS_PER_LATENT = 8


class FlowMatching:
    """Mean squared error of the velocity ``noise - latents`` at ``(1 - t) * latents + t * noise``.

    The logit of the time t is normal (Esser et al., 2024, equation 19). A batch has, for each row:

    - ``latents``, (channels / 4, image_size / 8, image_size / 8): with mean 0 and variance 1, and where
      the autoencoder has a distribution of them ``latents_std``, of the same shape;
    - ``text``, (text_length, text_dim), and ``pooled``, (pooled_dim,): of the two text encoders;
    - ``empty_text`` and ``empty_pooled``: the same of an empty text;
    - ``present``, (), bool: whether the row is an image and no padding; without it no row is padding.
    """

    weights: ClassVar[Mapping[str, float]] = {"flow_matching": 1.0}

    def __init__(self, section: FlowMatchingSection, context: ObjectiveContext) -> None:
        """:raises ConfigError: for a model of which the configuration is not that of Flux, or one that does
        not take what the encoders give."""
        if not isinstance(context.model, FluxConfig):
            raise ConfigError(
                "objective 'flow_matching' trains the model flux, not a model with a "
                f"{type(context.model).__name__}",
                hint='set model.name = "flux", or another training.objective',
            )
        check_sizes(section, context.model)
        self._section, self._model, self._dtype = section, context.model, context.dtype
        self._wide = torch.promote_types(context.dtype, torch.float32)
        self._latents = section.image_size // PIXELS_PER_LATENT
        self._patches = (self._latents // 2) ** 2

    def inputs(self, seq_len: int) -> Sequence[BatchTensor]:
        """The forward's; image and text are two sequences, and context parallel splits both."""
        model, dtype = self._model, self._dtype
        declared = [
            BatchTensor(
                name="img", shape=(self._patches, model.channels), dtype=dtype, sequence=0, first_stage=True
            ),
            BatchTensor(name="img_ids", shape=(self._patches, 3), dtype=torch.long, sequence=0),
            BatchTensor(
                name="txt", shape=(self._section.text_length, model.text_dim), dtype=dtype, sequence=0
            ),
            BatchTensor(name="timesteps", shape=(SINUSOIDS,), dtype=dtype),
            BatchTensor(name="y", shape=(model.pooled_dim,), dtype=dtype),
        ]
        if model.guidance:
            declared.append(BatchTensor(name="guidance", shape=(SINUSOIDS,), dtype=dtype))
        return declared

    def targets(self, seq_len: int) -> Sequence[BatchTensor]:
        """``velocity``, in float32 or better, and ``present``."""
        shape = (self._patches, self._model.channels)
        return (
            BatchTensor(name="velocity", shape=shape, dtype=self._wide, sequence=0),
            BatchTensor(name="present", shape=(), dtype=torch.bool),
        )

    def prepare(self, batch: Batch, draw: Draw) -> tuple[Batch, Batch]:
        """:raises ConfigError: for a batch of something else than encoded images and texts."""
        missing = [name for name in ("latents", "text", "pooled") if name not in batch]
        if missing:
            raise ConfigError(
                f"objective 'flow_matching' needs {', '.join(missing)}, and the rows of the dataset have "
                f"{', '.join(batch)}",
                hint="choose a training.dataset of images with texts",
            )
        section, wide = self._section, self._wide
        mean = batch["latents"].to(wide)
        if "latents_std" in batch:
            mean = mean + batch["latents_std"].to(wide) * draw.normal("latents", mean.shape[1:]).to(wide)
        latents = pack(mean)
        noise = draw.normal("noise", latents.shape[1:]).to(wide)
        logits = section.logit_mean + section.logit_std * draw.normal("time", ()).to(wide)
        times = logits.sigmoid()
        t = times[:, None, None]
        inputs = {
            "img": ((1 - t) * latents + t * noise).to(self._dtype),
            "img_ids": self._positions(len(latents), latents.device),
            "txt": self._dropped(batch, "text", draw),
            "timesteps": sinusoids(times).to(self._dtype),
            "y": self._dropped(batch, "pooled", draw),
        }
        if self._model.guidance:
            scales = torch.full_like(times, section.guidance)
            inputs["guidance"] = sinusoids(scales).to(self._dtype)
        present = batch.get("present", torch.ones_like(times, dtype=torch.bool))
        return inputs, {"velocity": noise - latents, "present": present}

    def count(self, targets: Batch) -> dict[str, torch.Tensor]:
        velocity, present = targets["velocity"], targets["present"]
        return {"flow_matching": present.sum() * velocity[0].numel()}

    def loss(self, outputs: torch.Tensor, targets: Batch) -> dict[str, torch.Tensor]:
        """:param outputs: (batch, patches, channels); :param targets: ``velocity``, of the same shape, and
        ``present``, (batch,)"""
        errors = (outputs.to(self._wide) - targets["velocity"]).square().sum(dim=(1, 2))
        return {"flow_matching": (errors * targets["present"]).sum()}

    def _positions(self, rows: int, device: torch.device) -> torch.Tensor:
        return patch_positions(self._latents, self._latents, device=device).expand(rows, -1, -1)

    def _dropped(self, batch: Batch, name: str, draw: Draw) -> torch.Tensor:
        """An encoding of the text, in some rows that of an empty one."""
        given, empty = batch[name], batch[f"empty_{name}"]
        dropped = draw.uniform(f"drop_{name}", ()) < self._section.text_dropout
        return torch.where(dropped.view(-1, *[1] * (given.dim() - 1)), empty, given).to(self._dtype)


def check_sizes(section: FlowMatchingSection, model: FluxConfig) -> None:
    """:raises ConfigError: for a model that does not take what the encoders for trials give. The sizes of
    other encoders are compared with the first batch."""
    if section.text_encoder or section.pooled_encoder or section.autoencoder:
        return
    sizes = TrialEncoders.sizes
    given = {
        "channels": 4 * sizes.latent_channels,
        "text_dim": sizes.text_dim,
        "pooled_dim": sizes.pooled_dim,
    }
    wrong = [
        f"{name} = {getattr(model, name)} (and not {size})"
        for name, size in given.items()
        if getattr(model, name) != size
    ]
    if wrong:
        raise ConfigError(
            f"the model has {', '.join(wrong)}, which the encoders for trials do not give",
            hint="name the folders of others: flow_matching.text_encoder, pooled_encoder and autoencoder",
        )


def flow_matching(section: Any, context: ObjectiveContext) -> FlowMatching:
    return FlowMatching(section, context)
