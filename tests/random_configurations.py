"""Random run files: what ``hekaton config check`` accepts trains, what it refuses ends with 2 and no traceback.

``python random_configurations.py SEED FIRST COUNT`` tries some of the configurations of a seed, in an empty
folder, and prints each that breaks this promise. Each is a run that is right, with a few fields replaced by
values of the right or of another type, small, beyond reason, or none at all.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import random
import sys
import tempfile
import traceback
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import tomli_w

from hekaton.cli import main
from hekaton.config.base import NameOf, dotted, marks, walk
from hekaton.config.job import config_class
from hekaton.plugins import Plugins

RIGHT = {
    "model.name": "llama3", "model.tokenizer": "byte",
    "model.overrides.dim": 16, "model.overrides.n_layers": 2, "model.overrides.n_heads": 2,
    "model.overrides.n_kv_heads": 1, "model.overrides.hidden_dim": 32, "model.overrides.vocab_size": 300,
    "training.dataset": "text", "training.dataset_path": "text.txt", "training.seq_len": 16, "training.local_batch_size": 2,
    "training.steps": 2, "training.mixed_precision_param": "float32", "lr_scheduler.warmup_steps": 0,
    "validation.steps": 2, "validation.seq_len": 16, "validation.local_batch_size": 2,
    "activation_checkpoint.mode": "none", "compile.backend": "eager", "job.dump_folder": "out",
    "comm.init_timeout_seconds": 20, "comm.train_timeout_seconds": 20,
}  # fmt: skip

WITH_EXPERTS = {name: value for name, value in RIGHT.items() if name != "model.overrides.hidden_dim"} | {
    "model.name": "qwen3", "model.flavor": "debugmodel_moe", "model.overrides.head_dim": 8,
    "model.overrides.moe.n_experts": 4, "model.overrides.moe.top_k": 2, "model.overrides.moe.hidden_dim": 8,
}  # fmt: skip

SMALL = [-1, 0, 1, 2, 3, 4, 7, 16, 64]
BEYOND = [-(2**63), -(10**9), 10**9, 10**11, 2**63 - 1, 2**63]
FLOATS = [
    0.0,
    1e-8,
    1e-3,
    0.1,
    0.5,
    0.999,
    1.0,
    2.0,
    -1.0,
    1e-320,
    1e30,
    1e308,
    math.inf,
    -math.inf,
    math.nan,
]
WORDS = ["", "x", "none", "a b", "é\n", "0", "-1", "~nobody_here/x", "a\0b", "x" * 5000, "None", "*"]

SLOW = {"training.steps": SMALL, "compile.backend": ["eager", "aot_eager", "nothing"]}
"""Fields of which some right values make a run that takes long: values to try instead."""
NOT_TRIED = {
    "job.config_file": "a flag only",
    "training.dataset": "downloads", "training.dataset_path": "belongs to the dataset, which checks it when opened",
    "validation.dataset": "downloads", "validation.dataset_path": "likewise",
    "model.flavor": "flavors of billions of parameters", "model.name": "has its own tests",
    "checkpoint.folder": "URLs of stores", "checkpoint.initial_load_path": "checked when opened",
    "plugins.load": "runs files", "plugins.disable": "has its own tests",
    "comm.mode": "a dry run", "activation_checkpoint.visualize_memory_budget_pareto": "needs matplotlib",
}  # fmt: skip
OVERRIDES = (
    "dim", "n_layers", "n_heads", "n_kv_heads", "hidden_dim", "vocab_size", "norm_eps", "rope_theta",
    "rope_scaling", "tie_embeddings", "nothing",
)  # fmt: skip
OF_EXPERTS: dict[str, list[Any]] = {
    "n_experts": [1, 2, 4, 7, 16], "top_k": [1, 2, 3, 4, 7], "hidden_dim": [1, 3, 16, 64],
    "n_shared_experts": [0, 1, 3], "score": ["softmax", "sigmoid", "nothing"], "renormalise": [True, False],
    "route_scale": [*FLOATS], "weights_on_input": [True, False], "n_groups": [1, 2, 4],
    "n_limited_groups": [1, 2, 4], "group_score": ["max", "sum_of_top2", "best"],
    "bias_rate": [1e-3, 1.0, *FLOATS], "sequence_balance": [1e-4, 1.0, *FLOATS],
    "batch_balance": [1e-3, 1.0, *FLOATS], "nothing": [1],
}  # fmt: skip


def configuration(seed: int, number: int) -> dict[str, Any]:
    """Dotted path -> value of one configuration."""
    chance = random.Random(f"{seed}/{number}")
    fields = [(dotted(path), field) for path, field, _ in walk(_config()) if dotted(path) not in NOT_TRIED]
    experts = chance.random() < 0.25
    values = dict(WITH_EXPERTS if experts else RIGHT)
    for name in chance.sample(sorted(OF_EXPERTS), chance.randint(1, 2)) if experts else ():
        right = chance.random() < 0.9
        value = chance.choice(OF_EXPERTS[name] if right else [*SMALL, *BEYOND, *FLOATS, "x", {}])
        values[f"model.overrides.moe.{name}"] = value
    for name, field in chance.sample(fields, chance.randint(0, 1) if experts else chance.randint(1, 4)):
        if name == "model.overrides":
            name = f"model.overrides.{chance.choice(OVERRIDES)}"
            values[name] = chance.choice(
                [chance.choice(SMALL), chance.choice([*BEYOND, *FLOATS, "x", True, {}])]
            )
        elif name in SLOW and chance.random() < 0.9:
            values[name] = chance.choice(SLOW[name])
        else:
            value = _value(field.annotation, [mark.kind for mark in marks(field, NameOf)], chance)
            if name in SLOW and isinstance(value, int) and value > max(SMALL):
                value = str(value)  # a run of 10^9 steps is right, and never done
            values[name] = value
    return values


def _value(annotation: Any, named: list[Any], chance: random.Random) -> Any:
    if chance.random() < 0.1:
        return chance.choice([True, 1, 1.5, "word", [], ["a"], {}, {"a": 1}])
    names = [*_plugins().all(named[0])] if named else []
    if names and chance.random() < 0.8:
        known = chance.choice(names)
        return [known] if get_origin(annotation) is list else known
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _value(arguments[0], [], chance)
    if origin is Literal:
        return chance.choice([*arguments, "nothing"])
    if origin in (Union, types.UnionType):
        return _value(chance.choice([a for a in arguments if a is not type(None)]), [], chance)
    if origin is list:
        return [_value(arguments[0], [], chance) for _ in range(chance.randint(0, 2))]
    if origin is dict or annotation is dict:
        return chance.choice([{}, {"layers.*.attention.wq": "colwise"}, {"x": "y"}, {"**": ""}])
    if annotation is bool:
        return chance.random() < 0.5
    if annotation is int:
        return chance.choice(SMALL if chance.random() < 0.7 else BEYOND)
    if annotation is float:
        return chance.choice(FLOATS)
    return chance.choice(WORDS)


def as_toml(values: dict[str, Any]) -> str:
    tables: dict[str, Any] = {}
    for name, value in values.items():
        *inside, last = name.split(".")
        table = tables
        for key in inside:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):  # a section that was replaced by a value
                return as_toml({key: value for key, value in values.items() if key != name})
        table[last] = value
    return tomli_w.dumps(tables)


def broken_promise(file: Path) -> str:
    """What is wrong with how the command treats a run file; empty where nothing is."""
    status, said = _run("config", "check", str(file), "--world_size", "1")
    if status == 2 and "error: " in said:
        return ""
    if status != 0:
        return f"check ended with {status}:\n{said}"
    status, said = _run("train", str(file))
    return "" if status == 0 else f"check accepted it, and train ended with {status}:\n{said}"


def _run(*words: str) -> tuple[object, str]:
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            status: object = main(list(words))
        except BaseException:
            status = "a traceback"
            traceback.print_exc(file=output)
    return status, output.getvalue()


@functools.cache
def _plugins() -> Plugins:
    return Plugins.discover()


@functools.cache
def _config() -> Any:
    return config_class(_plugins())[0]


def try_some(seed: int, first: int, count: int) -> int:
    """Try configurations; :returns: how many broke the promise."""
    import torch

    torch.set_num_threads(1)
    accepted = bad = 0
    for number in range(first, first + count):
        text = as_toml(configuration(seed, number))
        print(f"{number} of seed {seed}", file=sys.__stderr__, flush=True)
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            file = Path("run.toml")
            file.write_text(text, encoding="utf-8")
            Path("text.txt").write_text("to be or not to be\n" * 200, encoding="utf-8")
            wrong = broken_promise(file)
            accepted += any(path.is_dir() for path in Path().iterdir())
        if torch.are_deterministic_algorithms_enabled():
            torch.use_deterministic_algorithms(False)
        logging.getLogger("hekaton").handlers.clear()
        if wrong:
            bad += 1
            print(f"--- configuration {number} of seed {seed}\n{text}--- {wrong}", flush=True)
    print(f"{count} configurations, {accepted} trained, {bad} broke the promise", flush=True)
    return bad


if __name__ == "__main__":
    sys.exit(min(1, try_some(*map(int, sys.argv[1:]))))
