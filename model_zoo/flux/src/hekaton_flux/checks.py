"""Rules of runs that train Flux."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hekaton.errors import HekatonError

if TYPE_CHECKING:
    from hekaton.rules import Run


def flow_matching_holds_together(run: Run) -> Iterator[HekatonError | str]:
    """Guidance goes to a model that takes it, and images have a logger and an autoencoder."""
    if run.config.model.name != "flux" or isinstance(run.meta, HekatonError):
        return
    section: Any = run.config.section("flow_matching")
    if run.is_set("flow_matching.guidance") and not run.meta.config.guidance:
        yield run.violation(
            f"flux {run.config.model.flavor} takes no guidance scale, and flow_matching.guidance is set",
            "flow_matching.guidance",
            "model.flavor",
            hint='leave it out, or choose model.flavor = "dev"',
        )
    yield from _images_are_encoded(run, section)
    if not section.sample_freq:
        return
    if not section.sample_prompts:
        yield run.violation(
            "flow_matching.sample_freq makes images, and sample_prompts is empty",
            "flow_matching.sample_prompts",
            "flow_matching.sample_freq",
        )
    if run.config.parallelism.pipeline_parallel_degree > 1:
        yield run.violation(
            "images cannot be made in a pipeline", "flow_matching.sample_freq", hint="set sample_freq = 0"
        )
    if "tensorboard" not in run.config.logger_names():
        yield (
            "flow_matching.sample_freq: the images are seen only with a logger that takes them, such as "
            "metrics.enable_tensorboard = true"
        )
    if section.encoded and run.here:
        yield from _prompts_are_encoded(run, section)


def _images_are_encoded(run: Run, section: Any) -> Iterator[HekatonError]:
    """With the encoders' outputs in their place there is nothing that encodes other images."""
    if not section.encoded:
        return
    used = {"training.dataset": run.config.training.dataset}
    if run.config.validation.enable and not run.config.validation.sets:
        used["validation.dataset"] = run.config.validation.dataset
    for field, name in used.items():
        if name not in ("encoded_images", "mixture"):
            yield run.violation(
                f"the images of dataset '{name}' are to be encoded, and flow_matching.encoded takes the "
                "place of the encoders",
                field,
                "flow_matching.encoded",
                hint=f'set {field} = "encoded_images"',
            )


def _prompts_are_encoded(run: Run, section: Any) -> Iterator[HekatonError]:
    """A run without encoders makes images of texts that were encoded."""
    from pathlib import Path

    from hekaton_flux.encoders import TrialEncoders
    from hekaton_flux.manifest import read_manifest

    try:
        manifest = read_manifest(Path(section.encoded))
    except HekatonError:
        return  # which the encoder's check says
    lost = [prompt for prompt in section.sample_prompts if prompt not in manifest.texts]
    if lost:
        yield run.violation(
            f"'{section.encoded}' has no encoding of the prompt '{lost[0]}'",
            "flow_matching.sample_prompts",
            hint="run hekaton flux preprocess with these prompts",
        )
    if manifest.encoders != TrialEncoders.fingerprint and not section.autoencoder:
        yield run.violation(
            "flow_matching.sample_freq makes images, for which an autoencoder is needed",
            "flow_matching.sample_freq",
            hint="set flow_matching.autoencoder",
        )
