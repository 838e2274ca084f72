"""A bit that flips where nobody looks: named by tensor, rank and host; and nothing is named where none flipped."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from hekaton.cli import main
from hekaton.testing import run_command, run_processes
from hekaton.testing.distributed import NamedLayout

HERE = Path(__file__).parent
SCRIPT = HERE / "faults_on_processes.py"
TOYS = HERE.parent / "distributed/toys.py"
HOST = socket.gethostname()
TINY = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 48, "vocab_size": 264}
MODEL = [
    "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.tokenizer", "byte",
    "--model.overrides", json.dumps(TINY),
]  # fmt: skip
RUN = [
    "--training.seq_len", "16", "--training.steps", "1000", "--lr_scheduler.warmup_steps", "1",
    "--training.global_batch_size", "8", "--training.mixed_precision_param", "float32",
]  # fmt: skip
BOTH = ["--fault.compare_replicas_every", "1", "--fault.replay_every", "1"]
DENOISER = [
    "--plugins.load", str(TOYS), "--model.name", "denoiser", "--model.overrides", "{}",
    "--model.tokenizer", "byte", "--training.objective", "masked_denoising",
]  # fmt: skip
EXPERTS = {
    "dim": 32, "n_layers": 2, "n_dense_layers": 1, "n_heads": 2, "inter_dim": 32, "vocab_size": 264,
    "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "moe": {"n_experts": 4, "hidden_dim": 32, "n_groups": 2, "n_limited_groups": 1, "top_k": 2, "n_shared_experts": 1},
}  # fmt: skip
DEEPSEEK = [
    "--model.name", "deepseek_v3", "--model.flavor", "debugmodel", "--model.tokenizer", "byte",
    "--model.overrides", json.dumps(EXPERTS),
]  # fmt: skip
FLUX = [
    "--model.name", "flux", "--model.flavor", "debugmodel", "--model.tokenizer", "byte",
    "--model.overrides", json.dumps({"n_double_blocks": 1, "n_single_blocks": 1}),
    "--training.dataset", "shapes", "--training.packing", "images",
    "--flow_matching.image_size", "32", "--flow_matching.text_length", "4",
]  # fmt: skip
LORA = [*MODEL, "--model.converters", '["lora"]']
IN_8_BITS = ["--optimizer.name", "AdamW8bit", "--adamw_8bit.min_size", "0", "--adamw_8bit.block_size", "16"]
NORM = "layers.0.attention_norm.weight"
WQ = "layers.1.attention.wq.weight"
W1, BIAS, GATE = (f"layers.1.moe.{name}" for name in ("experts.w1", "expert_bias", "router.gate.weight"))
ADAPTER = "layers.1.attention.wq.lora_a"
QKV = "double_blocks.0.img_attn.qkv.weight"


def case(layout: str, *flags: str, steps: int = 2, model=MODEL, **flip) -> dict:
    layout = NamedLayout(layout)
    rows = ["--training.local_batch_size", str(8 // layout.dp)]
    return {
        "flags": [*model, *RUN, *layout.flags, *([] if "--training.local_batch_size" in flags else rows), *BOTH, *flags],
        "steps": steps,
        "processes": layout.processes,
        "flip": flip or None,
    }  # fmt: skip


ACCUMULATED = ["--training.local_batch_size", "1"]
SKIP = ["--fault.nonfinite", "skip"]
QUICK = {
    "undisturbed replicate2 tp2": case("replicate2 tp2", *ACCUMULATED),
    "undisturbed shard2 pp2": case("shard2 pp2"),
    "parameter": case("replicate4", what="parameter", name=WQ, ranks=[2]),
    "norm": case("replicate2 tp2", what="parameter", name=NORM, ranks=[3]),
    "moment": case("replicate4", what="moment", name=NORM, ranks=[1]),
    "gradient": case("replicate2 tp2", what="gradient", name=WQ, ranks=[1]),
    "skipped replicate2 tp2": case("replicate2 tp2", *SKIP, *ACCUMULATED, what="nan", name=WQ, ranks=[1]),
    "skipped shard2 pp2": case("shard2 pp2", *SKIP, what="nan", name=WQ, ranks=[2]),
    "ended": case("replicate4", what="nan", name=NORM, ranks=[3]),
    "buffer": case("shard4", model=DENOISER, what="buffer", name="layers.3.router.counts", ranks=[3]),
}
MORE = {
    "undisturbed cp2 tp2": case("cp2 tp2"),
    "undisturbed denoiser": case("replicate2 shard2", *ACCUMULATED, model=DENOISER, steps=3),
    "undisturbed Muon": case("replicate2 shard2", "--optimizer.name", "Muon"),
    "undisturbed on the host": case("replicate2 shard2", "--training.enable_cpu_offload"),
    "undisturbed compiled": case("replicate2 tp2", "--compile.enable", "--compile.backend", "aot_eager"),
    "two ranks": case("replicate4", what="parameter", name=WQ, ranks=[0, 2]),
    "stage": case("pp2 replicate2", what="parameter", name=WQ, ranks=[3]),
    "part": case("replicate2 shard2", what="moment", name=WQ, ranks=[1]),
    "gradient of a stage": case("shard2 pp2", what="gradient", name=WQ, ranks=[2]),
    "experts": case("replicate2 shard2 ep2", model=DEEPSEEK, what="parameter", name=W1, ranks=[3]),
    "moment of experts": case("replicate4", model=DEEPSEEK, what="moment", name=W1, ranks=[1]),
    "bias of a router": case("replicate4", model=DEEPSEEK, what="parameter", name=BIAS, ranks=[2]),
    "router": case("replicate2 tp2", model=DEEPSEEK, what="parameter", name=GATE, ranks=[0]),
    "adapter": case("replicate4", model=LORA, what="parameter", name=ADAPTER, ranks=[2]),
    "moment of an adapter": case("replicate2 tp2", model=LORA, what="moment", name=ADAPTER, ranks=[1]),
    "frozen weight": case("replicate4", model=LORA, what="parameter", name=WQ, ranks=[3]),
    "momentum": case(
        "replicate4", "--optimizer.name", "Muon", what="moment", key="momentum_buffer", name=WQ, ranks=[1]
    ),
    "codes": case("replicate4", *IN_8_BITS, what="moment", key="exp_avg_sq_codes", name=WQ, ranks=[2]),
    "scales": case("replicate2 shard2", *IN_8_BITS, what="moment", key="exp_avg_scales", name=WQ, ranks=[3]),
    "step": case("replicate4", what="moment", key="step", name=WQ, ranks=[3]),
    "flux": case("replicate4", model=FLUX, what="parameter", name=QKV, ranks=[1]),
    "moment of flux": case("replicate2 shard2", model=FLUX, what="moment", name=QKV, ranks=[2]),
    "gradient of flux": case("replicate4", model=FLUX, what="gradient", name=QKV, ranks=[2]),
}
NAMED = {
    "parameter": f"{WQ}: rank 2 (host {HOST}) differ from 3 other ranks",
    "two ranks": f"{WQ}: ranks 0 and 2 (host {HOST}) against ranks 1 and 3 (host {HOST}), without a majority",
    "norm": f"{NORM}: rank 3 (host {HOST}) differ from 3 other ranks",
    "stage": f"{WQ}: rank 2 (host {HOST}) against rank 3 (host {HOST}), without a majority",
    "moment": f"exp_avg of {NORM}: rank 1 (host {HOST}) differ from 3 other ranks",
    "part": f"exp_avg of {WQ}, (16, 32) at (16, 0) of (32, 32): rank 1 (host {HOST}) against rank 3 (host {HOST}), ",
    "gradient": f"rank 1 (host {HOST}): the gradient of {WQ}",
    "gradient of a stage": f"rank 2 (host {HOST}): the gradient of {WQ}",
    "buffer": f"rank 3 (host {HOST}): the buffer layers.3.router.counts",
    "experts": f"{W1}, (2, 32, 32) at (2, 0, 0) of (4, 32, 32): rank 1 (host {HOST}) against rank 3 (host {HOST}), ",
    "moment of experts": f"exp_avg of {W1}: rank 1 (host {HOST}) differ from 3 other ranks",
    "bias of a router": f"{BIAS}: rank 2 (host {HOST}) differ from 3 other ranks",
    "router": f"{GATE}: rank 0 (host {HOST}) differ from 3 other ranks",
    "adapter": f"{ADAPTER}: rank 2 (host {HOST}) differ from 3 other ranks",
    "moment of an adapter": f"exp_avg of {ADAPTER}: rank 1 (host {HOST}) differ from 3 other ranks",
    "frozen weight": f"{WQ}: rank 3 (host {HOST}) differ from 3 other ranks",
    "momentum": f"momentum_buffer of {WQ}: rank 1 (host {HOST}) differ from 3 other ranks",
    "codes": f"exp_avg_sq_codes of {WQ}: rank 2 (host {HOST}) differ from 3 other ranks",
    "scales": f"exp_avg_scales of {WQ}, (16, 2) at (16, 0) of (32, 2): rank 1 (host {HOST}) against rank 3 ",
    "step": f"step of {WQ}: rank 3 (host {HOST}) differ from 3 other ranks",
    "flux": f"{QKV}: rank 1 (host {HOST}) differ from 3 other ranks",
    "moment of flux": f"exp_avg of {QKV}, (192, 128) at (0, 0) of (384, 128): rank 0 (host {HOST}) against rank 2 ",
    "gradient of flux": f"rank 2 (host {HOST}): the gradient of {QKV}",
}  # fmt: skip
DRIFTED = "step 2: replicas that must be equal to the bit are not"
TWO_RESULTS = "step 2: the first microbatch was computed twice from the same state, with other results"

NOT_FINITE = "the gradient norm is not finite (NaN or infinite)"


def launched(cases: dict[str, dict], folder: Path, *, timeout: float = 1700) -> dict[str, str]:
    """What each run said, which all of its ranks must have said alike."""
    said = {}
    for processes in {case["processes"] for case in cases.values()}:
        those = {name: case for name, case in cases.items() if case["processes"] == processes}
        result = f"said-{processes}"
        run_processes(
            SCRIPT,
            "run",
            processes=processes,
            timeout=timeout,
            cases=those,
            folder=str(folder),
            result=result,
        )
        everywhere = [json.loads((folder / f"{result}-{rank}.json").read_text()) for rank in range(processes)]
        for name in those:
            assert len({of_rank[name] for of_rank in everywhere}) == 1, name
            said[name] = everywhere[0][name]
    return said


def check_said(said: dict[str, str]) -> None:
    """Nothing of what nobody disturbed; of a flipped bit one line, with tensor, rank and host."""
    for name, text in said.items():
        if name == "ended":
            assert text.splitlines()[0] == f"step 2: {NOT_FINITE}; no weight was changed by it"
            continue
        if name.startswith(("undisturbed", "skipped")):
            assert text == "", name
            continue
        first, line, *_ = text.splitlines()
        assert first == (TWO_RESULTS if name.startswith(("gradient", "buffer")) else DRIFTED), name
        assert line.strip().startswith(NAMED[name]), name
        assert len(text.splitlines()) == 3, name


def test_a_flipped_bit_is_named_with_its_tensor_rank_and_host(tmp_path):
    check_said(launched(QUICK, tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_flipped_bit_is_named_under_other_layouts(tmp_path):
    check_said(launched(MORE, tmp_path))


@pytest.mark.slow
def test_replicas_that_drift_go_back_to_a_step_at_which_they_were_equal(tmp_path):
    """Step 3 was saved when they had drifted, and nobody had compared them yet."""
    flags = [
        *MODEL, *RUN, *NamedLayout("replicate2").flags, "--training.local_batch_size", "4", "--training.steps", "6",
        "--fault.compare_replicas_every", "2", "--fault.nonfinite", "rollback",
        "--checkpoint.enable", "--checkpoint.interval", "1",
    ]  # fmt: skip
    flip = {"what": "parameter", "name": WQ, "ranks": [1]}
    run_processes(SCRIPT, "go_back", processes=2, flags=flags, flip=flip, folder=str(tmp_path))
    for rank in range(2):
        went = json.loads((tmp_path / f"went-back-{rank}.json").read_text())
        assert went == {"steps": [1, 2, 3, 4, 3, 4, 5, 6], "equal": True}
    (line,) = (tmp_path / "skipped_data.jsonl").read_text().splitlines()
    assert json.loads(line)["what"] == "back to step 2, without the data in between"


def test_the_checks_change_nothing_and_cost_nothing_when_off(tmp_path):
    """The losses are the same with and without them, dropout included; off, nothing is compared."""
    plugin = tmp_path / "dropout.py"
    plugin.write_text(DROPOUT)
    words = [
        "train", *MODEL, *RUN, "--training.local_batch_size", "4", "--training.steps", "3",
        "--plugins.load", str(plugin), "--model.converters", '["dropout"]', "--metrics.log_freq", "1",
    ]  # fmt: skip
    on, off = (run_command(*words, *flags, cwd=tmp_path) for flags in (["--fault.replay_every", "1"], []))
    assert on.returncode == off.returncode == 0, on.stderr + off.stderr
    losses = [
        [line.split("  ")[2:4] for line in run.stderr.splitlines() if "  step " in line] for run in (on, off)
    ]
    assert len(losses[0]) == 3
    assert losses[0] == losses[1]
    assert "compared: 0\n" in off.stdout
    assert "compared: 3\n" in on.stdout


DROPOUT = """
from torch import nn
import hekaton.fault.digest
import hekaton.fault.replay
from hekaton.contributions import Converter, Ref, hookimpl

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_converters():
    return [Converter("dropout", build=Ref("dropout:build"))]


