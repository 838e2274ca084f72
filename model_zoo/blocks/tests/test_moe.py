"""The layer of experts against transformers' of Qwen 3 and DeepSeek V3, and its balance against sums by hand."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import DeepseekV3Config, Qwen3MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

from hekaton.errors import ConfigError
from hekaton.terms import collected_terms
from hekaton_blocks import MoE, MoEConfig, balance_terms, update_experts

DIM, HIDDEN, EXPERTS, TOP = 32, 24, 8, 3


def filled(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return module


def build(dtype: torch.dtype = torch.float32, **settings) -> MoE:
    settings = {"n_experts": EXPERTS, "top_k": TOP, "hidden_dim": HIDDEN, **settings}
    module = filled(MoE(DIM, MoEConfig(**settings)).double()).to(dtype)
    module.reset_buffers()
    return module


def tokens(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    drawn = torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return drawn.to(dtype).requires_grad_()


def copy_into(theirs: nn.Module, ours: MoE) -> None:
    with torch.no_grad():
        theirs.gate.weight.copy_(ours.router.gate.weight)
        theirs.experts.gate_up_proj.copy_(torch.cat((ours.experts.w1, ours.experts.w3), dim=1))
        theirs.experts.down_proj.copy_(ours.experts.w2)
        if ours.shared_experts is not None:
            for name, there in {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}.items():
                getattr(theirs.shared_experts, there).weight.copy_(getattr(ours.shared_experts, name).weight)


def compare(ours: MoE, theirs: nn.Module) -> None:
    """Outputs and all gradients, relative in norm."""
    copy_into(theirs, ours)
    results = []
    for module in (ours, theirs):
        x = tokens(2, 10)
        out = module(x)
        out = out[0] if isinstance(out, tuple) else out
        out.sin().sum().backward()
        results.append((out.detach(), x.grad))
    gradients = [
        (ours.router.gate.weight.grad, theirs.gate.weight.grad),
        (torch.cat((ours.experts.w1.grad, ours.experts.w3.grad), dim=1), theirs.experts.gate_up_proj.grad),
        (ours.experts.w2.grad, theirs.experts.down_proj.grad),
    ]
    if ours.shared_experts is not None:
        gradients.append((ours.shared_experts.w2.weight.grad, theirs.shared_experts.down_proj.weight.grad))
    for got, expected in [*zip(*results, strict=True), *gradients]:
        assert (got - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("renormalise", [True, False])
def test_softmax_routing_is_that_of_qwen3_moe(renormalise):
    config = Qwen3MoeConfig(
        hidden_size=DIM, moe_intermediate_size=HIDDEN, num_experts=EXPERTS, num_experts_per_tok=TOP,
        norm_topk_prob=renormalise, experts_implementation="eager",
    )  # fmt: skip
    compare(build(renormalise=renormalise), Qwen3MoeSparseMoeBlock(config))


@pytest.mark.parametrize(("n_groups", "limited"), [(1, 1), (4, 2)])
def test_sigmoid_routing_in_groups_is_that_of_deepseek_v3(n_groups, limited):
    config = DeepseekV3Config(
        hidden_size=DIM, moe_intermediate_size=HIDDEN, n_routed_experts=EXPERTS, num_local_experts=EXPERTS,
        num_experts_per_tok=TOP, n_group=n_groups, topk_group=limited, n_shared_experts=2, norm_topk_prob=True,
        routed_scaling_factor=2.5, experts_implementation="eager",
    )  # fmt: skip
    ours = build(
        score="sigmoid", renormalise=True, route_scale=2.5, n_groups=n_groups, n_limited_groups=limited,
        n_shared_experts=2, bias_rate=1e-3,
    )  # fmt: skip
    theirs = DeepseekV3MoE(config)
    bias = torch.linspace(-0.3, 0.3, EXPERTS).roll(3)
    ours.expert_bias.copy_(bias)
    theirs.gate.e_score_correction_bias.copy_(bias)
    compare(ours, theirs)


def test_a_group_is_as_good_as_its_best_expert_in_deepseek_v2():
    module = build(n_experts=4, top_k=1, n_groups=2, n_limited_groups=1, group_score="max")
    with (
        torch.no_grad()
    ):  # scores grow with these: the best expert is in the first group, the better sum is not
        module.router.gate.weight.zero_()[:, 0] = torch.tensor([4.0, 0.0, 3.8, 3.8])
    x = torch.zeros(1, 1, DIM)
    x[..., 0] = 1.0
    assert module.router(x, None).experts.item() == 0
    module.router.config = MoEConfig(
        n_experts=4, top_k=1, hidden_dim=HIDDEN, n_groups=2, group_score="sum_of_top2"
    )
    assert module.router(x, None).experts.item() in (2, 3)


def test_experts_without_tokens_and_every_precision_compute_alike():
    expected = None
    for dtype, tolerance in [(torch.float64, 0), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]:
        module = build(dtype, top_k=1)
        with torch.no_grad():
            module.router.gate.weight.zero_()[2] = 1.0  # all that sum up to more than 0 to expert 2
        x = tokens(1, 6).detach().abs().to(dtype).requires_grad_()
        out = module(x)
        out.square().sum().backward()
        got = [out, module.experts.w1.grad, module.experts.w2.grad, x.grad]
        assert module.tokens_per_expert.tolist() == [0, 0, 6, 0, 0, 0, 0, 0]
        assert module.experts.w1.grad[[0, 1, 3, 4, 5, 6, 7]].count_nonzero() == 0
        expected = got if expected is None else expected
        for one, other in zip(got, expected, strict=True):
            assert (one.double() - other).norm() <= tolerance * other.norm()


def test_the_router_computes_in_float32_in_a_bfloat16_model():
    module = build(torch.bfloat16)
    x = tokens(1, 4).detach().bfloat16()
    logits = x.float() @ module.router.gate.weight.float().T
    routing = module.router(x, None)
    torch.testing.assert_close(routing.scores, logits[0].softmax(-1), rtol=1e-6, atol=0)
    assert routing.weights.dtype == torch.float32


def test_weights_on_the_input_go_through_the_expert():
    """Llama 4 scales what goes into an expert, written out for one expert per token."""
    module = build(score="sigmoid", top_k=1, weights_on_input=True)
    x = tokens(1, 5).detach()
    scores, best = (x[0] @ module.router.gate.weight.T).sigmoid().max(-1)
    w1, w2, w3 = (
        weight.detach()[best] for weight in (module.experts.w1, module.experts.w2, module.experts.w3)
    )
    scaled = (x[0] * scores[:, None]).unsqueeze(-1)
    expected = w2 @ (nn.functional.silu(w1 @ scaled) * (w3 @ scaled))
    torch.testing.assert_close(module(x)[0], expected.squeeze(-1), rtol=1e-4, atol=1e-6)


def test_forced_balance_gives_every_expert_as_many_tokens():
    module = build()
    module.even = True
    module(tokens(2, 8))
    assert module.tokens_per_expert.tolist() == [6] * EXPERTS  # 2 × 8 tokens × 3 experts each, over 8


ALONE = SimpleNamespace(size=lambda: 1, get_group=lambda: ALONE)
MESHES = SimpleNamespace(loss=ALONE, batch={"tp": ALONE})


def test_the_expert_bias_moves_once_per_step_whatever_is_accumulated_or_recomputed():
    module = build(bias_rate=0.5)
    for _ in range(2):
        out = torch.utils.checkpoint.checkpoint(module, tokens(1, 4), use_reentrant=False)
        out.sum().backward()
    counts = module.tokens_per_expert.tolist()
    assert sum(counts) == 2 * 4 * TOP
    update_experts([module], MESHES)
    signs = [(count < 3) - (count > 3) for count in counts]  # the mean: 24 / 8
    expected = [0.5 * (sign - sum(signs) / EXPERTS) for sign in signs]
    assert module.expert_bias.tolist() == pytest.approx(expected)
    assert module.tokens_per_expert.tolist() == [0] * EXPERTS
    module.eval()
    module(tokens(1, 4))
    assert module.tokens_per_expert.tolist() == [0] * EXPERTS


def test_sequence_balance_is_the_formula_of_deepseek_v3_and_trains_the_router_alone():
    module = build(torch.float64, score="sigmoid", sequence_balance=0.1, bias_rate=1e-3)
    module.expert_bias.copy_(torch.linspace(3, -3, EXPERTS))  # decides the routing, not the loss
    x = tokens(2, 5, dtype=torch.float64)
    with collected_terms({"sequence_balance": 0.1}) as sums:
        out = module(x)
        (gradient,) = torch.autograd.grad(out.sum() * 0, module.router.gate.weight)
    weight = module.router.gate.weight.detach().clone().requires_grad_()
    expected = 0.0
    for row in x.detach():
        scores = (row @ weight.T).sigmoid()
        normalised = scores / scores.sum(-1, keepdim=True)
        for i in range(EXPERTS):
            chosen = sum(i in token.topk(TOP).indices for token in scores)
            expected = expected + EXPERTS / (TOP * len(row)) * chosen * normalised[:, i].mean()
    torch.testing.assert_close(sums["sequence_balance"], expected.detach())
    (0.1 * expected).backward()
    torch.testing.assert_close(gradient, weight.grad)


def test_batch_balance_uses_the_load_of_the_step_before():
    module = build(torch.float64, batch_balance=0.01)
    x = tokens(2, 5, dtype=torch.float64)
    with collected_terms({"batch_balance": 0.01}) as sums:
        module(x)
    assert sums["batch_balance"].item() == pytest.approx(2.0)  # an even load, two rows
    counts = module.tokens_per_expert.clone()
    update_experts([module], MESHES)
    with collected_terms({"batch_balance": 0.01}) as sums:
        module(x)
    mean_scores = (x.detach().flatten(0, 1) @ module.router.gate.weight.T).softmax(-1).mean(0)
    share = counts * EXPERTS / (10 * TOP)
    assert sums["batch_balance"].item() == pytest.approx(2 * (share * mean_scores).sum().item(), rel=1e-6)
    assert balance_terms(module.config) == {"batch_balance": 0.01}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_k": 9}, "top_k = 9 is more than n_experts = 8"),
        ({"n_groups": 3}, "n_groups = 3 does not divide n_experts = 8"),
        ({"n_groups": 2, "n_limited_groups": 4}, "n_limited_groups = 4 is more than n_groups = 2"),
        ({"n_groups": 4, "n_limited_groups": 1}, "top_k = 3 is more than the 2 experts of n_limited_groups = 1"),
        ({"n_groups": 8, "n_limited_groups": 4}, "groups of one expert have no best two"),
    ],
)  # fmt: skip
def test_an_impossible_configuration_is_rejected(settings, message):
    with pytest.raises(ConfigError, match=message):
        build(**settings)


def test_experts_are_told_apart_where_their_scores_are_all_one():
    """As in Llama4Router, which takes the largest logits: in float32 the sigmoid of 20 and more is 1."""
    module = build(top_k=2, score="sigmoid")
    with torch.no_grad():
        module.router.gate.weight.zero_()
        module.router.gate.weight[:, 0] = torch.tensor([20.0, 25.0, 1.0, 22.0, 30.0, 21.0, 0.0, 24.0])
    x = torch.zeros(1, 3, DIM)
    x[..., 0] = 1.0
    routing = module.router(x, None)
    assert routing.experts.sort().values.tolist() == [[1, 4]] * 3
    assert routing.weights.eq(1.0).all()
