"""What a layout cannot do is said before anything is built, each mistake in one message, all at once."""

from types import SimpleNamespace

import pytest
import torch

from hekaton.config import load
from hekaton.errors import ConfigError, HekatonError
from hekaton.loading import _place
from hekaton.parallel.plan import ParallelPlan
from hekaton.rules import check

P = "--parallelism."
TP, CP, PP = f"{P}tensor_parallel_degree", f"{P}context_parallel_degree", f"{P}pipeline_parallel_degree"
SCHEDULE = f"{P}pipeline_parallel_schedule"


def said(*flags: str, world_size: int | None = None, model: str = "llama3") -> str:
    """The refusal, as the user reads it."""
    loaded = load([], ["--model.name", model, "--training.seq_len", "64", *flags])
    with pytest.raises(HekatonError) as caught:
        check(loaded, world_size=world_size, device_type="cpu")
    return str(caught.value)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([TP, "3"], ["does not divide n_heads = 8", "choose one of 1, 2, 4, 8", f"from: {TP}"]),
        ([TP, "8"], ["does not divide n_kv_heads = 4", "choose one of 1, 2, 4"]),
        (
            [TP, "4", "--model.overrides.hidden_dim", "66"],
            [
                "tensor_parallel_degree = 4 does not divide hidden_dim = 66 of llama3 debugmodel, by which "
                "layers.*.feed_forward.w1, layers.*.feed_forward.w2, layers.*.feed_forward.w3 are cut",
                "choose one of 1, 2, or another style in [parallelism.plan]",
                f"from: {TP}",
            ],
        ),
        ([TP, "2", "--model.overrides.vocab_size", "2049"], ["does not divide vocab_size = 2049"]),
        (
            [TP, "2", CP, "4", f"{P}context_parallel_strategy", "ulysses"],
            ["(ulysses) = 8 does not divide n_kv_heads = 4"],
        ),
        ([CP, "3"], ["training.seq_len = 64 is not divisible by context_parallel_degree = 3 (twice", "multiple of 6"]),
        (
            [CP, "64"],
            ["is not divisible by context_parallel_degree = 64 (twice, for head-tail load balancing)"],
        ),
        (
            [CP, "4", TP, "4", "--training.seq_len", "72"],
            ["its part of 18 tokens is not divisible by tensor_parallel_degree = 4", "sequence_parallel = false"],
        ),
        ([PP, "8"], ["8 pipeline stages are more than the model's 6 layers"]),
        ([PP, "4", SCHEDULE, "Interleaved1F1B"], ["8 pipeline stages are more than the model's 6 layers"]),
        ([PP, "2", SCHEDULE, "1F1C"], ["unknown pipeline schedule '1F1C'", "did you mean '1F1B'?"]),
        (
            [PP, "4", "--training.local_batch_size", "2"],
            ["on 4 pipeline ranks needs 4 microbatches", "gives 2", "local_batch_size = 4 or more"],
        ),
        (
            [PP, "2", SCHEDULE, "DualPipeV", "--training.local_batch_size", "2"],
            ["'DualPipeV' on 2 pipeline ranks needs 4 microbatches"],
        ),
        *(
            (
                [PP, "2", SCHEDULE, schedule, f"{P}fsdp_reshard_after_forward", "always"],
                [f"schedule '{schedule}' computes the gradients of weights after", "frees the parameters in between"],
            )
            for schedule in ("InterleavedZeroBubble", "ZBVZeroBubble", "DualPipeV")
        ),
        (
            [PP, "2", f"{P}pipeline_parallel_microbatch_size", "3"],
            ["training.local_batch_size = 8 is not divisible by"],
        ),
        (
            [PP, "2", f"{P}module_fqns_per_model_part", '[["tok_embeddings"], ["norm", "output"]]'],
            ["no pipeline stage has 'layers.0."],
        ),
        (
            [PP, "2", f"{P}module_fqns_per_model_part",
             '[["tok_embeddings", "layers"], ["layers.5", "norm", "output"]]'],
            ["'layers.5.", "on several pipeline stages: 0, 1"],
        ),
        (
            [PP, "2", f"{P}module_fqns_per_model_part", '[["tok_embedding", "layers"], ["norm", "output"]]'],
            ["the model has no module 'tok_embedding'", "did you mean 'tok_embeddings'?"],
        ),
        (
            [PP, "2", f"{P}module_fqns_per_model_part", '[["tok_embeddings"], ["layers"], ["norm", "output"]]'],
            ["3 pipeline stages do not fit 2 ranks under schedule '1F1B'"],
        ),
        (
            [PP, "2", "--model.overrides.tie_embeddings", "true"],
            ["tok_embeddings.weight and output.weight are one tied parameter", "on several pipeline stages"],
        ),
        (
            [TP, "2", f"{P}plan", '{"layers.*.feed_forward.w9": "colwise"}'],
            ["entry 'layers.*.feed_forward.w9' matches nothing", "layers.*.feed_forward.w1"],
        ),
        (
            [TP, "2", f"{P}plan", '{"output": "colwize"}'],
            ["unknown parallel style 'colwize'", "did you mean 'colwise'?"],
        ),
    ],
)  # fmt: skip
def test_a_layout_that_does_not_fit_is_refused(flags, parts):
    message = said(*flags)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(("actions", "refused"), [("0F0,0I0,0W0", True), ("0F0,0B0", False)])
