"""The same run on every layout: each against a single process that knows nothing of it.

One launch per number of processes serves all of its cases. In float64 a right layout agrees to 1e-14 or so,
and a wrong one shows at once.
"""

import json
from pathlib import Path

import pytest

from hekaton.testing.distributed import run_processes

SCRIPT = Path(__file__).with_name("layouts.py")

DEGREES = {
    "replicate": "data_parallel_replicate_degree",
    "shard": "data_parallel_shard_degree",
    "cp": "context_parallel_degree",
    "tp": "tensor_parallel_degree",
    "pp": "pipeline_parallel_degree",
}
FLOAT64 = ["--training.dtype", "float64", "--training.mixed_precision_param", "float64",
           "--training.mixed_precision_reduce", "float64"]  # fmt: skip
FLOAT32 = ["--training.mixed_precision_param", "float32"]

REFERENCES = {
    "float64": FLOAT64,
    "float64 concat": [*FLOAT64, "--training.packing", "concat"],
    "float32": FLOAT32,
    "bfloat16": [],
}
EXACT = {"weights": 0, "first_loss": 1e-10, "gradients": 1e-10, "grad_norm": 1e-10, "last_loss": 1e-10}
TOLERANCES = {
    "float64": EXACT,
    "float64 concat": EXACT,
    "float32": {"weights": 0, "first_loss": 1e-5, "gradients": 1e-4, "grad_norm": 1e-4, "last_loss": 1e-4},
    # 8 bits of mantissa: a sum in another order moves each activation by up to 2**-8.
    "bfloat16": {"weights": 0, "first_loss": 5e-3, "gradients": 1e-1, "grad_norm": 2e-2, "last_loss": 2e-2},
}


def case(layout: str, *flags: str, reference: str = "float64", mutation: str | None = None) -> tuple:
    """:param layout: degrees, as ``shard2 tp2``; they are all that is not 1."""
    degrees = dict.fromkeys(DEGREES, 1)
    for word in layout.split():
        degrees[word.rstrip("0123456789")] = int(word.lstrip("abcdefghijklmnopqrstuvwxyz"))
    rows = 8 // (degrees["replicate"] * degrees["shard"])
    local = [] if "--training.local_batch_size" in flags else ["--training.local_batch_size", str(rows)]
    set_degrees = [
        word for axis, degree in degrees.items() for word in (f"--parallelism.{DEGREES[axis]}", str(degree))
    ]
    processes = 1
    for degree in degrees.values():
        processes *= degree
    name = " ".join([layout, *(flag.split(".")[-1] for flag in flags), reference, mutation or ""]).strip()
    described = {
        "flags": [*REFERENCES[reference], *set_degrees, *local, *flags],
        "reference": reference,
        "mutation": mutation,
    }
    return processes, name, described


ACCUMULATE = ["--training.local_batch_size", "1"]
STRATEGY = "--parallelism.context_parallel_strategy"
SCHEDULE = "--parallelism.pipeline_parallel_schedule"
QUICK = [
    case("shard2"),
    case("replicate2"),
    case("tp2"),
    case("tp2", "--parallelism.no-sequence_parallel"),
    case("tp2", "--parallelism.disable_loss_parallel"),
    case("cp2"),
    case("cp2", STRATEGY, "ring"),
    case("cp2", STRATEGY, "ulysses"),
    case("cp2", reference="float64 concat"),
    case("pp2"),
    case("shard2", *ACCUMULATE),
    case("shard2", reference="float32"),
    case("shard2", reference="bfloat16"),
]
CASES = {name: (processes, described) for processes, name, described in QUICK}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where the single process has written what it gave, for every reference."""
    folder = tmp_path_factory.mktemp("layouts")
    references = {
        name: {"flags": [*flags, "--training.local_batch_size", "8"]} for name, flags in REFERENCES.items()
    }
    run_processes(
        SCRIPT, "run", processes=1, timeout=110, cases=references, folder=str(folder), reference=True
    )
    return folder


@pytest.fixture(scope="session")
def differences(folder):
    """Launches each number of processes at most once, and remembers."""
    known = {}

    def of(name):
        processes = CASES[name][0]
        if processes not in known:
            cases = {name: described for name, (number, described) in CASES.items() if number == processes}
            run_processes(
                SCRIPT,
                "run",
                processes=processes,
                timeout=560,
                cases=cases,
                folder=str(folder),
                reference=False,
            )
            known[processes] = json.loads(Path(folder, f"differences-{processes}.json").read_text())
        return known[processes][name]

    return of


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CASES)
def test_layout_is_the_single_process(name, differences):
    got = differences(name)
    reference = CASES[name][1]["reference"]
    wrong = {key: got[key] for key, bound in TOLERANCES[reference].items() if got[key] > bound}
    assert not wrong, f"{name}: {wrong}; worst gradient: {got['worst_gradient']}"
