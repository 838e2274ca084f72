"""What the processes of a run are compared by: one subject for each kind of thing that they must agree on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash

from hekaton.data.identity import fingerprint, sample
from hekaton.environment import launched
from hekaton.identity import code
from hekaton.identity.values import Values, common_values

if TYPE_CHECKING:
    from hekaton.config import JobConfig
    from hekaton.plugins import Plugins


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Values that must be equal on all processes.

    :param values: ``None`` where this process has no say: others have.
    :param absent: what is said of a value that a process lacks.
    :param cure: what to do where they differ.
    :param must_agree: whether a difference ends the run; otherwise it is a notice.
    :param details: gives the values to look at, where ``values`` differ and say too little.
    """

    name: str
    values: Values | None
    absent: str = "not set"
    cure: str = ""
    must_agree: bool = True
    details: Callable[[], Values] | None = None


def of_start(config: JobConfig, plugins: Plugins, device: torch.device) -> list[Subject]:
    """What is known before anything is built. All processes have these subjects, in this order."""
    versions = code.versions(plugins)
    install = "install the same versions on all machines"
    return [
        Subject(
            name="configuration",
            values=common_values(config),
            cure="start all processes with the same files and flags",
        ),
        Subject(
            name="versions",
            values={name: version for name, version in versions.items() if not code.is_notice(name)},
            absent="not installed",
            cure=install,
        ),
        Subject(
            name="other versions",
            values={name: version for name, version in versions.items() if code.is_notice(name)},
            absent="not installed",
            must_agree=False,
        ),
        Subject(
            name="source",
            values={f"source of {file}": digest for file, digest in code.source(plugins).items()},
            absent="not there",
            cure="bring the code of all machines to the same state",
        ),
        Subject(
            name="device",
            values=device_values(device),
            cure="start all processes on the same kind of device, or choose one: CUDA_VISIBLE_DEVICES",
        ),
        Subject(name="machines", values=machine_values(device), must_agree=False),
        Subject(
            name="initial weights",
            values=initial_weights(config) if launched().local_rank == 0 else None,
            absent="not there",
            cure="copy the same checkpoint to all machines, or name a shared path in "
            "checkpoint.initial_load_path",
        ),
    ]


def device_values(device: torch.device) -> dict[str, Any]:
    """The kind of a device."""
    if device.type != "cuda":
        return {"device": device.type}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "device memory (GiB)": round(properties.total_memory / 2**30),
        "CUDA": torch.version.cuda,
    }


def machine_values(device: torch.device) -> dict[str, Any]:
    """How many processes the launcher started on this machine, and how many devices they see."""
    processes = {"processes on the machine": os.environ.get("LOCAL_WORLD_SIZE")}
    return processes | ({"visible GPUs": torch.cuda.device_count()} if device.type == "cuda" else {})


def initial_weights(config: JobConfig) -> dict[str, str]:
    """The files that a run starts with, with a digest of size and samples of each; nothing behind a URL,
    which is the same from everywhere."""
    checkpoint = config.checkpoint
    location = checkpoint.initial_load_path
    if not checkpoint.enable or location is None or "://" in location:
        return {}
    root = Path(location)
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
    return {f"initial_load_path: {path.relative_to(root).as_posix()}": _sampled(path) for path in files}


def _sampled(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            return f"{size:,} bytes, {fingerprint(sample(descriptor, size))[:16]}"
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.strerror or "not readable"


def digest_of(values: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of values as JSON has them."""
    import json

    return xxhash.xxh3_64(json.dumps(values, sort_keys=True).encode()).hexdigest()
