"""The same run on every layout: each against a single process that knows nothing of it.

One launch per number of processes serves all of its cases. In float64 a right layout agrees to 1e-14 or so,
and a wrong one shows at once.
"""

import itertools
import json
from pathlib import Path

import pytest

from hekaton.testing.distributed import NamedLayout, run_processes

CASES_A_LAUNCH = 16
"""The first case of a process costs twice what the others do; many of them have to be done within its timeout."""
SCRIPT = Path(__file__).with_name("layouts.py")

FLOAT64 = ["--training.dtype", "float64", "--training.mixed_precision_param", "float64",
           "--training.mixed_precision_reduce", "float64"]  # fmt: skip
FLOAT32 = ["--training.mixed_precision_param", "float32"]
TIED = ["--model.flavor", "debugmodel_tied"]
CONVERTERS = "--model.converters"

REFERENCES = {
    "float64": FLOAT64,
    "float64 concat": [*FLOAT64, "--training.packing", "concat"],
    "float32": FLOAT32,
    "float32 concat": [*FLOAT32, "--training.packing", "concat"],
    "float64 tied": [*FLOAT64, *TIED],
    "float64 tied everywhere": [*FLOAT64, CONVERTERS, '["tie_everywhere"]'],
    "float64 tied within stages": [*FLOAT64, CONVERTERS, '["tie_within_stages"]'],
    "bfloat16": [],
    "bfloat16 tied": TIED,
}
IN_BFLOAT16 = {"weights": 0, "first_loss": 2e-4, "gradients": 3e-2, "grad_norm": 1e-3, "last_loss": 1e-3}
EXACT = {"weights": 0, "first_loss": 1e-10, "gradients": 1e-10, "grad_norm": 1e-10, "last_loss": 1e-10}
IN_FLOAT32 = {"weights": 0, "first_loss": 1e-5, "gradients": 1e-4, "grad_norm": 1e-4, "last_loss": 1e-5}
TOLERANCES = {
    "float64": EXACT,
    "float64 concat": EXACT,
    "float64 tied": EXACT,
    "float64 tied everywhere": EXACT,
    "float64 tied within stages": EXACT,
    "float32": IN_FLOAT32,
    "float32 concat": IN_FLOAT32,
    # 8 bits of mantissa: each product is rounded by up to 2**-9, and sums in another order round differently.
    "bfloat16": IN_BFLOAT16,
    "bfloat16 tied": IN_BFLOAT16,
}


DEEP, SHALLOW = 6, 3
"""Layers: of pipelines, whose stages have some each, and of converters, which tie some; a first, a middle and a
last one are what all other layouts can tell apart."""


def reference_name(reference: str, layers: int) -> str:
    return f"{reference}, {layers} layers"


def references() -> dict[str, dict]:
    """What the single process runs."""
    return {
        reference_name(reference, layers): {
            "flags": [*flags, "--training.local_batch_size", "8"], "layers": layers,
        }
        for reference, flags in REFERENCES.items()
        for layers in (DEEP, SHALLOW)
        if layers == DEEP or CONVERTERS not in flags
    }  # fmt: skip


