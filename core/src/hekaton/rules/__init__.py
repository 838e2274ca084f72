"""Rules between sections, and rules of the model, which ``build`` makes on the meta device for them."""

from hekaton.rules.rules import Rule, check
from hekaton.rules.run import Run

__all__ = ["Rule", "Run", "check"]
