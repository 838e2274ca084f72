"""Tokens per second of a corpus of token ids, against a bare gather of its rows; a mixture; a very large one.

    python benchmarks/corpus.py [--repeats 7] [--rows 8]

The gather takes random rows from the same memory map, and gives what a model is given: the tokens and the
labels of each row, int64. The loader's rows are of documents in random order; with ``concat`` it gives the
same two tensors, and else positions within documents as well, half as many bytes again. A gather of the
tokens alone is shown beside it. Sides take turns and are timed by their processor time; medians are printed.
Each corpus of a mixture has files of its own. A large array is freed beforehand, so that malloc keeps its
memory from then on, as in a process that trains; page faults of either side would be measured otherwise.
The large corpus has ten million documents and 100 GB of ids, made sparse; it is hashed once before its first
batch is timed, as at the first start of a run.
Goals: a third of the gather; a mixture of four sources within 10% of one; the first batch of the large corpus
within 3 s; 500 MB of memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

TOKENS = 100_000_000
VOCAB_SIZE = 50_000
MEAN_LENGTHS = (100, 500, 2_000)
STEPS = 1024
"""Of a turn: the most that are looked up at once, so that each turn has a share of all work."""
DOCUMENTS, DOCUMENT = 10_000_000, 5_000
"""Of the large corpus, and ids of each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", type=int, default=8, help="sequences in a step")
    parser.add_argument("--large", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.large:
        first_batch(Path(arguments.large))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HEKATON_CACHE"] = str(Path(folder, "cache"))
        speed(Path(folder), repeats=arguments.repeats, rows=arguments.rows)
        large = Path(folder, "large")
        large.mkdir()
        with (large / "shard.bin").open("wb") as file:
            file.truncate(DOCUMENTS * DOCUMENT * 2)
        start = time.perf_counter()
        write(large, np.arange(1, DOCUMENTS + 1) * DOCUMENT)
        print(f"hashed once in {time.perf_counter() - start:.0f} s")
        start = time.perf_counter()
        said = subprocess.run(
            [sys.executable, __file__, "--large", str(large)], check=True, capture_output=True, text=True
        ).stdout
        print(f"{said.strip()}; whole process {time.perf_counter() - start:.2f} s")


def speed(folder: Path, *, repeats: int, rows: int) -> None:
    """The loader against the gather, for documents and rows of some lengths."""
    np.ones(30 * 2**17)  # 30 MB, freed at once
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCAB_SIZE, TOKENS, dtype=np.uint16)
    for mean in MEAN_LENGTHS:
        (folder / str(mean)).mkdir()
        ids.tofile(folder / str(mean) / "shard.bin")
        write(folder / str(mean), ends_of(rng, mean, TOKENS))
    for part in range(4):
        its = ends_of(rng, 500, TOKENS // 4)
        (folder / f"part {part}").mkdir()
        ids[part * (TOKENS // 4) :][: TOKENS // 4].tofile(folder / f"part {part}" / "shard.bin")
        write(folder / f"part {part}", its)
    for seq_len in (2_048, 8_192):
        sides: dict[str, Callable[[], object]] = {
            "gather": gather(folder, seq_len, rows),
            "gather, tokens alone": gather(folder, seq_len, rows, labels=False),
        }
        for mean in MEAN_LENGTHS:
            sides[f"documents of {mean:,}"] = loader([folder / str(mean)], seq_len, rows)
            sides[f"concat of {mean:,}"] = loader([folder / str(mean)], seq_len, rows, packs_documents=False)
        sides["mixture of four"] = loader([folder / f"part {part}" for part in range(4)], seq_len, rows)
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(-1, repeats):  # the first turn is none: more and more steps are read at once
            for name, side in sides.items():
                start = time.process_time()
                for _ in range(STEPS):
                    side()
                if repeat >= 0:
                    rates[name].append(STEPS * rows * seq_len / (time.process_time() - start) / 1e6)
        for name, measured in rates.items():
            of_gather = statistics.median(a / b for a, b in zip(measured, rates["gather"], strict=True))
            print(f"rows of {seq_len:,}: {name:<22}{statistics.median(measured):>8,.1f} M tokens/s"
                  f"   of the gather {of_gather:.3f}")  # fmt: skip
        mixed = zip(rates["mixture of four"], rates["documents of 500"], strict=True)
        print(f"rows of {seq_len:,}: a mixture of four has {statistics.median(a / b for a, b in mixed):.3f} "
              "of the speed of one source")  # fmt: skip


def ends_of(rng: np.random.Generator, mean: int, tokens: int) -> Any:
    """Where documents end that have ``mean`` tokens on average, and ``tokens`` together."""
    ends = np.cumsum(np.maximum(1, rng.exponential(mean, 2 * tokens // mean).astype(np.int64)))
    return np.append(ends[ends < tokens], tokens)


def gather(folder: Path, seq_len: int, rows: int, *, labels: bool = True) -> Callable[[], object]:
    ids = np.memmap(folder / "500" / "shard.bin", np.uint16, "r")
    table = ids[: len(ids) // (seq_len + 1) * (seq_len + 1)].reshape(-1, seq_len + 1)
    rng = np.random.default_rng(1)

    def read() -> object:
        taken = table[rng.integers(0, len(table), rows)]
        tokens = taken[:, :-1].astype(np.int64)
        return (tokens, taken[:, 1:].astype(np.int64)) if labels else tokens

    return read


def loader(
    folders: list[Path], seq_len: int, rows: int, *, packs_documents: bool = True
) -> Callable[[], object]:
    from hekaton.corpus.tokens import build
    from hekaton.data.blend import PERIOD, Blend
    from hekaton.data.encoders import IdsEncoder
    from hekaton.data.feed import Source
    from hekaton.data.loader import Loader
    from hekaton.data.order import Shuffled
    from hekaton.data.row_makers import InOrder
    from hekaton.data.rows import Stream

    sources = []
    for seed, folder in enumerate(folders):
        documents: Any = build(SimpleNamespace(dtype="uint16"), str(folder))
        sources.append(Source(documents, IdsEncoder(VOCAB_SIZE), Shuffled(len(documents), seed)))
    blend = None
    if len(folders) == 4:
        blend = Blend({0: [0.4, 0.3, 0.2, 0.1]}, rows=rows, seed=0)
        # A run works out the sources of its first 65,536 rows, which those of all others repeat.
        blend.sources_of(0, PERIOD // rows, range(rows), without=[frozenset()] * rows)
    stream = Stream(
        sources, InOrder(seq_len, packs_documents=packs_documents), rows, repeat=True, blend=blend
    )
    return Loader(stream, range(rows), identity={}).next_step


def write(folder: Path, ends: Any) -> None:
    """What makes the ids of a folder a corpus."""
    from hekaton.corpus.layout import CorpusManifest, Shard
    from hekaton.data.contents import known_file

    ends.astype("<i8").tofile(folder / "shard.ends")
    checksums = [known_file(folder / f"shard.{name}").content for name in ("bin", "ends")]
    shard = Shard("shard", len(ends), int(ends[-1]), *checksums)
    (folder / "corpus.json").write_text(CorpusManifest("uint16", "", VOCAB_SIZE, (shard,)).to_json())


def first_batch(folder: Path) -> None:
    import torch  # noqa: F401  its import is none of the corpus

    before = time.perf_counter()
    step = loader([folder], 2_048, 8)
    step()
    first = time.perf_counter() - before
    for _ in range(200):
        step()
    # Without mapped files: the system may take those.
    memory = int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) / 1024
    size = DOCUMENTS * DOCUMENT * 2 / 1e9
    print(f"{DOCUMENTS:,} documents, {size:,.0f} GB: first batch after {first:.2f} s, "
          f"{memory:,.0f} MiB of memory of its own, torch included")  # fmt: skip


if __name__ == "__main__":
    main()
