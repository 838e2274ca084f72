"""How long ``hekaton preprocess`` takes: with one worker, with two, and with two that encode with gigatoken.

    python benchmarks/preprocess.py [--repeats 3]

The documents are the sources of the installed Python packages up to 40 MB, cut into some 2,000 characters
each, in one JSON-lines file; the tokenizer is that of benchmarks/data.py. What is timed is from the opened
files to the whole corpus: encoding, writing, checksums, the cache of words that a tokenizer fills in each
worker, and for gigatoken the first documents of each worker, which are encoded by both. Sides take turns;
medians of the ratios are printed, of wall time and of the processor time of all processes. Wall time says
something only where nothing else uses two cores.
Goals: two workers 1.8 times as fast as one; with gigatoken 5 times as fast as that.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy
from data import trained

LENGTH = 2_000
"""Characters of a document."""
MOST = 40_000_000
"""Characters of all."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HEKATON_CACHE"] = str(Path(folder, "cache"))
        run(Path(folder), repeats=arguments.repeats)


def run(folder: Path, *, repeats: int) -> None:
    from hekaton.corpus.preprocess import preprocess
    from hekaton.data.stdlib import build
    from hekaton_hf.files import DataFile, FoundFiles
    from hekaton_hf.sections import HFTokenizerSection
    from hekaton_hf.text import read_texts
    from hekaton_hf.tokenizer import build as build_tokenizer

    stdlib = build(None, None)
    texts = stdlib.fetch(range(len(stdlib)))
    kept = trained(texts, stdlib.fingerprint)
    pieces = installed()
    file = folder / "sources.jsonl"
    file.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), encoding="utf-8")
    documents = read_texts(FoundFiles([DataFile(file)]))
    sides = {
        "tokenizers, 1 worker": ("tokenizers", 1),
        "tokenizers, 2 workers": ("tokenizers", 2),
        "gigatoken, 2 workers": ("gigatoken", 2),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, (backend, workers) in sides.items():
            out = folder / "corpus"
            shutil.rmtree(out, ignore_errors=True)
            tokenizer = build_tokenizer(HFTokenizerSection(backend=backend), str(kept))
            before = time.perf_counter(), processor_time()
            made = preprocess(documents, tokenizer, out, workers=workers)
            seconds[name].append((time.perf_counter() - before[0], processor_time() - before[1]))
    print(f"{made.documents:,} documents, {file.stat().st_size / 1e6:.1f} MB, {made.tokens:,} tokens")
    for name, both in seconds.items():
        wall, processor = (statistics.median(one[which] for one in both) for which in (0, 1))
        print(f"{name:<22}{wall:>8.2f} s   {processor:>8.2f} s of processor time   "
              f"{made.tokens / wall / 1e6:.2f} M tokens/s")  # fmt: skip
    one, two, fast = seconds.values()
    for what, slower, faster in (("two workers", one, two), ("gigatoken", two, fast)):
        ratios = [[a[which] / b[which] for a, b in zip(slower, faster, strict=True)] for which in (0, 1)]
        print(f"{what}: {statistics.median(ratios[0]):.2f} times as fast; the processor time before is "
              f"{statistics.median(ratios[1]):.2f} times that")  # fmt: skip


def installed() -> list[str]:
    """The sources of installed packages, in pieces."""
    pieces: list[str] = []
    for file in sorted(Path(numpy.__file__).parents[1].rglob("*.py")):
        if len(pieces) * LENGTH > MOST:
            break
        text = file.read_text(encoding="utf-8", errors="replace")
        pieces += [text[at : at + LENGTH] for at in range(0, len(text), LENGTH)]
    return pieces


def processor_time() -> float:
    """Seconds of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


if __name__ == "__main__":
    main()
