"""Bricks that the models of the zoo are made of. A leaf: it imports no model."""

from hekaton_blocks.attention import Attention, DocumentAttention
from hekaton_blocks.balance import balance_terms, hooks_of_experts, report_experts, update_experts
from hekaton_blocks.cache import key_value_cache
from hekaton_blocks.decoder import Decoder, TransformerBlock
from hekaton_blocks.dispatch import Dispatcher
from hekaton_blocks.documents import Documents, PackedDocuments, pack_documents
from hekaton_blocks.experts import GroupedExperts
from hekaton_blocks.feed_forward import FeedForward
from hekaton_blocks.flops import decoder_flops_per_token, multiplied, multiplied_parameters
from hekaton_blocks.latent_attention import LatentAttention
from hekaton_blocks.moe import MoE, feed_forward_of
from hekaton_blocks.multi_token import MultiTokenDecoder, MultiTokenLayer
from hekaton_blocks.pattern import AttentionPattern
from hekaton_blocks.rope import RopeScaling, YarnScaling, apply_rotary, rotary_table
from hekaton_blocks.routing import MoEConfig, Router, Routing
from hekaton_blocks.sizes import LayerCount, check_heads

__all__ = [
    "Attention",
    "AttentionPattern",
    "Decoder",
    "Dispatcher",
    "DocumentAttention",
    "Documents",
    "FeedForward",
    "GroupedExperts",
    "LatentAttention",
    "LayerCount",
    "MoE",
    "MoEConfig",
    "MultiTokenDecoder",
    "MultiTokenLayer",
    "PackedDocuments",
    "RopeScaling",
    "Router",
    "Routing",
    "TransformerBlock",
    "YarnScaling",
    "apply_rotary",
    "balance_terms",
    "check_heads",
    "decoder_flops_per_token",
    "feed_forward_of",
    "hooks_of_experts",
    "key_value_cache",
    "multiplied",
    "multiplied_parameters",
    "pack_documents",
    "report_experts",
    "rotary_table",
    "update_experts",
]
