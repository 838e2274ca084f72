"""What grows with the number of processes: their start, what they read, their store, their checkpoints.

    python benchmarks/ranks.py [--processes 2 8 32] [--handshake 2 8 64] [--tables 2 8] [FLAGS]

Starts a small run of Llama 3 with so many processes of one thread, each a fresh interpreter, on text files,
with a tokenizer of Hugging Face, for one step and its checkpoint. The store is held here, behind a proxy that
counts. Prints a row for each number of processes, then how long the handshake of so many bare processes takes
(goal: below 1 s for 64), and then what a tokenizer of 128,000 ids takes of the memory of so many processes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch.distributed as dist

from hekaton.testing import run_processes

COUNTED = Path(__file__).with_name("counted.py")
RUN = """
[model]
name = "llama3"
flavor = "debugmodel"
tokenizer = "hf"
overrides = {n_layers = 2, dim = 64, n_heads = 4, n_kv_heads = 4, hidden_dim = 128, vocab_size = 4096}
[training]
dataset = "text"
dataset_path = "data"
seq_len = 64
local_batch_size = 1
steps = 1
mixed_precision_param = "float32"
[comm]
init_timeout_seconds = 900
[checkpoint]
enable = true
"""
FILES = 16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, nargs="*", default=[2, 8, 32])
    parser.add_argument("--handshake", type=int, nargs="*", default=[2, 8, 64])
    parser.add_argument("--tables", type=int, nargs="*", default=[2, 8])
    arguments, flags = parser.parse_known_args()
    if arguments.processes:
        print(" | ".join(COLUMNS))
    for processes in arguments.processes:
        with tempfile.TemporaryDirectory() as folder:
            found = measured(Path(folder), processes, flags)
        print(" | ".join(f"{found[name]:>{len(name)}}" for name in COLUMNS), flush=True)
    for processes in arguments.handshake:
        seconds, agreed = handshake(processes)
        print(
            f"handshake of {processes} processes: {agreed:.3f} s; meeting before it {seconds:.2f} s",
            flush=True,
        )
    for processes in arguments.tables:
        with tempfile.TemporaryDirectory() as folder:
            tables(Path(folder), processes)


COLUMNS = (
    "processes", "s to step 1", "CPU s a process", "kB sent to store", "kB received", "descriptors",
    "MB a process", "configuration", "tokenizer", "data", "index", "source", "files of a step",
    "kB of manifest",
)  # fmt: skip


def write_run(folder: Path) -> dict[str, list[str]]:
    """The files of a run; :returns: the classes by which they are counted."""
    import hekaton_hf

    (folder / "run.toml").write_text(RUN)
    (folder / "data").mkdir()
    for number in range(FILES):
        (folder / "data" / f"{number:02}.txt").write_text(f"Document {number} of a small run. " * 40)
    return {
        "configuration": [str(folder / "run.toml")],
        "tokenizer": [str(Path(hekaton_hf.__file__).parent / "assets")],
        "data": [str(folder / "data")],
        "index": [str(folder / "cache")],
    }


def measured(folder: Path, processes: int, flags: list[str]) -> dict[str, Any]:
    """A run of so many processes, in means over them."""
    from counted import CountingProxy  # beside this file

    classes = write_run(folder)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    proxy = CountingProxy(store.port)
    proxy.start()
    command = [sys.executable, str(COUNTED), str(folder / "report"), json.dumps(classes)]
    shared = {
        **os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "HEKATON_CACHE": str(folder / "cache"), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(proxy.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
    }  # fmt: skip
    began = time.time()
    running = [
        subprocess.Popen(
            [*command, "train", "run.toml", *flags],
            cwd=folder,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.DEVNULL if rank else (folder / "log").open("w"),
        )
        for rank in range(processes)
    ]
    statuses = [process.wait() for process in running]
    assert not any(statuses), (folder / "log").read_text()
    found = [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(processes)]
    (step,) = (folder / "outputs" / "checkpoint").glob("step-*")

    def mean(name: str) -> float:
        return statistics.mean(one[name] for one in found)

    return {
        "processes": processes,
        "s to step 1": f"{max(one['at'] for one in found) - began:.1f}",
        "CPU s a process": f"{mean('cpu'):.1f}",
        "kB sent to store": f"{proxy.sent / processes / 1e3:.1f}",
        "kB received": f"{proxy.received / processes / 1e3:.1f}",
        "descriptors": max(one["descriptors"] for one in found),
        "MB a process": f"{mean('memory') / 1e6:.0f}",
        **{
            name: f"{statistics.mean(one['opens'].get(name, 0) for one in found):.1f}"
            for name in ("configuration", "tokenizer", "data", "index", "source")
        },
        "files of a step": sum(path.is_file() for path in step.rglob("*")),
        "kB of manifest": f"{(step / 'manifest.json').stat().st_size / 1e3:.1f}",
    }


def handshake(processes: int) -> tuple[float, float]:
    """Seconds in which bare processes meet, and then compare what they are. They are forked from one that has
    imported everything."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "said")
        run_processes(__file__, "compare", processes=processes, timeout=300, said=str(said))
        meeting, agreed = json.loads(said.read_text())
    return meeting, agreed


