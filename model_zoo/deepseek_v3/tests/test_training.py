"""DeepSeek V3 trains, resumes, starts from published weights and ends in the layout of transformers."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM

from hekaton.cli import main
from hekaton.plugins import Plugins
from hekaton.testing import run_command, run_processes
from hekaton.testing.distributed import NamedLayout
from hekaton.weights.counterpart import adapter_of, read_config
from hekaton_deepseek_v3.spec import flavors

ROOT = Path(__file__).parents[3]
TINY = {
    "dim": 32, "n_layers": 3, "n_heads": 4, "inter_dim": 48, "q_lora_rank": 24, "kv_lora_rank": 20,
    "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10,
}  # fmt: skip
SHORT = ["--training.seq_len", "32", "--training.local_batch_size", "4", "--metrics.log_freq", "1"]


def losses(text: str) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in re.findall(r"step +(\d+)  loss ([\d.]+)", text)}


def test_one_changed_line_of_the_quick_start_trains_deepseek_and_it_resumes(tmp_path):
    page = (ROOT / "docs" / "index.md").read_text()
    (quick_start,) = re.findall(r'```toml title="my_run.toml"\n(.*?)```', page, re.DOTALL)
    changed = quick_start.replace('name = "llama3"', 'name = "deepseek_v3"')
    assert len(set(quick_start.splitlines()) ^ set(changed.splitlines())) == 2
    (tmp_path / "my_run.toml").write_text(changed)
    checked = run_command("config", "check", "my_run.toml", cwd=tmp_path)
    assert checked.stdout == "OK: deepseek_v3 debugmodel\n", checked.stderr
    overrides = json.dumps(TINY | {"moe": {"hidden_dim": 16}})
    small = ["my_run.toml", *SHORT, "--optimizer.lr", "2e-2", "--model.overrides", overrides]
    first = run_command("train", *small, "--training.steps", "20", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    of_first = losses(first.stderr)
    assert of_first[20] < of_first[1] - 0.5
    further = run_command("train", *small, "--training.steps", "22", cwd=tmp_path)
    assert further.returncode == 0, further.stderr
    assert "resumed at step 20" in further.stderr
    assert list(losses(further.stderr)) == [21, 22]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> DeepseekV3Config:
    """Transformers' configuration of a tiny V3; ours is the flavor ``tiny``."""
    config = DeepseekV3Config(
        hidden_size=40, num_hidden_layers=3, first_k_dense_replace=1, num_attention_heads=4,
        num_key_value_heads=4, intermediate_size=200, moe_intermediate_size=24, q_lora_rank=24,
        kv_lora_rank=20, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, vocab_size=264,
        n_routed_experts=8, n_group=4, topk_group=2, num_experts_per_tok=3, max_position_embeddings=1280,
        rope_parameters={
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 32, "beta_fast": 32.0, "beta_slow": 1.0,
        },
    )  # fmt: skip
    content = config.to_dict() | {"architectures": ["DeepseekV3ForCausalLM"]}
    ours = read_config(adapter_of(Plugins.discover(), "deepseek_v3"), content, what="it")
    monkeypatch.setitem(flavors, "tiny", ours)
    return config


