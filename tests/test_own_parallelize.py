"""A model that parallelises itself: ``TrainSpec(parallelize=...)`` takes the plan's place."""

import re

from hekaton.testing import run_command

MODEL = """
import dataclasses

from hekaton.contributions import Model, Ref, hookimpl
from hekaton.parallel.fsdp import apply_fsdp
from hekaton_llama3.spec import train_spec


def by_hand(part, layout, meshes, dims, config):
    part.parallelized_by_hand = True
    apply_fsdp(
        part, layout.plan, meshes, dims, training=config.training, parallelism=config.parallelism
    )


spec = dataclasses.replace(train_spec, name="by_hand", parallelize=by_hand)
untouched = dataclasses.replace(train_spec, name="untouched", parallelize=lambda *_: None)
wraps = dataclasses.replace(train_spec, name="wraps", parallelize=lambda part, *_: part)


@hookimpl
def hekaton_models():
    return [
        Model("by_hand", spec=Ref("own_parallelize:spec"), summary="shards itself"),
        Model("untouched", spec=Ref("own_parallelize:untouched"), summary="leaves every gradient where it is"),
        Model("wraps", spec=Ref("own_parallelize:wraps"), summary="returns a module in place of changing it"),
    ]
"""
FLAGS = [
    "--plugins.load", "own_parallelize.py", "--model.flavor", "debugmodel", "--model.tokenizer", "byte",
    "--model.overrides", '{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 258}',
    "--training.steps", "3", "--training.seq_len", "16", "--training.global_batch_size", "4",
    "--training.local_batch_size", "2", "--training.mixed_precision_param", "float32",
    "--lr_scheduler.warmup_steps", "0", "--optimizer.lr", "1e-2", "--metrics.log_freq", "1",
]  # fmt: skip


def trained(folder, model, processes):
    (folder / "own_parallelize.py").write_text(MODEL)
    return run_command("train", *FLAGS, "--model.name", model, processes=processes, cwd=folder)


def losses(folder, model, processes):
    done = trained(folder, model, processes)
    assert done.returncode == 0, done.stderr
    return re.findall(r"step +\d+ +loss (\S+)", done.stderr)


def test_parallelize_replaces_what_a_plan_does(tmp_path):
    alone = losses(tmp_path, "llama3", 1)
    assert len(alone) == 3
    assert losses(tmp_path, "by_hand", 2) == alone
    assert losses(tmp_path, "untouched", 2) != alone  # nothing else has summed the gradients


def test_a_module_that_it_returns_is_an_error(tmp_path):
    done = trained(tmp_path, "wraps", 1)
    assert done.returncode == 2
    assert (
        "TrainSpec.parallelize returned Llama3: it changes the part in place and returns nothing"
        in done.stderr
    )
