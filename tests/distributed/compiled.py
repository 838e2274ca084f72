"""Layouts with compiled blocks and recomputed activations, as arguments of ``case`` in test_layouts.py."""

COMPILE = ("--compile.enable", "--compile.backend", "aot_eager")
STRATEGY = "--parallelism.context_parallel_strategy"
SCHEDULE = "--parallelism.pipeline_parallel_schedule"
MODE = "--activation_checkpoint.mode"
BY_OPERATOR = (MODE, "selective", "--activation_checkpoint.selective_ac_option", "op")

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