def saved(config: DeepseekV3Config, folder: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    DeepseekV3ForCausalLM(config).save_pretrained(folder)
    return load_file(folder / "model.safetensors")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_transformers_saves_comes_back_bit_for_bit_and_opens(tiny, tmp_path):
    before = saved(tiny, tmp_path / "hf")
    assert main(["convert", "from-hf", str(tmp_path / "hf"), str(tmp_path / "step")]) == 0
    assert main(["convert", "to-hf", str(tmp_path / "step"), str(tmp_path / "back")]) == 0
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    opened, info = AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert type(opened) is DeepseekV3ForCausalLM
    assert not any(info.values())
    tokens = torch.arange(20)[None]
    original = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert torch.equal(opened(tokens).logits, original(tokens).logits)


def as_published(config: DeepseekV3Config, folder: Path) -> dict[str, torch.Tensor]:
    """Store what transformers saved as DeepSeek does: matrices in 8 bits, a layer for a second token.

    :returns: the values that the files stand for, of the layers that count.
    """
    tensors = saved(config, folder)
    last = f"model.layers.{config.num_hidden_layers - 1}."
    second = f"model.layers.{config.num_hidden_layers}."
    stands_for = dict(tensors)
    quantized = re.compile(r"self_attn\..*proj|mlp\.(experts|shared_experts)|mlp\.\w+_proj")
    for name, tensor in list(tensors.items()):
        if tensor.dim() == 2 and quantized.search(name):
            rows, columns = (-(-size // 16) for size in tensor.shape)
            scales = torch.rand(rows, columns) + 0.5
            stored = tensor.mul(20).to(torch.float8_e4m3fn)
            tensors |= {name: stored, f"{name}_scale_inv": scales}
            each = [scales[i // 16, j // 16] for i in range(tensor.shape[0]) for j in range(tensor.shape[1])]
            stands_for[name] = stored.float() * torch.stack(each).reshape(tensor.shape)
    for name, tensor in list(tensors.items()):
        if name.startswith(last):
            tensors[name.replace(last, second)] = tensor.clone()
    for name in ("embed_tokens", "shared_head.head"):
        tensors[f"{second}{name}.weight"] = torch.zeros(config.vocab_size, config.hidden_size)
    for name in ("enorm", "hnorm", "shared_head.norm"):
        tensors[f"{second}{name}.weight"] = torch.ones(config.hidden_size)
    tensors[f"{second}eh_proj.weight"] = torch.zeros(config.hidden_size, 2 * config.hidden_size)
    save_file(tensors, folder / "model.safetensors")
    content = json.loads((folder / "config.json").read_text())
    content["quantization_config"] = {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [16, 16],
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(content))
    return stands_for


# By hand: 8 experts of 3, 3 of the shared one, 7 of attention, gate, bias, 2 norms, and 6 of its own.
NOTICE = "hf: multi-token prediction (model.layers.3): left out, 44 tensors"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_published_weights_are_decoded_and_the_layer_for_a_second_token_is_named(
    tiny, tmp_path, caplog, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    expected = as_published(tiny, tmp_path / "hf")
    assert main(["convert", "from-hf", "hf", "step"]) == 0
    assert NOTICE in [record.getMessage() for record in caplog.records]
    assert main(["convert", "to-hf", "step", "back"]) == 0
    after = load_file(tmp_path / "back" / "model.safetensors")
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("quantized", [True, False])
def test_a_run_starts_from_published_weights(quantized, tiny, tmp_path):
    """One that says that they are quantized is refused where they are not."""
    as_published(tiny, tmp_path / "hf") if quantized else saved(tiny, tmp_path / "hf")
    ours = flavors["tiny"]
    overrides = {name: getattr(ours, name) for name in (*TINY, "n_dense_layers", "vocab_size")}
    overrides["moe"] = {"n_experts": 8, "hidden_dim": 24, "n_shared_experts": 1, "route_scale": 2.5}
    overrides["rope_scaling"] = {"original_context": 32}
    done = run_command(
        "train", "--model.name", "deepseek_v3", "--model.flavor", "debugmodel", "--model.overrides",
        json.dumps(overrides), "--training.dataset", "python_stdlib", "--model.tokenizer", "byte", *SHORT,
        "--training.steps", "1", "--checkpoint.enable", "--checkpoint.initial_load_path", "hf",
        "--checkpoint.initial_load_in_hf", "--checkpoint.initial_load_in_hf_quantized", cwd=tmp_path,
    )  # fmt: skip
    if quantized:
        assert done.returncode == 0, done.stderr
        assert "started with the weights of hf" in done.stderr
        assert NOTICE in done.stderr
    else:
        assert done.returncode == 2
        assert "initial_load_in_hf_quantized = true, and hf is not quantized" in done.stderr


LAYOUTS = ROOT / "tests" / "distributed" / "layouts.py"
EXPERTS = {
    "n_experts": 8, "top_k": 3, "hidden_dim": 16, "n_shared_experts": 1, "n_groups": 4, "n_limited_groups": 2,
    "bias_rate": 1e-3, "sequence_balance": 1e-2,
}  # fmt: skip
MODELS = {
    "dense": TINY | {"n_layers": 2, "n_dense_layers": 2},
    "dense for pipelines": TINY | {"n_layers": 4, "n_dense_layers": 4},
    "experts": TINY | {"n_layers": 3, "n_dense_layers": 1, "moe": EXPERTS, "q_lora_rank": 0},
    "second token": TINY | {"n_layers": 3, "n_dense_layers": 1, "moe": EXPERTS, "n_mtp_layers": 1},
}
# Of experts with low-rank queries tests/distributed/test_experts.py has every layout.
CASES = {
    "dense": ["shard2 tp2", "shard2 cp2", "tp2 cp2"],
    "dense for pipelines": ["tp2 pp2", "pp2 cp2"],
    "experts": ["tp2", "cp2 ep2"],
    "second token": ["tp2", "cp2 ep2", "shard2 tp2 ep2"],
}


def layout_flags(model: str, layout: str) -> list[str]:
    named = NamedLayout(layout)
    objective = ["--training.objective", "multi_token"] if "n_mtp_layers" in MODELS[model] else []
    return [
        "--training.dtype", "float64", "--training.mixed_precision_param", "float64",
        "--training.mixed_precision_reduce", "float64", "--model.name", "deepseek_v3", "--model.flavor",
        "debugmodel", "--model.overrides", json.dumps(MODELS[model] | {"vocab_size": 264}), *objective,
        *named.flags, "--training.local_batch_size", str(8 // named.dp),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_layouts_compute_what_one_process_does(tmp_path):
    """Losses, every gradient, gradient norm, biases of experts, in float64, after one step and after three."""
    shared = {"folder": str(tmp_path), "timeout": 400}
    alone = {model: {"flags": layout_flags(model, "shard1"), "last_gradients": True} for model in MODELS}
    run_processes(LAYOUTS, "run", processes=1, cases=alone, reference=True, **shared)
    found = {}
    for processes in (2, 4):
        cases = {
            f"{model}, {layout}": {
                "flags": layout_flags(model, layout), "reference": model, "last_gradients": True,
            }
            for model, layouts in CASES.items()
            for layout in layouts
            if NamedLayout(layout).processes == processes
        }  # fmt: skip
        run_processes(LAYOUTS, "run", processes=processes, cases=cases, reference=False, **shared)
        found |= json.loads((tmp_path / f"differences-{processes}.json").read_text())
    assert len(found) == sum(map(len, CASES.values()))
    within = {"weights": 0.0, "buffers": 0.0}
    numbers = ("weights", "buffers", "gradients", "first_loss", "grad_norm", "last_loss")
    wrong = {
        name: got
        for name, got in found.items()
        if not all(got[key] <= within.get(key, 1e-10) for key in numbers)
    }
    assert not wrong, "\n".join(f"{name}: {got}" for name, got in wrong.items())


@pytest.mark.slow
def test_671b_takes_a_step_as_one_of_256(tmp_path):
    done = run_command(
        "train", str(ROOT / "model_zoo/deepseek_v3/train_configs/deepseek_v3_671b.toml"),
        "--comm.mode", "fake_backend", cwd=tmp_path, timeout=120,
        environment={**os.environ, "NGPU": "256", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # 671,026,404,352 parameters of 4 bytes on 256 ranks are 9.764 GiB; a shard is of whole rows.
    assert re.search(r"parameters +9\.7\d+ GiB", done.stderr)
