"""The section ``[flow_matching]``."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from hekaton.config import AtResume, SectionModel
from hekaton.config.base import AtResumeMeaning

Mathematics = AtResume("refusal")


class FlowMatchingSection(SectionModel):
    """How a model is trained by flow matching, in the latents of an autoencoder."""

    at_resume: ClassVar[AtResumeMeaning] = "notice"

    image_size: Annotated[int, Field(gt=0, le=4096, multiple_of=16), AtResume("notice")] = 256
    """Height and width of the images, in pixels. The autoencoder makes 8 by 8 pixels one latent, and the
    model sees 2 by 2 latents as one patch."""
    text_length: Annotated[int, Field(gt=0, le=4096), AtResume("notice")] = 256
    """Tokens of the text that the model attends to."""
    text_encoder: str = ""
    """Folder of a T5 encoder with its tokenizer, as `T5EncoderModel.from_pretrained` opens it. Set all three
    of `text_encoder`, `pooled_encoder` and `autoencoder`, or none: without them the encoders are those for
    trials, which need no files and know colours and words only."""
    pooled_encoder: str = ""
    """Folder of a CLIP text encoder with its tokenizer, as `CLIPTextModel.from_pretrained` opens it."""
    autoencoder: str = ""
    """Folder of an autoencoder, as diffusers' `AutoencoderKL.from_pretrained` opens it."""
    text_dropout: Annotated[float, Field(ge=0, le=1), Mathematics] = 0.447
    """How often a text encoder's output is that of an empty text, for each of the two encoders by itself: for
    classifier-free guidance. With 0.447 both are in a fifth of the rows."""
    logit_mean: Annotated[float, Field(ge=-20, le=20), Mathematics] = 0.0
    """Mean of the logit of the times (Esser et al., 2024, section 3.1): above 0 there is more noise."""
    logit_std: Annotated[float, Field(gt=0, le=20), Mathematics] = 1.0
    """Standard deviation of the logit of the times."""
    guidance: Annotated[float, Field(ge=0, le=100), Mathematics] = 3.5
    """The guidance scale that the model is given in training, where it takes one (dev)."""
