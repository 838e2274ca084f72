"""Mistakes that public frameworks have made with experts, put back in one at a time: see test_experts.py."""

import contextlib

import pytest
import torch

from hekaton.parallel import apply, experts, fsdp


@contextlib.contextmanager
def mistake(name):
    """Run with one of the mistakes in our code, ``None`` for none."""
    if name is None:
        yield
        return
    patch = pytest.MonkeyPatch()
    MISTAKES[name](patch)
    yield
    patch.undo()


def scaled_by_the_degree(patch):
    from hekaton_blocks import experts

    local = experts.local
    patch.setattr(experts, "local", lambda weight: _Half.apply(local(weight)))


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


def not_summed(patch):
    """Under tensor parallel, experts as other parameters: their tokens on other ranks are not counted."""
    for module in (apply, fsdp, experts):
        patch.setattr(module, "has_own_mesh", lambda dims: False)


def norm_of_own_experts(patch):
    patch.setattr("hekaton.trainer.clip_grad_norm", _clip(lambda grad: grad.to_local().norm() ** 2))


def norm_counts_experts_twice(patch):
    patch.setattr("hekaton.trainer.clip_grad_norm", _clip(lambda grad: 2 * grad.full_tensor().norm() ** 2))


def _clip(of_expert):
    """A gradient norm whose part of experts is what ``of_expert`` says."""

    def clip(parameters, max_norm, *, pipeline=None):
        grads = [parameter.grad for parameter in parameters]
        total = sum(of_expert(g) if g.dim() == 3 else g.full_tensor().norm() ** 2 for g in grads) ** 0.5
        for grad in grads:
            grad.to_local().mul_(min(1.0, max_norm / (total.item() + 1e-6)))
        return total

    return clip


def bias_per_microbatch(patch):
    from hekaton.trainer import Trainer
    from hekaton_blocks import update_experts

    make = Trainer.__init__

    def make_and_update(self, *arguments):
        make(self, *arguments)
        run = self.forward_backward._run

        def run_and_update(*given):
            out = run(*given)
            update_experts(self.model_parts, self.meshes)
            return out

        self.forward_backward._run = run_and_update

    patch.setattr(Trainer, "__init__", make_and_update)


def counted_when_recomputed(patch):
    from hekaton_blocks import moe

    patch.setattr(moe, "is_recomputed", lambda: False)


def balance_of_each_part(patch):
    """A sequence that is cut is balanced part by part, and the parts averaged."""
    prepare = apply.prepare_experts

    def prepare_and_forget(part, words, meshes, dims, **settings):
        prepare(part, words, meshes, dims, **settings)
        from hekaton_blocks import MoE

        class Alone:
            def size(self):
                return dims.cp

        patch.setattr("hekaton_blocks.moe.all_sum", lambda counts, group: counts * dims.cp)
        for module in part.modules():
            if isinstance(module, MoE):
                module.sequence_groups = [Alone()]

    patch.setattr(apply, "prepare_experts", prepare_and_forget)


def balance_by_targets(patch):
    """The balance of each rank has the weight of its targets, of which ranks have unequal numbers."""
    from hekaton.forward_backward import ForwardBackward

    accumulate = ForwardBackward.accumulate

    def accumulate_by_targets(self, inputs, targets, **given):
        of_all = self._global_counts(targets)
        share = {
            name: (count / of_all[name]).item() for name, count in self._objective.count(targets).items()
        }
        (factor,) = (self._dp * one for one in share.values())
        with pytest.MonkeyPatch.context() as scaled:
            scaled.setattr(self, "_terms", {name: weight * factor for name, weight in self._terms.items()})
            return accumulate(self, inputs, targets, **given)

    patch.setattr(ForwardBackward, "accumulate", accumulate_by_targets)


def splits_transposed(patch):
    from hekaton_parallel import dispatch

    two = dispatch._two_sizes
    patch.setattr(dispatch, "_two_sizes", lambda counts, total: tuple(reversed(two(counts, total))))


def expert_parts_not_summed(patch):
    """Of experts that are cut, each rank keeps its own partial result."""
    from hekaton_parallel import dispatch

    def own_part(x, how, dim, group):
        return x.chunk(group.size())[group.rank()] * group.size()

    patch.setattr(dispatch, "_reduce_scatter", own_part)


def bias_of_every_rank(patch):
    """Ranks that have parts of an expert each add the whole output bias, so that the sum has it several times."""
    from hekaton_gpt_oss import model

    def times_the_degree(bias):
        return share(bias) * 2

    share = model.share
    patch.setattr(model, "share", times_the_degree)


MISTAKES = {
    "expert gradients divided by the degree": scaled_by_the_degree,
    "expert gradients not summed": not_summed,
    "the norm misses experts of other ranks": norm_of_own_experts,
    "the norm counts experts twice": norm_counts_experts_twice,
    "expert bias updated per microbatch": bias_per_microbatch,
    "tokens counted twice under recomputation": counted_when_recomputed,
    "balance of each part of a sequence": balance_of_each_part,
    "balance averaged over ranks of unequal token counts": balance_by_targets,
    "uneven splits transposed": splits_transposed,
    "parts of experts not summed": expert_parts_not_summed,
    "output bias of experts multiplied by the degree": bias_of_every_rank,
}
