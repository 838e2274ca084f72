"""The dispatcher of DeepEP, without DeepEP; tests/distributed/test_experts.py has what it computes."""

from types import SimpleNamespace

import pytest
import torch

from hekaton.cli import main
from hekaton.errors import ConfigError
from hekaton.parallel.experts import ExpertGroup
from hekaton_parallel.deepep import DeepEP


def test_other_types_than_its_kernels_send_are_refused_before_anything_is_sent():
    two, one = (SimpleNamespace(size=lambda size=size: size) for size in (2, 1))
    dispatcher = DeepEP(ExpertGroup(ep=two, etp=one))
    chosen = torch.zeros(3, 1, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"deepep sends bfloat16, and the layers compute in torch\.float32"):
        dispatcher(
            torch.zeros(3, 8),
            chosen,
            torch.ones(3, 1),
            lambda rows, counts: rows,
            n_experts=2,
            weights_on_input=False,
        )


def test_a_configuration_in_another_precision_is_refused_before_anything_is_built(monkeypatch, capsys):
    run = [
        "config", "check", "--model.name", "qwen3", "--model.flavor", "debugmodel_moe", "--model.tokenizer", "byte",
        "--world_size", "2", "--parallelism.expert_parallel_degree", "2",
        "--parallelism.expert_dispatcher", "deepep", "--training.mixed_precision_param",
    ]  # fmt: skip
    monkeypatch.setattr("hekaton.plugins.manager.unmet", lambda needs: "")  # as where deep_ep is installed
    assert main([*run, "float32"]) == 2
    assert (
        "the dispatcher deepep sends bfloat16, and the layers compute in float32" in capsys.readouterr().err
    )
    main([*run, "bfloat16"])
    assert "sends bfloat16" not in capsys.readouterr().err
