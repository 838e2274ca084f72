"""Muon against torch's, and what its iteration does against a singular value decomposition."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hekaton.config.sections import OptimizerGroup, OptimizerSection
from hekaton.errors import ConfigError
from hekaton.muon import Muon, build, orthogonal
from hekaton.parameters import group_names, parameter_groups, roles


@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (30, 30)])
def test_orthogonalisation_keeps_the_singular_vectors(shape):
    matrix = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    values = u.T @ orthogonal(matrix, steps=5) @ vt.T
    assert (values - values.diagonal().diag()).abs().max() < 1e-10
    # The coefficients are tuned for speed: they end near 1, not at it.
    large = s / s.norm() > 0.01
    assert (values.diagonal()[large] > 0.6).all()
    assert (values.diagonal() < 1.25).all()


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_step_is_that_of_torchs_muon(nesterov):
    """Torch's iterates in bfloat16: directions agree to its precision."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(24, 40, generator=generator)
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9, "nesterov": nesterov, "ns_steps": 5}
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = Muon([ours], **settings)
    reference = torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings)
    for _ in range(3):
        gradient = torch.randn(24, 40, generator=generator)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.inner = nn.Linear(8, 8)
        self.experts = nn.Parameter(torch.zeros(2, 8, 8))
        self.norm = nn.RMSNorm(8)
        self.output = nn.Linear(8, 11, bias=False)


def test_parameters_have_roles():
    assert roles(Small(), vocab_size=11) == {
        "experts": "expert",
        "embedding.weight": "embedding",
        "inner.weight": "matrix",
        "inner.bias": "bias",
        "norm.weight": "norm",
        "output.weight": "output",
    }


def groups_of(model, **settings):
    section = OptimizerSection(**settings)
    names = group_names([name for name, _ in model.named_parameters()], section, what="small")
    return section, parameter_groups(model, names, roles(model, vocab_size=11), section)


def test_groups_have_rates_and_decays_of_their_own():
    rows = [OptimizerGroup(match="*norm*", weight_decay=0.0), OptimizerGroup(match="*.weight", lr_factor=0.5)]
    _, groups = groups_of(Small(), lr=0.1, weight_decay=0.3, groups=rows)
    assert [(g.name, g.lr, g.weight_decay, [p.name for p in g.parameters]) for g in groups] == [
        ("rest", 0.1, 0.3, ["experts", "inner.bias"]),
        ("*norm*", 0.1, 0.0, ["norm.weight"]),
        ("*.weight", 0.05, 0.3, ["embedding.weight", "inner.weight", "output.weight"]),
    ]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["*nrom*"], r"entry '\*nrom\*' matches nothing: no trained parameter of small"),
        (["*", "*norm*"], r"entry '\*norm\*' matches nothing: earlier entries match all that it matches"),
    ],
)
def test_a_row_that_matches_nothing_is_an_error(patterns, message):
    with pytest.raises(ConfigError, match=message):
        groups_of(Small(), groups=[OptimizerGroup(match=pattern) for pattern in patterns])


def test_muon_takes_the_matrices_and_adamw_the_rest():
    model = Small()
    section, groups = groups_of(model, groups=[OptimizerGroup(match="*inner*", lr_factor=2.0)], lr=0.1)
    muon, rest = build(SimpleNamespace(momentum=0.9, nesterov=True, ns_steps=5), section, groups)
    assert type(muon).__name__ == "Muon"
    assert type(rest).__name__ == "AdamW"
    assert [(group["name"], group["lr"]) for group in muon.param_groups] == [("*inner*", 0.2)]
    assert muon.param_groups[0]["params"] == [model.inner.weight]
    assert sum(len(group["params"]) for group in rest.param_groups) == 5
