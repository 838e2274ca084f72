"""Requests a second of hekaton-eval and of the harness's own ``hf`` backend, on the same model and batches.

    python benchmarks/eval.py [--rounds 5] [--requests 240] [--batch_size 8]

Both have the model in float32 on the CPU, from one folder in the format of Hugging Face. They take turns,
and of each kind of request the fastest round counts: what else a machine does only slows rounds down.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

SIZES = {"n_layers": 4, "dim": 256, "n_heads": 8, "n_kv_heads": 4, "hidden_dim": 768, "vocab_size": 2048}


def exported(folder: Path) -> Path:
    """A small Llama 3 in the format of Hugging Face, with its tokenizer."""
    import hekaton
    from hekaton.checkpoint.tensors.model_only import write_model
    from hekaton.cli import main
    from hekaton.weights import LazyTensor
    from hekaton_hf.tokenizer import SHIPPED

    model = hekaton.build("llama3", "debugmodel", **SIZES)
    tensors = {
        name: LazyTensor(tuple(one.shape), one.dtype, lambda region, one=one: one.detach()[region])
        for name, one in model.state_dict().items()
    }
    settings = {"name": "llama3", "flavor": "debugmodel", "overrides": SIZES, "tokenizer": "hf"}
    describe = {
        "model": "llama3", "flavor": "debugmodel",
        "config": {"model": settings, "training": {"seq_len": 512}},
    }  # fmt: skip
    (folder / "step").mkdir()
    write_model(folder / "step", tensors, describe=describe)
    if main(["convert", "to-hf", str(folder / "step"), str(folder / "hf"), "--hf_assets_path", str(SHIPPED)]):
        raise SystemExit("the model cannot be exported")
    return folder / "hf"


def requests(count: int) -> dict[str, list[Any]]:
    """Requests of each kind, on pieces of a source file."""
    source = Path(json.__file__).parent.joinpath("decoder.py").read_text(encoding="utf-8")
    draw = random.Random(0)

    def piece(least: int, most: int) -> str:
        start = draw.randrange(len(source) - most)
        return source[start : start + draw.randint(least, most)]

    questions = [piece(60, 500) for _ in range(count // 4)]
    return {
        "loglikelihood": [_of(question, piece(3, 30)) for question in questions for _ in range(4)],
        "loglikelihood_rolling": [_of(piece(100, 1500)) for _ in range(count // 8)],
        "generate_until": [
            _of(question, {"until": ["\n\n\n"], "max_gen_toks": 24}) for question in questions[: count // 8]
        ],
    }


def _of(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments, task_name="benchmark")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("rounds", 5), ("requests", 240), ("batch_size", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    warnings.simplefilter("ignore")

    from lm_eval.models.huggingface import HFLM

    from hekaton_eval.backend import HekatonLM

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(open(os.devnull, "w")):
        place = str(exported(Path(folder)))
        backends = {
            "hekaton": HekatonLM(hf=place, batch_size=given.batch_size),
            "hf": HFLM(pretrained=place, device="cpu", dtype="float32", batch_size=given.batch_size),
        }
        asked = requests(given.requests)
        best: dict[tuple[str, str], float] = {}
        for number in range(given.rounds + 1):
            for kind, those in asked.items():
                for name, backend in backends.items():
                    began = time.process_time()
                    getattr(backend, kind)(those, disable_tqdm=True)
                    spent = time.process_time() - began
                    if number:  # the first round warms up
                        best[kind, name] = min(best.get((kind, name), spent), spent)
    print(f"requests per second of processor time, best of {given.rounds}, batch size {given.batch_size}")
    print(f"{'':24}{'hekaton':>10}{'hf':>10}")
    for kind, those in asked.items():
        mine, theirs = (len(those) / best[kind, name] for name in backends)
        print(f"{kind:24}{mine:10.1f}{theirs:10.1f}   {mine / theirs:.2f}x")


if __name__ == "__main__":
    main()