ENTRIES = 128_000
MEASURED = """
import os, sys, time
from pathlib import Path
from hekaton_hf.tokenizer import build

def pss(process):
    return int(Path("/proc", process, "smaps_rollup").read_text().split("Pss:")[1].split()[0])

rank, encodes = sys.argv[1:]
before = pss("self")
tokenizer = build(None, "tokenizer")
if encodes == "text":
    tokenizer.encode_batch([Path(os.__file__).read_text()])
Path(f"more-{rank}").write_text(str(pss("self") - before))
while not Path("measured").exists():
    time.sleep(0.2)
"""
"""A process of a run, as far as it has to do with its tokenizer."""


def tables(folder: Path, processes: int) -> None:
    """Print what the table of a tokenizer takes, in MB of each process and of the machine."""
    write_tokenizer(folder / "tokenizer")
    file = str(folder.resolve() / "tokenizer" / "tokenizer.json")
    for what, encodes, local in (
        ("text, each with its own", "text", 1),
        ("text", "text", processes),
        ("ids", "ids", processes),
    ):
        running = [
            subprocess.Popen(
                [sys.executable, "-c", MEASURED, str(rank), encodes],
                cwd=folder,
                env={**os.environ, "LOCAL_WORLD_SIZE": str(local), "OMP_NUM_THREADS": "1"},
            )
            for rank in range(processes)
        ]
        told = [folder / f"more-{rank}" for rank in range(processes)]
        while not all(one.exists() and one.read_text() for one in told):
            assert not any(one.poll() for one in running)
            time.sleep(0.2)
        more = [int(one.read_text()) / 1e3 for one in told]
        servers = [one for one in Path("/proc").glob("[0-9]*") if file in words(one)]
        serving = [int((one / "smaps_rollup").read_text().split("Pss:")[1].split()[0]) for one in servers]
        (folder / "measured").touch()
        assert not any(one.wait() for one in running)
        for one in (*told, folder / "measured"):
            one.unlink()
        each, all_serving = statistics.mean(more), sum(serving) / 1e3
        print(
            f"a table of {ENTRIES:,} ids in {processes} processes on {what}: {each:.0f} MB in each, "
            f"{all_serving:.0f} MB in {len(serving)} that serve",
            flush=True,
        )


def words(process: Path) -> list[str]:
    """The command line of a process of ``/proc``."""
    try:
        return (process / "cmdline").read_text().split("\0")
    except OSError:
        return []


def write_tokenizer(folder: Path) -> None:
    """One of Hugging Face as GPT-2's, of all pairs of letters and many of three."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = [letter for letter in alphabet if letter.isascii() and letter.isalpha()] + ["\u0120"]
    pairs = list(itertools.product(letters, letters))
    triples = [(first + second, letter) for first, second in pairs for letter in letters]
    merges = (pairs + triples)[: ENTRIES - len(alphabet)]
    ids = {piece: number for number, piece in enumerate(alphabet + [a + b for a, b in merges])}
    made = Tokenizer(models.BPE(vocab=ids, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))


def compare(said: str) -> None:
    """One of the processes whose handshake is measured."""
    from hekaton.config import load
    from hekaton.distributed import process_group, this_process
    from hekaton.identity.handshake import agree
    from hekaton.identity.subjects import of_start

    loaded, process = load([], []), this_process()
    of_start(loaded.config, loaded.plugins, process.device)
    began = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        process_group(process, loaded.config.comm, dump_folder=folder),
    ):
        dist.barrier()
        met = time.perf_counter()
        agree(lambda: of_start(loaded.config, loaded.plugins, process.device))
        done = time.perf_counter()
        if process.rank == 0:
            Path(said).write_text(json.dumps([met - began, done - met]))
        dist.barrier()


if __name__ == "__main__":
    main()
