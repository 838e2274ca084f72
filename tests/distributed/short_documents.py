"""A plugin for the layout tests: documents shorter than a sequence, so that every row packs several; and a word."""

import random

from hekaton.contributions import Dataset, ParallelStyle, Ref, hookimpl


class ShortDocuments:
    """200 documents of 1 to 40 letters, always the same."""

    fingerprint = "short documents"

    def __init__(self):
        generator = random.Random(0)
        self._texts = [
            "".join(generator.choices("abcdefghijklmnopqrstuvwxyz ", k=generator.randint(1, 40)))
            for _ in range(200)
        ]

    def __len__(self):
        return len(self._texts)

    def fetch(self, indices):
        return [self._texts[index] for index in indices]


def build(section, path):
    return ShortDocuments()


def even_columns(section, context):
    """Cut by outputs like ``colwise``, in a word of a stranger's."""
    from torch.distributed.tensor.parallel import ColwiseParallel

    return ColwiseParallel()


@hookimpl
def hekaton_parallel_styles():
    return [ParallelStyle("even_columns", build=Ref("short_documents:even_columns"))]


@hookimpl
def hekaton_datasets():
    return [Dataset("short_documents", build=Ref("short_documents:build"))]
