"""The section ``[flow_matching]``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hekaton.config import AtResume, SectionModel
from hekaton.config.base import AtResumeMeaning, MayDiffer, OnlyWith, PathField

Mathematics = AtResume("refusal")
SameContent = MayDiffer("the content of the files is compared")


class FlowMatchingSection(SectionModel):
    """How a model is trained by flow matching, in the latents of an autoencoder."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    image_size: Annotated[int, Field(gt=0, le=4096, multiple_of=16), AtResume("notice")] = 256
    """Height and width of the images, in pixels. The autoencoder makes 8 by 8 pixels one latent, and the
    model sees 2 by 2 latents as one patch."""
    smaller_images: Annotated[Literal["skip", "enlarge"], Mathematics] = "skip"
    """What becomes of images in files with a side of fewer than ``image_size`` pixels. All others are scaled
    until their shorter side has so many, and cut to the square in their middle."""
    max_bad_images: Annotated[int, Field(ge=0, le=2**31), AtResume("nothing")] = 0
    """Images of a dataset that cannot be read, have no caption or are smaller are skipped and shown up to
    this number of them, by each process that reads, and are an error above it."""
    text_length: Annotated[int, Field(gt=0, le=4096), AtResume("notice")] = 256
    """Tokens of the text that the model attends to."""
    text_encoder: Annotated[PathField, SameContent] = ""
    """Folder of a T5 encoder with its tokenizer, as `T5EncoderModel.from_pretrained` opens it. Set all three
    of `text_encoder`, `pooled_encoder` and `autoencoder`, or none: without them the encoders are those for
    trials, which need no files and know colours and words only."""
    pooled_encoder: Annotated[PathField, SameContent] = ""
    """Folder of a CLIP text encoder with its tokenizer, as `CLIPTextModel.from_pretrained` opens it."""
    autoencoder: Annotated[PathField, SameContent] = ""
    """Folder of an autoencoder, as diffusers' `AutoencoderKL.from_pretrained` opens it, or the published
    `ae.safetensors`."""
    encoded: Annotated[PathField, SameContent] = ""
    """Folder that `hekaton flux preprocess` wrote: its encodings take the place of the encoders, which are
    not opened. Its images are the dataset `encoded_images`. Beside it `autoencoder` is only for the images
    that `sample_freq` makes."""
    text_dropout: Annotated[float, Field(ge=0, le=1), Mathematics] = 0.447
    """How often a text encoder's output is that of an empty text, for each of the two encoders by itself: for
    classifier-free guidance. With 0.447 both are in a fifth of the rows."""
    logit_mean: Annotated[float, Field(ge=-20, le=20), Mathematics] = 0.0
    """Mean of the logit of the times (Esser et al., 2024, section 3.1): above 0 there is more noise."""
    logit_std: Annotated[float, Field(gt=0, le=20), Mathematics] = 1.0
    """Standard deviation of the logit of the times."""
    guidance: Annotated[float, Field(ge=0, le=100), Mathematics] = 3.5
    """The guidance scale that the model is given in training, where it takes one (dev)."""
    sample_freq: Annotated[int, Field(ge=0, le=2**31), AtResume("nothing")] = 0
    """Steps from one time to the next at which the run makes images of `sample_prompts`, and after the last:
    for loggers that take images, such as `tensorboard`. 0 makes none."""
    sample_prompts: Annotated[list[str], OnlyWith("sample_freq", above=0), AtResume("nothing")] = Field(
        default_factory=lambda: ["a red circle", "a green square", "a blue triangle", "a yellow circle"]
    )
    """The texts of these images, one image each."""
    sample_steps: Annotated[
        int, Field(gt=0, le=10_000), OnlyWith("sample_freq", above=0), AtResume("nothing")
    ] = 30
    """Evaluations of the velocity for each of these images; twice so many with guidance by an empty text."""
    sample_guidance: Annotated[
        float, Field(ge=0, le=100), OnlyWith("sample_freq", above=0), AtResume("nothing")
    ] = 3.0
    """Guidance scale of these images. A model that takes a scale is given it; for others, trained with
    `text_dropout`, it is how far the velocity goes from that of an empty text to that of the prompt; 1 is
    without guidance."""
