"""Contributions that are no text model: equal to one process on every layout, and in the dry run."""

import json
import os
from pathlib import Path

import pytest

from hekaton.testing import run_command, run_processes
from hekaton.testing.distributed import NamedLayout

HERE = Path(__file__).parent
SCRIPT = HERE / "layouts.py"
FLOAT64 = [
    "--training.dtype", "float64", "--training.mixed_precision_param", "float64",
    "--training.mixed_precision_reduce", "float64",
]  # fmt: skip
PLUGIN = ["--plugins.load", str(HERE / "toys.py")]
RUNS = {
    "denoiser": [
        *PLUGIN, "--model.name", "denoiser", "--model.overrides", "{}", "--training.objective", "masked_denoising"
    ],
    "muon": [
        "--optimizer.name", "Muon",
        "--optimizer.groups", '[{"match": "*norm*", "weight_decay": 0.0, "lr_factor": 0.5}]',
    ],
    "adapters": [*PLUGIN, "--model.converters", "adapt_values"],
    "lora": [*PLUGIN, "--model.converters", "lora,start_adapters", "--lora.rank", "4"],
    "z-loss": [*PLUGIN, "--training.objective", "next_token_z"],
}  # fmt: skip
RUNS["lora in the last layer"] = [*RUNS["lora"], "--lora.targets", "layers.5.attention.wv"]
"""Under a pipeline, all that earlier stages have is frozen."""
STEPS = 3
RECOMPUTED = ["--activation_checkpoint.mode", "full"]
ACCUMULATED = ["--training.local_batch_size", "1"]
CASES = [
    *[(run, layout) for run in ("adapters", "lora in the last layer") for layout in ("tp2", "pp2")],
    *[
        (run, layout, *flags)
        for run in ("denoiser", "muon", "lora", "z-loss")
        for layout, *flags in [
            ("shard2", *ACCUMULATED),
            ("shard2", *RECOMPUTED),
            ("tp2",),
            ("tp2", "--parallelism.no-sequence_parallel", "--parallelism.disable_loss_parallel"),
            ("cp2",),
            ("pp2", *RECOMPUTED),
            ("pp2", "--parallelism.pipeline_parallel_schedule", "ZBVZeroBubble"),
        ]
    ],
]


def described(run, layout, *flags):
    layout = NamedLayout(layout)
    rows = (
        [] if "--training.local_batch_size" in flags else ["--training.local_batch_size", str(8 // layout.dp)]
    )
    flags = [*FLOAT64, *RUNS[run], *layout.flags, *rows, *flags]
    return {"flags": flags, "reference": run, "steps": STEPS}


def name(case):
    return " ".join(case)


@pytest.fixture(scope="module")
def differences(tmp_path_factory):
    folder = tmp_path_factory.mktemp("contracts")
    references = {run: described(run, "shard1") for run in RUNS}
    run_processes(
        SCRIPT, "run", processes=1, timeout=110, cases=references, folder=str(folder), reference=True
    )
    cases = {name(case): described(*case) for case in CASES}
    run_processes(SCRIPT, "run", processes=2, timeout=400, cases=cases, folder=str(folder), reference=False)
    return json.loads((folder / "differences-2.json").read_text())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_layout_is_the_single_process(case, differences):
    got = differences[name(case)]
    assert got["weights"] == got["buffers"] == 0
    assert max(got[key] for key in ("gradients", "first_loss", "grad_norm", "last_loss")) < 1e-10


@pytest.mark.parametrize("degree", ["pipeline", "context", "tensor"])
def test_the_dry_run_takes_float_inputs(degree, tmp_path):
    done = run_command(
        "train", *RUNS["denoiser"], "--comm.mode", "fake_backend", "--model.tokenizer", "byte",
        "--training.seq_len", "64", f"--parallelism.{degree}_parallel_degree", "2",
        cwd=tmp_path, environment={**os.environ, "NGPU": "8"},
        warnings="",  # torch's, of the view that this model returns
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "one step ran as rank 0 of 8" in done.stderr
