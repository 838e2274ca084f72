"""What a process does for itself is the same among few and among many."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest
import torch.distributed as dist

from hekaton.testing import run_processes

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def imported(name: str) -> ModuleType:
    """A module of the benchmarks, which are no package."""
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Run:
    """What a run of some processes did.

    :param opens: of each process, by the class of the files.
    :param source: of each process, how often it opens each source file of hekaton and its plugins. (Which of
        Python's and torch's own it opens depends on what warns.)
    :param store: bytes that a process sends and receives through the store, in the mean.
    :param manifest: bytes; ``pieces`` is how many pieces of tensors it lists.
    :param descriptors: most that a process has open in its first step.
    """

    opens: list[dict[str, int]] = field(repr=False)
    source: list[dict[str, int]] = field(repr=False)
    store: float
    manifest: int
    pieces: int
    files: int
    descriptors: int


def run(folder: Path, processes: int) -> Run:
    counted, ranks = imported("counted"), imported("ranks")
    folder.mkdir()
    classes = ranks.write_run(folder)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    proxy = counted.CountingProxy(store.port)
    proxy.start()
    environment = {
        **os.environ,
        "HEKATON_CACHE": str(folder / "cache"),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    run_processes(
        BENCHMARKS / "counted.py", "as_rank",
        processes=processes, cwd=folder, environment=environment,
        report=str(folder / "report"), classes=classes, words=["train", "run.toml"],
        port=proxy.port, connected_at_once=1,
    )  # fmt: skip
    found = [json.loads((folder / f"report-{rank}.json").read_text()) for rank in range(processes)]
    (step,) = (folder / "outputs" / "checkpoint").glob("step-*")
    manifest = (step / "manifest.json").read_text()
    tensors = json.loads(manifest)["tensors"]
    return Run(
        opens=[one["opens"] for one in found],
        source=[
            {
                path: count
                for path, count in one["files"].items()
                if path.endswith(".py") and "/hekaton" in path
            }
            for one in found
        ],
        store=(proxy.sent + proxy.received) / processes,
        manifest=len(manifest),
        pieces=sum(len(one["chunks"]) for one in tensors.values()),
        files=sum(path.is_file() for path in step.iterdir()),
        descriptors=max(one["descriptors"] for one in found),
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """A run of 2 processes, and one of 6."""
    folder = tmp_path_factory.mktemp("ranks")
    two, six = (run(folder / str(processes), processes) for processes in (2, 6))
    return two, six


def test_a_process_opens_the_same_files_whatever_the_number_of_others(runs: tuple[Run, Run]) -> None:
    two, six = runs
    for kind in ("configuration", "tokenizer"):
        assert {one[kind] for one in (*two.opens, *six.opens)} == {two.opens[0][kind]}, kind
    assert two.opens[0]["configuration"] == 1
    # One process reads the data for its index, and all look at the state of each file.
    of_six = sorted(one["data"] for one in six.opens)
    assert of_six[:5] == [min(one["data"] for one in two.opens)] * 5
    assert of_six[-1] == max(one["data"] for one in two.opens)
    for source in (*two.source, *six.source):
        assert dict(source.items() ^ two.source[0].items()) == {}
    assert median(two.source[0].values()) == 1, "the handshake and the checkpoint share what they have read"


def test_what_a_process_sends_through_the_store_grows_with_the_logarithm(runs: tuple[Run, Run]) -> None:
    """It asks for the addresses of those that it exchanges something with. With all others connected at once
    it is 1.7 kB more among 6 than among 2, and at 16,384 some gigabytes."""
    two, six = runs
    assert six.store - two.store < 1300
    assert six.descriptors - two.descriptors <= 4


def test_a_manifest_grows_with_the_pieces_of_tensors(runs: tuple[Run, Run]) -> None:
    two, six = runs
    assert (six.files, two.files) == (8, 4), "a file of each process, the manifest, and DCP's metadata"
    assert 4 * two.pieces > six.pieces > two.pieces
    assert six.manifest - two.manifest < 60 * (six.pieces - two.pieces)