@hookimpl
def hekaton_run_ended(step, error):
    print("compared:", len(compared))


compared = []


def counted(function):
    return lambda *arguments: compared.append(function) or function(*arguments)


hekaton.fault.digest.digest = counted(hekaton.fault.digest.digest)
hekaton.fault.replay.differences = counted(hekaton.fault.replay.differences)


class Dropout:
    def convert(self, draft):
        draft.model.norm.register_forward_hook(lambda module, inputs, output: nn.functional.dropout(output, 0.5))
        return draft


def build(section, dims):
    return Dropout()
"""


@pytest.mark.parametrize(
    ("flags", "notice"),
    [
        (["--fault.replay_every", "9"], "fault.replay_every = 9 is more than training.steps = 5: no effect"),
        (
            ["--fault.compare_replicas_every", "2", "--world_size", "1"],
            "fault.compare_replicas_every: no effect on one process",
        ),
        (["--fault.compare_replicas_every", "2", "--world_size", "2"], "no parameter has a second copy"),
    ],
)
def test_a_check_that_finds_nothing_says_so(capsys, flags, notice):
    assert (
        main(
            [
                "config",
                "check",
                *MODEL,
                *RUN,
                "--training.local_batch_size",
                "4",
                "--training.steps",
                "5",
                *flags,
            ]
        )
        == 0
    )
    assert notice in "".join(capsys.readouterr())


MATRIX = [
    "replicate2", "shard2", "cp2", "tp2", "pp2", "replicate4", "shard4", "cp4", "tp4", "pp4", "replicate2 shard2",
    "replicate2 cp2", "replicate2 tp2", "replicate2 pp2", "shard2 cp2", "shard2 tp2", "shard2 pp2", "cp2 tp2",
    "cp2 pp2", "tp2 pp2",
]  # fmt: skip
STEPS = 5
"""``benchmarks/undisturbed.py`` takes 1,000."""


def undisturbed(layout: str, *, steps: int) -> dict:
    """All kinds of what replicas hold, in a model as small as the layout allows: what a step costs is the number
    of operations."""
    named = NamedLayout(layout)
    size = {**TINY, "dim": 16, "hidden_dim": 16, "n_layers": named.degrees["pp"], "n_kv_heads": 4}
    flags = [
        "--training.global_batch_size", "4", "--training.local_batch_size", str(4 // named.dp),
        "--parallelism.pipeline_parallel_first_stage_less_layers", "0",
        "--parallelism.pipeline_parallel_last_stage_less_layers", "0",
    ]  # fmt: skip
    return case(layout, *flags, model=[*MODEL[:-1], json.dumps(size)], steps=steps)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_undisturbed_steps_on_every_layout(tmp_path):
    said = launched({layout: undisturbed(layout, steps=STEPS) for layout in MATRIX}, tmp_path)
    assert said == dict.fromkeys(MATRIX, "")
