"""A plugin for test_experts.py: a dispatcher that gives every rank all tokens, instead of sending each where it
goes."""

import torch
import torch.distributed as dist
from torch.distributed import _functional_collectives as collectives

from hekaton.contributions import Dispatcher, Ref, hookimpl

# Renamed in torch 2.13.
gather = getattr(collectives, "all_gather_single_autograd", None) or collectives.all_gather_tensor_autograd
scatter = (
    getattr(collectives, "reduce_scatter_single_autograd", None) or collectives.reduce_scatter_tensor_autograd
)


class Everywhere:
    """Each rank applies its experts to the tokens of all ranks that chose them; the results are summed."""

    def __init__(self, group):
        self.ep = group.ep

    def __call__(self, x, chosen, weights, experts, *, n_experts, weights_on_input):
        assert not weights_on_input
        tokens, every_weight = (gather(one, 0, self.ep) for one in (x, weights))
        choices = [torch.empty_like(chosen) for _ in range(self.ep.size())]
        dist.all_gather(choices, chosen, group=self.ep)
        every_choice = torch.cat(choices)
        local = n_experts // self.ep.size()
        mine = torch.arange(local) + self.ep.rank() * local
        token, _, expert = (every_choice.unsqueeze(-1) == mine).nonzero(as_tuple=True)
        order = expert.argsort(stable=True)
        token, expert = token[order], expert[order]
        results = experts(tokens[token], torch.bincount(expert, minlength=local))
        of_mine = every_weight[token][every_choice[token] == mine[expert].unsqueeze(-1)]
        out = torch.zeros_like(tokens).index_add(0, token, results * of_mine.unsqueeze(-1))
        return scatter(out, "sum", 0, self.ep)


def build(section, group):
    return Everywhere(group)


@hookimpl
def hekaton_dispatchers():
    return [Dispatcher("everywhere", build=Ref("toy_dispatcher:build"), summary="all tokens to all ranks")]
