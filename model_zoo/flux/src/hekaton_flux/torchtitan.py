"""Fields and sections of torchtitan's run files for Flux: what takes the place of each."""

from __future__ import annotations

from typing import Annotated

from hekaton.config import SectionModel
from hekaton.config.base import NoEffect, Renamed

_GENERATE = NoEffect("'hekaton flux generate' makes images, with options of its own")


class TrainingFields(SectionModel):
    """Of ``[training]``."""

    img_size: Annotated[int | None, Renamed("flow_matching.image_size")] = None
    """Earlier name of `flow_matching.image_size`."""
    classifier_free_guidance_prob: Annotated[float | None, Renamed("flow_matching.text_dropout")] = None
    """Earlier name of `flow_matching.text_dropout`."""
    test_mode: Annotated[
        bool, NoEffect("without the folders of encoders in [flow_matching] those for trials are used")
    ] = False
    """Encoders with random weights."""


class ValidationFields(SectionModel):
    """Of ``[validation]``."""

    enable_classifier_free_guidance: Annotated[
        bool, NoEffect("flow_matching.sample_guidance = 1 makes images without guidance")
    ] = False
    """Sample with guidance."""
    classifier_free_guidance_scale: Annotated[float | None, Renamed("flow_matching.sample_guidance")] = None
    """Earlier name of `flow_matching.sample_guidance`."""
    denoising_steps: Annotated[int | None, Renamed("flow_matching.sample_steps")] = None
    """Earlier name of `flow_matching.sample_steps`."""
    eval_freq: Annotated[int | None, NoEffect("validation.freq says it")] = None
    """Steps from one validation to the next."""
    save_img_count: Annotated[
        int, NoEffect("flow_matching.sample_freq and sample_prompts say which images are made")
    ] = 1
    """Images that are sampled."""
    save_img_folder: Annotated[str, NoEffect("loggers show the images, such as tensorboard")] = "img"
    """Folder of these images."""
    all_timesteps: Annotated[bool, NoEffect("each image has one of eight times, in turn")] = False
    """Every time for every image."""


class EncoderSection(SectionModel):
    """The frozen encoders, by torchtitan's names."""

    t5_encoder: Annotated[str | None, Renamed("flow_matching.text_encoder")] = None
    """Earlier name of `flow_matching.text_encoder`."""
    clip_encoder: Annotated[str | None, Renamed("flow_matching.pooled_encoder")] = None
    """Earlier name of `flow_matching.pooled_encoder`."""
    autoencoder_path: Annotated[str | None, Renamed("flow_matching.autoencoder")] = None
    """Earlier name of `flow_matching.autoencoder`."""
    max_t5_encoding_len: Annotated[int | None, Renamed("flow_matching.text_length")] = None
    """Earlier name of `flow_matching.text_length`."""


class InferenceSection(SectionModel):
    """Making images after training, by torchtitan's names."""

    save_img_folder: Annotated[str, _GENERATE] = "inference_results"
    """Folder of the images."""
    prompts_path: Annotated[str, _GENERATE] = ""
    """File of prompts."""
    prompt: Annotated[str, _GENERATE] = ""
    """A prompt."""
    local_batch_size: Annotated[int, _GENERATE] = 2
    """Images that are made together."""
    img_size: Annotated[int, _GENERATE] = 256
    """Height and width of the images."""
