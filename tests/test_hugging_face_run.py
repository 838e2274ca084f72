"""A run starts from what transformers saved, under any layout, and writes at its end what transformers opens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from hekaton.cli import main
from hekaton.testing.distributed import run_processes
from hekaton_llama3.model import Llama3Config
from hekaton_llama3.spec import flavors

SCRIPT = Path(__file__).with_name("training_on_processes.py")
SMALL = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48}
FLAGS = [
    "--model.overrides", json.dumps(SMALL),
    "--training.seq_len", "32", "--training.local_batch_size", "2", "--training.global_batch_size", "4",
    "--training.steps", "1", "--training.mixed_precision_param", "float32", "--lr_scheduler.warmup_steps", "0",
    # A rate that moves no weight.
    "--optimizer.lr", "1e-30", "--optimizer.weight_decay", "0",
]  # fmt: skip
LAYOUTS = {
    "one process": (1, []),
    "FSDP and TP": (
        4, ["--parallelism.data_parallel_shard_degree", "2", "--parallelism.tensor_parallel_degree", "2"],
    ),
    "PP and FSDP": (
        4, ["--parallelism.pipeline_parallel_degree", "2", "--parallelism.data_parallel_shard_degree", "2"],
    ),
}  # fmt: skip
IN_HF = ["--checkpoint.enable", "--checkpoint.initial_load_in_hf"]


def save_pretrained(folder: Path, *, tied: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=48, vocab_size=2048, rms_norm_eps=1e-5, tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        )
    )  # fmt: skip
    model.save_pretrained(folder, max_shard_size="300KB")
    return tensors_in(folder)


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors |= load_file(file)
    return tensors


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "layout",
    ["FSDP and TP", *(pytest.param(name, marks=pytest.mark.slow) for name in ("one process", "PP and FSDP"))],
)
def test_weights_come_in_and_go_out_under_any_layout(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = save_pretrained(tmp_path / "hf")
    processes, degrees = LAYOUTS[layout]
    run_processes(
        SCRIPT, "train", processes=processes, timeout=100,
        flags=[
            *FLAGS, *degrees, *IN_HF, "--job.dump_folder", str(tmp_path / "run"),
            "--checkpoint.initial_load_path", str(tmp_path / "hf"),
            "--checkpoint.last_save_model_only", "--checkpoint.last_save_in_hf",
        ],
        result=str(tmp_path / "result.pt"), export_file_size=20_000,
    )  # fmt: skip
    final = torch.load(tmp_path / "result.pt", weights_only=True)["final"]

    monkeypatch.setitem(flavors, "small", Llama3Config(**SMALL, vocab_size=2048))
    assert main(["convert", "from-hf", str(tmp_path / "hf"), str(tmp_path / "converted")]) == 0
    dcp_to_torch_save(tmp_path / "converted", tmp_path / "converted.pt")
    assert same(final, torch.load(tmp_path / "converted.pt", weights_only=True))

    exported = tmp_path / "run/checkpoint/step-1-hf"
    assert same(tensors_in(exported), theirs)
    assert len(list(exported.glob("*.safetensors"))) > processes, "every rank has files of its own to write"
    assert type(AutoModelForCausalLM.from_pretrained(exported)) is LlamaForCausalLM
    assert (tmp_path / "run/checkpoint/step-1/manifest.json").exists()


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """``train(*flags)`` trains on one process in ``tmp_path``, and returns what the run said."""
    monkeypatch.chdir(tmp_path)

    def run(*flags: str, status: int = 0) -> str:
        assert main(["train", *FLAGS, *IN_HF, "--checkpoint.initial_load_path", "hf", *flags]) == status
        return capsys.readouterr().err

    return run


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_a_last_save_may_be_of_another_precision(mode: str, train, tmp_path: Path) -> None:
    theirs = save_pretrained(tmp_path / "hf")
    last = ["--checkpoint.last_save_model_only", "--checkpoint.last_save_in_hf"]
    said = train(*last, "--checkpoint.export_dtype", "bfloat16", "--checkpoint.async_mode", mode)
    assert "started with the weights of hf" in said
    exported = tensors_in(tmp_path / "outputs/checkpoint/step-1-hf")
    assert same(exported, {name: tensor.bfloat16() for name, tensor in theirs.items()})


def test_weights_of_another_model_are_refused(train, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "hf", tied=True)
    assert (
        "error: hf is not llama3 debugmodel\n  from: --checkpoint.initial_load_path\n"
        "  tie_embeddings is True there, False here" in train(status=2)
    )
    config = tmp_path / "hf/config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "MistralForCausalLM"))
    assert "error: hf is a MistralForCausalLM, not a llama3" in train(status=2)
    config.write_text(config.read_text().replace("MistralForCausalLM", "Qwen3ForCausalLM"))
    assert (
        "error: hf is a Qwen3ForCausalLM, not a llama3\n  from: --checkpoint.initial_load_path\n"
        '  choose model.name = "qwen3" (--model_name qwen3)\n' in train(status=2)
    )


def test_what_does_not_fit_is_refused_before_anything_is_built(train, tmp_path: Path, monkeypatch) -> None:
    save_pretrained(tmp_path / "hf", tied=True)

    def build(*_: object, **__: object) -> None:
        raise AssertionError("the run began to build its model")

    monkeypatch.setattr("hekaton.trainer.Trainer.__init__", build)
    assert "error: hf is not llama3 debugmodel" in train(status=2)
    # A run that resumes does not read the folder.
    (tmp_path / "outputs/checkpoint/step-1").mkdir(parents=True)
    with pytest.raises(AssertionError, match="began to build"):
        train()


def test_weights_of_another_shape_are_refused(train, tmp_path: Path) -> None:
    save_pretrained(tmp_path / "hf")
    said = train("--model.overrides", json.dumps(SMALL | {"hidden_dim": 64}), status=2)
    assert "error: hf is not llama3 debugmodel" in said
    assert "layers.0.feed_forward.w1.weight is (48, 32) there, (64, 32) in llama3 debugmodel" in said


def test_a_path_without_weights_is_an_error(train) -> None:
    assert "error: 'hf/config.json' is missing" in train(status=2)


def test_a_model_without_an_adapter_is_refused_before_anything_is_built(train, tmp_path: Path) -> None:
    (tmp_path / "lonely.py").write_text(
        "from hekaton.contributions import Model, Ref, hookimpl\n"
        "@hookimpl\n"
        "def hekaton_models():\n"
        "    return [Model('lonely', spec=Ref('hekaton_llama3.spec:train_spec'), summary='no adapter')]\n"
    )
    flags = ["--model.name", "lonely", "--plugins.load", "lonely.py"]
    last = ["--checkpoint.last_save_model_only", "--checkpoint.last_save_in_hf"]
    assert (
        "error: checkpoint.initial_load_in_hf = true and checkpoint.last_save_in_hf = true: no plugin says what "
        "model 'lonely' is in the layout of Hugging Face\n"
    ) in train(*flags, *last, status=2)
    assert not (tmp_path / "outputs").exists()
