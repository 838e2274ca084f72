"""Encoding a dataset on several processes: FSDP shards the encoders, and the processes share out the images.

With sharded encoders all processes call them equally often: one that has no image left encodes an empty one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hekaton_flux.decoding import Unusable
from hekaton_flux.images import CaptionedImage, EncodedImage, StoredImage
from hekaton_flux.pretrained import PretrainedEncoders
from hekaton_flux.rows import ImageEncoder


def shard(encoders: PretrainedEncoders, device: torch.device) -> None:
    """Shard the text encoders over all processes, a layer at a time. The autoencoder has a hundredth of their
    parameters and is whole on each."""
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for model in encoders.of_texts:
        for layer in _layers(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules."""
    for child in module.children():
        yield from child if isinstance(child, nn.ModuleList) else _layers(child)


def encoded_together(documents: Sequence[Any], images: ImageEncoder) -> list[EncodedImage]:
    """The images that can be used, in their order, on the first process; none on the others.

    :param documents: those of this process, which are every n-th of all that are encoded now.
    :raises DataError: on all processes, for more bad images than the section lets pass.
    """
    decoded = [_decoded(one, images) for one in documents]
    ranks, bad = dist.get_world_size(), [one for one in decoded if isinstance(one, tuple)]
    known: list[Any] = [None] * ranks
    dist.all_gather_object(known, (len(decoded), bad))
    for image, reason in sorted(one for _, its in known for one in its):
        images.skip(image, reason)
    size = images.section.image_size
    empty = CaptionedImage(np.zeros((size, size, 3), np.uint8), "")
    mine: list[EncodedImage | None] = []
    for turn in range(max(count for count, _ in known)):
        one = decoded[turn] if turn < len(decoded) else None
        if isinstance(one, EncodedImage):
            images.of(empty)
            mine.append(one)
        else:
            found = images.of(one if isinstance(one, CaptionedImage) else empty)
            mine.append(found if isinstance(one, CaptionedImage) else None)
    everywhere: list[Any] | None = [None] * ranks if dist.get_rank() == 0 else None
    dist.gather_object(mine, everywhere)
    turns = zip(*everywhere, strict=True) if everywhere else ()
    return [one for turn in turns for one in turn if one is not None]


def _decoded(document: Any, images: ImageEncoder) -> CaptionedImage | EncodedImage | tuple[str, str]:
    """An image, or where it is and why it cannot be used."""
    try:
        return images.decoded(document)
    except Unusable as reason:
        assert isinstance(document, StoredImage)
        return document.where, str(reason)
