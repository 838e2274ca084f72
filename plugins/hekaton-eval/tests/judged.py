"""Small models, tasks made for the tests, and what a backend of the harness answers them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import hekaton
from hekaton.checkpoint.tensors.model_only import write_model
from hekaton.distributed import Process
from hekaton.identity.kept import TOKENIZER
from hekaton.loading import load_checkpoint
from hekaton.plugins import Plugins
from hekaton.weights import LazyTensor
from hekaton_hf.tokenizer import build

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("debugmodel", {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 96}),
    "qwen3": ("debugmodel_moe", {"n_layers": 2}),
    "deepseek_v3": ("debugmodel", {"n_layers": 2}),
    "gpt_oss": ("debugmodel", {"n_layers": 2}),
}
TASKS = ("choice.yaml", "rolling.yaml", "until.yaml")
COMMON = "dataset_path: json\ndataset_kwargs: {cache_dir: CACHE, data_files: {test: %s}}\ntest_split: test\nfewshot_split: test\n"
CHOICE = (
    "task: tiny_choice\n"
    + COMMON % "questions.jsonl"
    + """\
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: answer
doc_to_choice: choices
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
)
ROLLING = (
    "task: tiny_rolling\n"
    + COMMON % "texts.jsonl"
    + """\
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
)
UNTIL = (
    "task: tiny_until\n"
    + COMMON % "asked.jsonl"
    + """\
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n\\n", "e"], max_gen_toks: 12}
metric_list: [{metric: exact_match}]
"""
)
QUESTIONS = [
    ("def main(", ["self", "args", "x, y"], 1),
    ("import os\nimport", [" sys", " re", " the quick brown fox"], 0),
    ("for i in range(", ["10", "len(x)", "len(y)"], 0),
    ("class A:\n    def __init__(self", [")", ", name", "):"], 2),
    ("", [" return None", " self", "x"], 0),
    ("# " + "a long comment " * 60 + "\n", ["x = 1", "y = 2"], 0),
]
"""The last context is longer than the models' texts."""


def write_tasks(folder: Path) -> None:
    """The tasks of :data:`TASKS`, with their data beside them."""
    for name, content in (("choice", CHOICE), ("rolling", ROLLING), ("until", UNTIL)):
        (folder / f"{name}.yaml").write_text(content.replace("CACHE", str(folder / "cache")))
    lines = [{"question": text, "choices": choices, "answer": right} for text, choices, right in QUESTIONS]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # The hf backend continues an empty text with what follows its padding.
    asked = [line for line in lines if line["question"]]
    (folder / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked))
    source = Path(json.__file__).read_text()
    texts = [source[start : start + length] for start, length in ((0, 40), (500, 150), (900, 330))]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def save_model(folder: Path, name: str) -> Path:
    """A checkpoint of a model that has opinions: logits of some size, no two of them alike."""
    flavor, overrides = MODELS[name]
    overrides = {"vocab_size": 2048, **overrides}
    model = hekaton.build(name, flavor, seed=3, **overrides)
    tensors = {key: value.detach() for key, value in model.state_dict().items()}
    tensors["output.weight"] = tensors["output.weight"] * 3
    described = {"name": name, "flavor": flavor, "overrides": overrides, "tokenizer": "hf"}
    folder.mkdir(parents=True)
    write_model(
        folder,
        {
            key: LazyTensor(tuple(one.shape), one.dtype, lambda region, one=one: one[region])
            for key, one in tensors.items()
        },
        describe={
            "model": name,
            "flavor": flavor,
            "config": {"model": described, "training": {"seq_len": 128}},
            "identity": {TOKENIZER: build(None, None).fingerprint},
        },
    )
    return folder


def answers(model: Any, folder: Path, **given: Any) -> dict[str, Any]:
    """What a backend answers to each request, by task, and the metrics.

    :param given: further arguments of the harness's ``evaluate``.
    """
    from lm_eval.evaluator import evaluate

    from hekaton_eval.in_run import numbers_of
    from hekaton_eval.tasks import load_tasks

    tasks = load_tasks([str(folder / name) for name in TASKS])
    found = evaluate(lm=model, task_dict=tasks, bootstrap_iters=0, log_samples=True, **given)
    assert found is not None
    given = {task: [one["resps"] for one in samples] for task, samples in found["samples"].items()}
    return {"answers": json.loads(json.dumps(given)), "metrics": numbers_of(found)}


def check_same(mine: dict[str, Any], others: dict[str, Any], *, within: float = 1e-4) -> None:
    """Log-likelihoods to within 1e-4, everything else equal."""
    assert mine["answers"].keys() == others["answers"].keys()
    for task in mine["answers"]:
        for number, (one, other) in enumerate(
            zip(mine["answers"][task], others["answers"][task], strict=True)
        ):
            _check_one(one, other, f"{task} {number}", within)
    for name, value in others["metrics"].items():
        assert abs(mine["metrics"][name] - value) <= 1e-5 * abs(value), name


def _check_one(one: Any, other: Any, what: str, within: float) -> None:
    if isinstance(one, list):
        for mine, theirs in zip(one, other, strict=True):
            _check_one(mine, theirs, what, within)
    elif isinstance(one, float):
        assert abs(one - other) <= within, (what, one, other)
    else:
        assert one == other, what


LAYOUTS: list[tuple[str, dict[str, int]]] = [
    ("llama3", {"data_parallel_shard_degree": 2}),
    ("llama3", {"tensor_parallel_degree": 2}),
    ("llama3", {"data_parallel_replicate_degree": 2}),
    ("qwen3", {"expert_parallel_degree": 2}),
    ("deepseek_v3", {"tensor_parallel_degree": 2, "expert_parallel_degree": 2}),
]


def on_layouts(folder: str) -> None:
    """Run on two processes: the answers on each of :data:`LAYOUTS` go to ``layout-N.json``."""
    from hekaton.scoring.forward import Forward, PlainForward
    from hekaton.scoring.layout import Placement, copies
    from hekaton_eval.backend import ScoringLM, of_model

    torch.distributed.init_process_group("gloo")
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    plugins = Plugins.discover()
    place = Path(folder)
    for number, (name, degrees) in enumerate(LAYOUTS):
        device = torch.device("cpu")
        placement = Placement(degrees, Process(rank, size, device), plugins)
        arrange = None if placement.is_replicas else placement
        loaded = load_checkpoint(str(place / name), plugins, device=device, arrange=arrange)
        forward: Forward = (
            PlainForward(loaded.model, cache=loaded.spec.cache, group=copies())
            if arrange is None
            else placement.forward
        )
        model = ScoringLM(
            forward, loaded.tokenizer, batch_size=3, quiet=True, **of_model(loaded, max_length=None)
        )
        (place / f"layout-{number}-{rank}.json").write_text(json.dumps(answers(model, place)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