def case(
    layout: str, *flags: str, reference: str = "float64", mutation: str | None = None, title: str = ""
) -> tuple:
    """:param layout: see :class:`NamedLayout`; :param title: in place of the flags, where those are long."""
    layout = NamedLayout(layout)
    deep = layout.degrees["pp"] > 1 or CONVERTERS in REFERENCES[reference]
    layers = DEEP if deep else SHALLOW
    rows = ["--training.local_batch_size", str(8 // layout.dp)]
    local = [] if "--training.local_batch_size" in flags else rows
    titles = [title] if title else [flag.split(".")[-1] for flag in flags]
    name = " ".join([layout.name, *titles, reference, mutation or ""]).strip()
    described = {
        "flags": [*REFERENCES[reference], *layout.flags, *local, *flags],
        "reference": reference_name(reference, layers),
        "precision": reference,
        "layers": layers,
        "mutation": mutation,
    }
    return layout.processes, name, described


AXES = ["replicate", "shard", "cp", "tp", "pp"]
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
MUTATIONS = [
    case("shard2", mutation="no gradient reduction"),
    case("shard2", mutation="halved loss"),
    case("cp2", mutation="positions shifted by one"),
]
SCHEDULES = ["GPipe", "Interleaved1F1B", "InterleavedZeroBubble", "LoopedBFS", "ZBVZeroBubble", "DualPipeV"]
COMPILE = ("--compile.enable", "--compile.backend", "aot_eager")
MODE = "--activation_checkpoint.mode"
BY_OPERATOR = (MODE, "selective", "--activation_checkpoint.selective_ac_option", "op")

TIES = [
    case("tp2", reference="float64 tied"),
    case("shard2", reference="float64 tied everywhere"),
    *[case(layout, reference="float64 tied within stages") for layout in ("tp2", "pp2")],
]
MORE_TIES = [
    *[
        case(layout, reference="float64 tied")
        for layout in (
            "shard2",
            "cp2",
            "replicate2",
            "tp4",
            "shard2 tp2",
            "cp2 tp2",
            "replicate2 tp2",
            "shard2 cp2 tp2",
        )
    ],
    case("tp2", "--parallelism.no-sequence_parallel", reference="float64 tied"),
    case("tp2", "--parallelism.disable_loss_parallel", reference="float64 tied"),
    case("tp2", *ACCUMULATE, reference="float64 tied"),
    case("tp2", *COMPILE, reference="float64 tied"),
    case("tp2", "--training.enable_cpu_offload", reference="float64 tied"),
    case("shard2 tp2", reference="bfloat16 tied"),
    *[case(layout, reference="float64 tied everywhere") for layout in ("tp2", "cp2", "shard2 tp2")],
    *[case(layout, MODE, "full", reference="float64 tied everywhere") for layout in ("shard2", "tp2")],
    *[case(layout, *COMPILE, reference="float64 tied within stages") for layout in ("shard2", "tp2", "pp2")],
    *[case(layout, reference="float64 tied within stages") for layout in ("shard2", "cp2", "shard2 tp2")],
    *[case(layout, reference="float64 tied within stages") for layout in ("pp2 tp2", "shard2 pp2")],
]
COMPILED = [
    ("shard2", *COMPILE),
    ("tp2", *COMPILE),
    ("cp2", *COMPILE),
    ("cp2", *COMPILE, STRATEGY, "ring"),
    ("cp2", *COMPILE, STRATEGY, "ulysses"),
    ("pp2", *COMPILE),
    *(
        (layout, *mode)
        for layout in ("shard2", "tp2", "cp2", "pp2")
        for mode in ((MODE, "full"), (MODE, "selective"), BY_OPERATOR)
    ),
    ("shard2", *COMPILE, MODE, "full"),
    ("shard2", *COMPILE, *BY_OPERATOR),
    ("shard2", *COMPILE, MODE, "memory_budget", "--activation_checkpoint.memory_budget", "0.2"),
    ("tp2", *COMPILE, MODE, "full"),
    ("tp2", *COMPILE, MODE, "selective"),
    ("tp2", *COMPILE, *BY_OPERATOR),
    ("cp2", *COMPILE, *BY_OPERATOR),
    ("cp2", *COMPILE, STRATEGY, "ring", MODE, "full"),
    ("cp2", *COMPILE, STRATEGY, "ring", *BY_OPERATOR),
    ("cp2", STRATEGY, "ring", *BY_OPERATOR),
    ("pp2", *COMPILE, *BY_OPERATOR),
    ("pp2", *COMPILE, SCHEDULE, "InterleavedZeroBubble"),
    ("pp2", SCHEDULE, "InterleavedZeroBubble", MODE, "full"),
    ("pp2", *COMPILE, SCHEDULE, "InterleavedZeroBubble", *BY_OPERATOR),
]
PLAN = "--parallelism.plan"
WHOLE_FEED_FORWARD = json.dumps(
    {"layers.*.feed_forward.{w1,w2,w3}": "replicate", "layers.*.feed_forward": "replicate"}
)
STRANGERS_STYLE = json.dumps({"layers.*.feed_forward.{w1,w3}": "even_columns"})
STAGES = json.dumps(
    [
        ["tok_embeddings", *(f"layers.{i}" for i in range(4))],
        ["layers.4", "layers.5", "norm", "output"],
    ]
)
OPTIONS = [
    case("tp2", PLAN, STRANGERS_STYLE, title="plan with another plugin's style"),
    case("tp2", "--parallelism.no-sequence_parallel", PLAN, WHOLE_FEED_FORWARD,
         title="no-sequence_parallel, feed_forward replicated"),
    case("pp2", "--parallelism.module_fqns_per_model_part", STAGES, title="module_fqns_per_model_part"),
    case("pp2", "--parallelism.pipeline_parallel_layers_per_stage", "1", SCHEDULE, "Interleaved1F1B",
         "--parallelism.pipeline_parallel_first_stage_less_layers", "0",
         "--parallelism.pipeline_parallel_last_stage_less_layers", "0", title="six stages, one layer each"),
    case("pp2", "--parallelism.pipeline_parallel_microbatch_size", "2"),
    *[case(layout, "--training.enable_cpu_offload") for layout in ("shard2", "tp2", "pp2", "shard2 tp2")],
    *[case("shard2", "--parallelism.fsdp_reshard_after_forward", when) for when in ("always", "never")],
    case("shard2", "--debug.deterministic"),
]  # fmt: skip
FULL = [
    *OPTIONS,
    *[case("pp2", SCHEDULE, schedule) for schedule in SCHEDULES],
    case("pp2", f"{SCHEDULE}_csv", str(SCRIPT.with_name("all_forward.csv"))),
    case("tp2", *ACCUMULATE),
    case("cp2", *ACCUMULATE),
    case("pp2", "--training.local_batch_size", "2"),
    case("cp2", "--parallelism.context_parallel_load_balancer", "none"),
    *[
        case(f"{axis}2", reference=reference)
        for axis in ("tp", "cp", "pp")
        for reference in ("float32", "bfloat16")
    ],
    case("cp2", STRATEGY, "ring", reference="float32 concat"),
    case(
        "cp2",
        STRATEGY,
        "ring",
        "--parallelism.context_parallel_load_balancer",
        "none",
        reference="float32 concat",
    ),
    *[case(f"{axis}4") for axis in AXES],
    *[case("cp4", STRATEGY, strategy) for strategy in ("ring", "ulysses")],
    *[case(f"{a}2 {b}2") for a, b in itertools.combinations(AXES, 2)],
    *[case("cp2 tp2", STRATEGY, strategy) for strategy in ("ring", "ulysses")],
    case("cp2 tp2", STRATEGY, "ring", reference="float32 concat"),
    case("shard2 tp2", reference="float32"),
    case("shard2 tp2", reference="bfloat16"),
    case("shard2 pp2", SCHEDULE, "InterleavedZeroBubble"),
    case("shard2 pp2", "--parallelism.fsdp_reshard_after_forward", "always"),
    case("shard2 pp2", reference="bfloat16"),
    case("shard2 tp2", *ACCUMULATE),
    case("shard2 tp2 pp2"),
    case("shard2 cp2 tp2"),
    case("replicate2 shard2 tp2"),
    case("cp2 pp2 tp2"),
    case("pp2 tp2", reference="float64 concat"),
    case("cp2 pp2", reference="float64 concat"),
    case("shard2 cp2 tp2", reference="bfloat16"),
]
GROUPS = {
    "quick": [*QUICK, *MUTATIONS],
    "ties": TIES,
    "matrix": [*FULL, *MORE_TIES],
    "compiled": [
        *[case(*row) for row in COMPILED],
        case("cp2", *COMPILE, STRATEGY, "ring", *BY_OPERATOR, reference="float32 concat"),
    ],
}
"""What one launch serves, for each number of processes."""

CASES = {
    name: (processes, group, described)
    for group, cases in GROUPS.items()
    for processes, name, described in cases
}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where the single process has written what it gave, for every reference."""
    folder = tmp_path_factory.mktemp("layouts")
    run_processes(
        SCRIPT, "run", processes=1, timeout=110, cases=references(), folder=str(folder), reference=True
    )
    return folder


@pytest.fixture(scope="session")
def differences(folder):
    """Launches some cases of a group and number of processes when first asked for one of them."""
    known = {}

    def of(name):
        processes, group, _ = CASES[name]
        launched = [other for other, its in CASES.items() if its[:2] == (processes, group)]
        start = launched.index(name) // CASES_A_LAUNCH * CASES_A_LAUNCH
        if (launch := (processes, group, start)) not in known:
            known[launch] = {}  # so that a launch which fails is not tried again
            cases = {other: CASES[other][2] for other in launched[start : start + CASES_A_LAUNCH]}
            run_processes(
                SCRIPT, "run", processes=processes, timeout=580, cases=cases, folder=str(folder), reference=False,
            )  # fmt: skip
            known[launch] = json.loads(Path(folder, f"differences-{processes}.json").read_text())
        return known[launch][name]

    return of


def wrong(name, differences):
    """What differs by more than it may, with by how much."""
    got = differences(name)
    bounds = TOLERANCES[CASES[name][2]["precision"]]
    return {key: got[key] for key, bound in bounds.items() if not got[key] <= bound}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [name for _, name, _ in [*QUICK, *TIES]])
def test_layout_is_the_single_process(name, differences):
    assert not wrong(name, differences)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name", [name for name, (_, group, _) in CASES.items() if group not in ("quick", "ties")]
)
def test_layout_of_the_matrix_is_the_single_process(name, differences):
    assert not wrong(name, differences)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [name for _, name, _ in MUTATIONS])
def test_the_comparison_fails_for_wrong_parallelism(name, differences):
    assert "gradients" in wrong(name, differences)
