"""Tokens per second and core of the data pipeline, against the tokenizer alone on the same documents.

    python benchmarks/data.py [--repeats 5] [--seq-len 2048] [--rows 8]
    python benchmarks/data.py --all           then also benchmarks/corpus.py, for corpora of token ids, and
                                              benchmarks/preprocess.py, for making them

The documents are those of ``python_stdlib``, as files of the interpreter, and as one JSON-lines and one
parquet file read by the dataset ``text``; the tokenizer is a byte-level BPE of 50,000 ids, trained on them
once and kept in the folder for temporary files. The tokenizer alone is given the documents in the order in
which the loader reads them: it keeps the first words that it meets, so that its speed depends on which those
are (files of a folder one after the other have many words in common). Every side runs on one thread, in
turns, and is timed by the processor time it takes, since a core's work is what is compared. The median of the
ratios is printed. Goals: 0.95, and with gigatoken 8 times the speed with tokenizers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

VOCAB_SIZE = 50_000
ALONE = "encode_batch_fast"
FAST = "text, gigatoken"
BATCH = 32
"""Documents that the tokenizer alone is given at once; more make it slower."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=8, help="sequences in a step")
    parser.add_argument("--all", action="store_true", help="also corpora of token ids, and making them")
    arguments = parser.parse_args()
    # One thread; read when tokenizers first encodes.
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HEKATON_CACHE"] = folder
        run(Path(folder), repeats=arguments.repeats, seq_len=arguments.seq_len, rows=arguments.rows)
    for name in ("corpus.py", "preprocess.py") if arguments.all else ():
        print(f"\n{name}", flush=True)
        subprocess.run([sys.executable, str(Path(__file__).with_name(name))], check=True)


def run(folder: Path, *, repeats: int, seq_len: int, rows: int) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hekaton.data import Documents, TextTokenizer
    from hekaton.data.loader import build_loader
    from hekaton.data.order import Shuffled
    from hekaton.data.stdlib import build
    from hekaton_hf.files import DataFile, FoundFiles
    from hekaton_hf.sections import HFTokenizerSection
    from hekaton_hf.text import read_texts
    from hekaton_hf.tokenizer import build as build_tokenizer

    stdlib = build(None, None)
    texts = stdlib.fetch(range(len(stdlib)))
    file = folder / "stdlib.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    kept = trained(texts, stdlib.fingerprint)
    bpe, tokenizer = plain(kept), build_tokenizer(HFTokenizerSection(backend="tokenizers"), str(kept))
    fast = build_tokenizer(HFTokenizerSection(backend="gigatoken"), str(kept))

    ordered = [texts[index] for index in Shuffled(len(texts), 0).at(np.arange(len(texts)))]

    def alone() -> int:
        tokens = 0
        for start in range(0, len(texts), BATCH):
            for encoding in bpe.encode_batch_fast(ordered[start : start + BATCH], add_special_tokens=False):
                tokens += len(encoding)
        return tokens

    def pipeline(
        documents: Documents, watch: Callable[[], None] = lambda: None, tokenizer: TextTokenizer = tokenizer
    ) -> Callable[[], int]:
        def read() -> int:
            loader = build_loader(
                documents, tokenizer, seq_len=seq_len, global_batch_size=rows, rows=range(rows), seed=0,
                repeat=False,
            )  # fmt: skip
            tokens = 0
            while True:
                try:
                    tokens += int((loader.next_step()["labels"] >= 0).sum())
                except StopIteration:
                    return tokens + len(texts)  # the last token of a document has no label
                watch()

        return read

    text = read_texts(FoundFiles([DataFile(file)]))
    pq.write_table(pa.table({"text": texts}), folder / "stdlib.parquet")
    parquet = read_texts(FoundFiles([DataFile(folder / "stdlib.parquet")]))
    before, seen = resident(), []
    for documents in (stdlib, text, parquet):  # also warms caches
        pipeline(documents, watch=lambda: seen.append(resident()))()
    growth = (max(seen) - before) / 2**20

    sides = {
        ALONE: alone,
        "python_stdlib": pipeline(stdlib),
        "text, .jsonl": pipeline(text),
        "text, .parquet": pipeline(parquet),
        FAST: pipeline(text, tokenizer=fast),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    expected = alone()
    sides[FAST]()  # the first documents are encoded by both
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.process_time()
            tokens = side()
            rates[name].append(tokens / (time.process_time() - start))
            assert abs(tokens - expected) < 10, (name, tokens)  # long documents are encoded in pieces

    print(f"{len(texts):,} documents, {sum(map(len, texts)):,} characters, {tokens:,} tokens; one thread")
    print(f"BPE of {bpe.get_vocab_size():,} ids (asked for {VOCAB_SIZE:,}), {rows} rows of {seq_len}")
    for name, measured in rates.items():
        ratio = statistics.median(mine / base for mine, base in zip(measured, rates[ALONE], strict=True))
        print(f"{name:<18}{statistics.median(measured):>10,.0f} tokens/s   ratio {ratio:.3f}")
    ratios = [a / b for a, b in zip(rates[FAST], rates["text, .jsonl"], strict=True)]
    print(f"gigatoken: {statistics.median(ratios):.1f} times as fast")
    print(f"memory grew by {growth:.1f} MiB at most; all tokens as int64: {tokens * 8 / 2**20:.1f} MiB")


def trained(texts: Sequence[str], fingerprint: str) -> Path:
    """A folder with the tokenizer, trained at the first run."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    folder = Path(tempfile.gettempdir(), f"hekaton-benchmark-{fingerprint}")
    if not (folder / "tokenizer.json").exists():
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        bpe.train_from_iterator(
            texts,
            trainers.BpeTrainer(vocab_size=VOCAB_SIZE, initial_alphabet=alphabet, show_progress=False),
        )
        folder.mkdir(exist_ok=True)
        bpe.save(str(folder / "tokenizer.json"))
    return folder


def plain(folder: Path):  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def resident() -> int:
    """Bytes of memory that this process has to itself, without mapped files: the system may take those."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


if __name__ == "__main__":
    main()
