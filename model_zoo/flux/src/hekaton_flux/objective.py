"""Flow matching: the model learns the velocity on the straight line from an image's latents to noise (Lipman
et al., 2022, arXiv 2210.02747; Liu et al., 2022, arXiv 2209.03003)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from hekaton.errors import ConfigError
from hekaton.objective import Batch, BatchTensor, ObjectiveContext, Predict
from hekaton_flux.encoder_choice import frozen_encoders
from hekaton_flux.encoders import EncoderSizes, TrialEncoders
from hekaton_flux.images import Pixels
from hekaton_flux.model import SINUSOIDS, FluxConfig, pack
from hekaton_flux.sampling import PIXELS_PER_LATENT, ImageSampling, make_images, model_inputs, titled
from hekaton_flux.settings import FlowMatchingSection

if TYPE_CHECKING:
    from hekaton.draws import Draw

_PATCHES: dict[str, Any] = {"sequence": 0, "length_from": "flow_matching.image_size"}
PARTS = 8
"""How many times a validation looks at."""


class FlowMatching:
    """Mean squared error of the velocity ``noise - latents`` at ``(1 - t) * latents + t * noise``.

    The logit of the time t is normal (Esser et al., 2024, equation 19). A batch has, for each row:

    - ``latents``, (channels / 4, image_size / 8, image_size / 8): with mean 0 and variance 1, and where
      the autoencoder has a distribution of them ``latents_std``, of the same shape;
    - ``text``, (text_length, text_dim), and ``pooled``, (pooled_dim,): of the two text encoders;
    - ``empty_text`` and ``empty_pooled``: the same of an empty text;
    - ``present``, (), bool: whether the row is an image and no padding; without it no row is padding;
    - ``place``, (): the image's number among those of a validation; without it that of the row.
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
        self._device, self._dp = context.device, context.dims.dp
        self.validation: FlowMatching = self
        self._wide = torch.promote_types(context.dtype, torch.float32)
        self._latents = section.image_size // PIXELS_PER_LATENT
        self._patches = (self._latents // 2) ** 2

    def inputs(self, seq_len: int) -> Sequence[BatchTensor]:
        """The forward's; image and text are two sequences, and context parallel splits both."""
        model, dtype = self._model, self._dtype
        declared = [
            BatchTensor(
                name="img", shape=(self._patches, model.channels), dtype=dtype, first_stage=True, **_PATCHES
            ),
            BatchTensor(name="img_ids", shape=(self._patches, 3), dtype=torch.long, **_PATCHES),
            BatchTensor(
                name="txt",
                shape=(self._section.text_length, model.text_dim),
                dtype=dtype,
                sequence=0,
                length_from="flow_matching.text_length",
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
            BatchTensor(name="velocity", shape=shape, dtype=self._wide, **_PATCHES),
            BatchTensor(name="present", shape=(), dtype=torch.bool),
        )

    def prepare(self, batch: Batch, draw: Draw) -> tuple[Batch, Batch]:
        """:raises ConfigError: for a batch of something else than encoded images and texts, or of another
        model's encoders."""
        missing = [name for name in ("latents", "text", "pooled") if name not in batch]
        if missing:
            raise ConfigError(
                f"objective 'flow_matching' needs {', '.join(missing)}, and the rows of the dataset have "
                f"{', '.join(batch)}",
                hint="choose a training.dataset of images with texts",
            )
        check_encoder_sizes(_sizes(batch), self._model, hint=_OF_THE_MODEL)
        section, wide = self._section, self._wide
        mean = batch["latents"].to(wide)
        if "latents_std" in batch:
            mean = mean + batch["latents_std"].to(wide) * draw.normal("latents", mean.shape[1:]).to(wide)
        latents = pack(mean)
        noise = draw.normal("noise", latents.shape[1:]).to(wide)
        times = self._times(draw)
        t = times[:, None, None]
        inputs = model_inputs(
            self._model,
            img=(1 - t) * latents + t * noise,
            at=times,
            txt=self._text(batch, "text", draw),
            y=self._text(batch, "pooled", draw),
            side=(self._latents, self._latents),
            guidance=section.guidance,
            dtype=self._dtype,
        )
        present = batch.get("present", torch.ones_like(times, dtype=torch.bool))
        return inputs, {"velocity": noise - latents, "present": present}

    def _times(self, draw: Draw) -> torch.Tensor:
        """(rows,)"""
        logits = draw.normal("time", ()).to(self._wide)
        return (self._section.logit_mean + self._section.logit_std * logits).sigmoid()

    def _text(self, batch: Batch, name: str, draw: Draw) -> torch.Tensor:
        """An encoding of the text, in some rows that of an empty one."""
        given, empty = batch[name], batch[f"empty_{name}"]
        dropped = draw.uniform(f"drop_{name}", ()) < self._section.text_dropout
        return torch.where(dropped.view(-1, *[1] * (given.dim() - 1)), empty, given)

    def count(self, targets: Batch) -> dict[str, torch.Tensor]:
        velocity, present = targets["velocity"], targets["present"]
        return {"flow_matching": present.sum() * velocity[0].numel()}

    def loss(self, outputs: torch.Tensor, targets: Batch) -> dict[str, torch.Tensor]:
        """:param outputs: (batch, patches, channels); :param targets: ``velocity``, of the same shape, and
        ``present``, (batch,)"""
        errors = (outputs.to(self._wide) - targets["velocity"]).square().sum(dim=(1, 2))
        return {"flow_matching": (errors * targets["present"]).sum()}

    def images_due(self, step: int, *, last: bool) -> bool:
        freq = self._section.sample_freq
        return freq > 0 and (last or step % freq == 0)

    def images(self, predict: Predict) -> Mapping[str, Pixels]:
        """Images of the prompts of the section, from the same noise at every step."""
        section = self._section
        size = (section.image_size, section.image_size)
        sampling = ImageSampling(
            steps=section.sample_steps, guidance=section.sample_guidance, seed=0, size=size
        )
        made = make_images(
            predict, self._model, frozen_encoders(section), section.sample_prompts, sampling,
            device=self._device, dtype=self._dtype,
        )  # fmt: skip
        return titled(section.sample_prompts, made)


class AtFixedTimes(FlowMatching):
    """The same error with every text, at times that are the middles of equal parts of the time from image to
    noise: image by image the next one. The error at each of them is a term of its own. Noise and time of an
    image follow from its place in the validation, so that the loss does not depend on the size of batches."""

    weights: ClassVar[Mapping[str, float]] = {
        "flow_matching": 1.0,
        **{f"time_{(part + 0.5) / PARTS:.4f}": 0.0 for part in range(PARTS)},
    }

    def targets(self, seq_len: int) -> Sequence[BatchTensor]:
        return (*super().targets(seq_len), BatchTensor(name="part", shape=(), dtype=torch.long))

    def prepare(self, batch: Batch, draw: Draw) -> tuple[Batch, Batch]:
        draw = dataclasses.replace(draw, step=1, rows=self._places(batch, draw))
        inputs, targets = super().prepare(batch, draw)
        return inputs, {**targets, "part": self._parts(draw)}

    def count(self, targets: Batch) -> dict[str, torch.Tensor]:
        size = targets["velocity"][0].numel()
        present, parts = targets["present"], targets["part"]
        return self._terms(
            present.sum() * size, [(present & (parts == one)).sum() * size for one in range(PARTS)]
        )

    def loss(self, outputs: torch.Tensor, targets: Batch) -> dict[str, torch.Tensor]:
        errors = (outputs.to(self._wide) - targets["velocity"]).square().sum(dim=(1, 2)) * targets["present"]
        parts = targets["part"]
        return self._terms(errors.sum(), [(errors * (parts == one)).sum() for one in range(PARTS)])

    def _terms(self, whole: torch.Tensor, parts: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        return dict(zip(self.weights, (whole, *parts), strict=True))

    def _places(self, batch: Batch, draw: Draw) -> list[int]:
        """Which image of the validation each row is: images that are skipped keep their places."""
        if "place" in batch:
            found: list[int] = batch["place"].tolist()
            return found
        before = (draw.step - 1) * len(draw.rows) * self._dp
        return [before + row for row in draw.rows]

    def _parts(self, draw: Draw) -> torch.Tensor:
        """Which part of the time each image is at, (rows,)"""
        return torch.tensor([place % PARTS for place in draw.rows], device=draw.device)

    def _times(self, draw: Draw) -> torch.Tensor:
        return (self._parts(draw).to(self._wide) + 0.5) / PARTS

    def _text(self, batch: Batch, name: str, draw: Draw) -> torch.Tensor:
        return batch[name]


def check_sizes(section: FlowMatchingSection, model: FluxConfig) -> None:
    """:raises ConfigError: for a model that does not take what the encoders for trials give. The sizes of
    other encoders are compared with the first batch."""
    if section.encoded or section.text_encoder or section.pooled_encoder or section.autoencoder:
        return
    check_encoder_sizes(TrialEncoders.sizes, model, hint=_NAME_FOLDERS)


_NAME_FOLDERS = "name the folders of others: flow_matching.text_encoder, pooled_encoder and autoencoder"


def _sizes(batch: Batch) -> EncoderSizes:
    latents, text, pooled = (batch[name].shape for name in ("latents", "text", "pooled"))
    return EncoderSizes(latent_channels=latents[1], text_dim=text[2], pooled_dim=pooled[1])


_OF_THE_MODEL = "choose the encoders that the model takes, or set these sizes in model.overrides"


def check_encoder_sizes(sizes: EncoderSizes, model: FluxConfig, *, hint: str = "") -> None:
    """:raises ConfigError: for a model that does not take what the encoders give."""
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
        kind = "encoders for trials" if sizes == TrialEncoders.sizes else "encoders"
        raise ConfigError(f"the model has {', '.join(wrong)}, which the {kind} do not give", hint=hint)


def flow_matching(section: Any, context: ObjectiveContext) -> FlowMatching:
    """What trains, with what validates it."""
    built = FlowMatching(section, context)
    built.validation = AtFixedTimes(section, context)
    return built