def test_a_schedule_of_a_file_that_splits_backward_keeps_parameters(tmp_path, actions, refused):
    csv = tmp_path / "schedule.csv"
    csv.write_text(f"{actions}\n")
    flags = [PP, "2", f"{SCHEDULE}_csv", str(csv), f"{P}fsdp_reshard_after_forward", "always"]
    if refused:
        assert "frees the parameters in between" in said(*flags)
    else:
        loaded = load([], ["--model.name", "llama3", "--training.seq_len", "64", *flags])
        check(loaded, world_size=2, device_type="cpu")


def test_a_model_without_a_plan_is_refused(tmp_path):
    plugin = tmp_path / "bare_plan.py"
    plugin.write_text(
        "from dataclasses import replace\n"
        "from hekaton.contributions import Model, Ref, hookimpl\n"
        "def spec():\n"
        "    from hekaton_llama3.spec import train_spec\n"
        "    from hekaton.parallel.plan import ParallelPlan\n"
        "    return replace(train_spec, plan=lambda config: ParallelPlan(block='layers.*'))\n"
        "def __getattr__(name):\n"
        "    if name == 'train_spec':\n"
        "        return spec()\n"
        "    raise AttributeError(name)\n"
        "@hookimpl\n"
        "def hekaton_models():\n"
        "    return [Model('bare', spec=Ref('bare_plan:train_spec'))]\n"
    )
    message = said("--plugins.load", str(plugin), TP, "2", PP, "2", model="bare")
    assert "has no tensor-parallel plan" in message
    assert "cannot be cut into pipeline stages" in message
    assert "has no context-parallel plan" in said("--plugins.load", str(plugin), CP, "2", model="bare")


SCALED = """
from dataclasses import replace
import torch
from hekaton.contributions import Model, Ref, hookimpl
from hekaton.init import Constant
from hekaton_llama3.spec import train_spec as llama3
class Scaled(llama3.model):
    def __init__(self, config):
        super().__init__(config)
        self.norm.scale = torch.nn.Parameter(torch.empty(()))
train_spec = replace(
    llama3, model=Scaled, init=lambda config: {**llama3.init(config), "norm.scale": Constant(1.0)}
)
@hookimpl
def hekaton_models():
    return [Model("scaled", spec=Ref("scaled_plugin:train_spec"))]
"""


def test_a_parameter_without_a_dim_is_refused_where_it_would_be_sharded(tmp_path):
    plugin = tmp_path / "scaled_plugin.py"
    plugin.write_text(SCALED)
    flags = ["--plugins.load", str(plugin), "--model.tokenizer", "byte"]
    whole = ["--training.mixed_precision_param", "float32"]
    expected = "error: model 'scaled' has parameters without a dim, which cannot be sharded: norm.scale"
    for given, world_size in ((whole, 2), ([], 1), ([TP, "2", *whole], 2)):
        assert expected in f"error: {said(*flags, *given, world_size=world_size, model='scaled')}"
    alone = load([], ["--model.name", "scaled", "--training.seq_len", "64", *flags, *whole])
    check(alone, world_size=1, device_type="cpu")


def test_a_parameter_without_a_dim_is_refused_where_a_model_is_loaded_over_a_mesh():
    model = torch.nn.Module()
    model.temperature = torch.nn.Parameter(torch.empty((), device="meta"))
    meta = SimpleNamespace(model=model, plan=ParallelPlan(block="*"), spec=SimpleNamespace(name="scaled"))
    with pytest.raises(ConfigError, match=r"has parameters without a dim, .*: temperature"):
        _place(load([], []).config, meta, mesh="of one dim", arrange=None)


def test_all_violations_are_reported_together():
    message = said(TP, "3", CP, "5", PP, "7", SCHEDULE, "none", world_size=8)
    for part in (
        "8 processes cannot be divided by 105",
        "does not divide n_heads",
        "not divisible by context_parallel_degree = 5",
        "unknown pipeline schedule 'none'",
        "more than the model's 6 layers",
    ):
        assert part in message


def test_a_missing_schedule_file_is_an_error():
    assert "there is no file 'nowhere.csv'" in said(
        PP, "2", f"{P}pipeline_parallel_schedule_csv", "nowhere.csv"
    )


def test_a_pipeline_validates_on_sequences_of_the_same_length():
    message = said(PP, "2", "--validation.enable", "--validation.seq_len", "32")
    assert "validation.seq_len = 32 must be training.seq_len = 64" in message


@pytest.mark.parametrize(
    ("flags", "field"),
    [
        ([PP, "2", f"{P}module_fqns_per_model_part",
          '[["tok_embeddings", "layers"], ["norm", "output"]]',
          f"{P}pipeline_parallel_layers_per_stage", "2"], "pipeline_parallel_layers_per_stage"),
        ([CP, "2", f"{P}context_parallel_strategy", "ring", f"{P}context_parallel_rotate_method", "alltoall"],
         "context_parallel_rotate_method"),
        ([CP, "2", f"{P}context_parallel_strategy", "ulysses", f"{P}context_parallel_load_balancer", "none"],
         "context_parallel_load_balancer"),
    ],
)  # fmt: skip
def test_settings_that_another_one_replaces_give_a_notice(flags, field):
    loaded = load([], ["--model.name", "llama3", "--training.seq_len", "64", *flags])
    notices = check(loaded, world_size=None, device_type="cpu")
    assert any(f"parallelism.{field}: no effect" in notice for notice in notices)
