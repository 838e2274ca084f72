"""A small Flux whose blocks are not the identity at the start, for test_layouts.py and the processes that it starts."""

from dataclasses import replace

from hekaton.init import Constant, Normal
from hekaton_flux.model import FluxConfig
from hekaton_flux.spec import init, train_spec

CONFIG = FluxConfig(
    dim=32, n_heads=2, n_double_blocks=1, n_single_blocks=1, axes=(4, 6, 6), channels=16, text_dim=64, pooled_dim=32,
    guidance=True,
)  # fmt: skip


def started(config):
    """Normal values where the model starts with 0."""
    zero = Constant(0.0)
    return {
        name: Normal(0.1) if initializer == zero else initializer
        for name, initializer in init(config).items()
    }


spec = replace(train_spec, flavors={"tiny": CONFIG}, defaults={}, init=started)
