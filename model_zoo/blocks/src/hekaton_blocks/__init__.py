"""Bricks that the models of the zoo are made of. A leaf: it imports no model."""

from hekaton_blocks.attention import Attention, DocumentAttention
from hekaton_blocks.documents import Documents, PackedDocuments, pack_documents
from hekaton_blocks.feed_forward import FeedForward
from hekaton_blocks.flops import decoder_flops_per_token
from hekaton_blocks.rope import RopeScaling, apply_rotary, rotary_table

__all__ = [
    "Attention",
    "DocumentAttention",
    "Documents",
    "FeedForward",
    "PackedDocuments",
    "RopeScaling",
    "apply_rotary",
    "decoder_flops_per_token",
    "pack_documents",
    "rotary_table",
]
