"""A plugin for the layout tests: documents shorter than a sequence, so that every row packs several; a word; and
converters that tie parameters."""

import random

from hekaton.contributions import Converter, Dataset, ParallelStyle, Ref, hookimpl


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
    """Cut by outputs like ``colwise``, in a style of a third-party plugin."""
    from torch.distributed.tensor.parallel import ColwiseParallel

    return ColwiseParallel()


class Tie:
    """Makes one parameter of several, and one block of two."""

    def __init__(self, *groups, shared=()):
        self.groups = groups
        self.shared = shared

    def convert(self, draft):
        model = draft.model
        for first, *others in self.groups:
            for name in others:
                model.get_submodule(name).weight = model.get_submodule(first).weight
        if self.shared:
            first, second = self.shared
            model.layers[second] = model.layers[first]
        return draft


def within_stages(section, dims):
    """Inside a block, in three blocks, in a block and beside the blocks, a whole block: of six layers, none of
    them reaches from the first half into the second."""
    return Tie(
        ["layers.0.feed_forward.w1", "layers.0.feed_forward.w3"],
        ["layers.0.attention.wq", "layers.1.attention.wq", "layers.2.attention.wq"],
        ["layers.5.ffn_norm", "norm"],
        shared=("3", "4"),
    )


def everywhere(section, dims):
    """Three names on both sides of a block's edge and inside it, and neighbours that share nothing."""
    return Tie(
        ["tok_embeddings", "output"],
        ["layers.0.attention_norm", "layers.0.ffn_norm", "norm"],
        ["layers.1.attention.wk", "layers.1.attention.wv", "layers.4.attention.wk"],
    )


@hookimpl
def hekaton_converters():
    return [
        Converter("tie_within_stages", build=Ref("short_documents:within_stages")),
        Converter("tie_everywhere", build=Ref("short_documents:everywhere")),
    ]


@hookimpl
def hekaton_parallel_styles():
    return [ParallelStyle("even_columns", build=Ref("short_documents:even_columns"))]


@hookimpl
def hekaton_datasets():
    return [Dataset("short_documents", build=Ref("short_documents:build"))]
