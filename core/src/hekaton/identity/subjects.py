"""What the processes of a run are compared by: one subject for each kind of thing that they must agree on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import xxhash

from hekaton.config.base import SectionModel, is_path, may_differ
from hekaton.data.identity import fingerprint, sample
from hekaton.environment import launched
from hekaton.identity import code
from hekaton.identity.imported import imported
from hekaton.identity.values import Values, common_values, plain
from hekaton.identity.variables import settings_of_torch

if TYPE_CHECKING:
    from hekaton.config import JobConfig
    from hekaton.plugins import Plugins


MULTIPLIED = (64, 512)
"""Rows and columns of a matrix that is multiplied: with fewer, some processors add in the same order."""
DRAWN = 256
"""Random numbers of each kind that are compared; torch draws 16 and more at once."""
READ_WHOLE = 2**24
"""Bytes of files that are read whole: manifests, with the checksums of all other files of a checkpoint, and
what describes weights. Of larger ones samples are."""
THREADS = "threads of the process"
READ_INTO_VALUES = "job.config_file"
"""Of these files the values are compared, and not how they are written."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Values that must be equal on all processes.

    :param values: ``None`` where this process has no say: others have.
    :param absent: what is said of a value that a process lacks.
    :param cure: what to do where they differ.
    :param must_agree: whether a difference ends the run; otherwise it is a notice.
    :param details: gives the values to look at, where ``values`` differ and say too little.
    :param optional: whether a process that lacks a value has no say on it.
    """

    name: str
    values: Values | None
    absent: str = "not set"
    cure: str = ""
    must_agree: bool = True
    details: Callable[[], Values] | None = None
    optional: bool = False


INSTALL = "install the same versions on all machines"
SAME_CODE = "bring the code of all machines to the same state"


def of_start(config: JobConfig, plugins: Plugins, device: torch.device) -> list[Subject]:
    """What is known before anything is built. All processes have these subjects, in this order."""
    versions = code.versions(plugins)
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
            cure=INSTALL,
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
            cure=SAME_CODE,
        ),
        of_imported(plugins),
        Subject(
            name="device",
            values=device_values(device),
            cure="start all processes on the same kind of device, or choose one: CUDA_VISIBLE_DEVICES",
        ),
        of_torch(),
        Subject(
            name="processor",
            values=processor_values(device),
            cure="start all processes on the same kind of processor, or have it compute alike: "
            "ATEN_CPU_CAPABILITY=avx2 (or default), OMP_NUM_THREADS=1, on all machines",
        ),
        Subject(
            name="files",
            values=named_files(config),
            absent="not there",
            cure="give all machines the same files",
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


def of_imported(plugins: Plugins) -> Subject:
    """What plugins and user code have imported from elsewhere, which grows while a run is built."""
    return Subject(name="imported modules", values=imported(plugins), cure=SAME_CODE, optional=True)


def of_torch() -> Subject:
    """What is set of torch, which what is imported later can change again."""
    return Subject(
        name="settings of torch",
        values=settings_of_torch(),
        cure="let nothing set them on some machines alone: sitecustomize.py, .pth files, libraries",
    )


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
        **_libraries(),
    }


def _libraries() -> dict[str, Any]:
    """Those that are found, which need not be the ones that came with torch."""
    cudnn: Any = torch.backends.cudnn
    nccl: Any = torch.cuda.nccl
    return {"cuDNN": cudnn.version(), "NCCL": plain(nccl.version()) if dist.is_nccl_available() else None}


def processor_values(device: torch.device) -> dict[str, Any]:
    """What the processor draws, and, where it is the device, how it computes.

    Initial weights are drawn on the processor whatever the device is, by each process for its own part, and
    ``normal_`` gives other last bits without AVX2 and on ARM.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = xxhash.xxh3_64()
    for dtype in (torch.float32, torch.float64):
        normal = torch.empty(DRAWN, dtype=dtype).normal_(generator=generator)
        uniform = torch.empty(DRAWN, dtype=dtype).uniform_(generator=generator)
        drawn.update(torch.stack([normal, uniform, uniform.erfinv()]).numpy().tobytes())
    values = {"random numbers of the processor": drawn.hexdigest()}
    if device.type != "cpu":
        return values
    products = xxhash.xxh3_64()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        products.update(_rounding_errors(dtype, generator).view(torch.uint8).numpy().tobytes())
    return values | {
        "products of the processor": products.hexdigest(),
        "instructions of the processor": torch.backends.cpu.get_cpu_capability(),
        THREADS: torch.get_num_threads(),
    }


def _rounding_errors(dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """A product that would be 0: its terms are numbers and their opposites, in any order. What is left of
    them shows in which order and precision they were added, which a sum rounded to bfloat16 hides."""
    rows, columns = MULTIPLIED
    drawn = torch.empty(2, rows, columns // 2, dtype=torch.float32).uniform_(-1, 1, generator=generator)
    first, second = drawn[0].to(dtype), drawn[1].T.contiguous().to(dtype)
    order = torch.randperm(columns, generator=generator)
    return torch.cat([first, -first], dim=1)[:, order] @ torch.cat([second, second])[order]


def machine_values(device: torch.device) -> dict[str, Any]:
    """How many processes the launcher started on this machine, and how many devices they see."""
    processes = {"processes on the machine": os.environ.get("LOCAL_WORLD_SIZE")}
    return processes | ({"visible GPUs": torch.cuda.device_count()} if device.type == "cuda" else {})


def initial_weights(config: JobConfig) -> dict[str, str]:
    """The files that a run starts with, with a digest of the content of each; nothing behind a URL,
    which is the same from everywhere unless it is of the machine's own disk."""
    checkpoint = config.checkpoint
    location = checkpoint.initial_load_path
    if not checkpoint.enable or location is None:
        return {}
    location = location.removeprefix("file://")
    if "://" in location:
        return {}
    root = Path(location)
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else []
    return {f"initial_load_path: {path.relative_to(root).as_posix()}": _sampled(path) for path in files}


def named_files(config: JobConfig) -> dict[str, str]:
    """The files that fields of the configuration name, with a digest of the content of each, but for those
    that may differ."""
    return {
        f"{name}: content": _sampled(Path(path))
        for name, path in _paths(config, "", ())
        if name != READ_INTO_VALUES and Path(path).is_file()
    }


def _paths(
    section: SectionModel, before: str, outer: tuple[type[SectionModel], ...]
) -> Iterator[tuple[str, str]]:
    """The names and values of all fields that hold a path or several, also in lists of tables."""
    inside = (*outer, type(section))
    for name, field in type(section).model_fields.items():
        value, at = getattr(section, name), f"{before}{name}"
        if isinstance(value, list):
            entries = {f"{at}[{i}]": one for i, one in enumerate(value)}
        elif isinstance(value, dict):
            entries = {f"{at}.{key}": one for key, one in value.items()}
        else:
            entries = {at: value}
        for place, one in entries.items():
            if isinstance(one, SectionModel):
                yield from _paths(one, f"{place}.", inside)
            elif isinstance(one, str) and one and is_path(field) and not may_differ(field, inside):
                yield place, one


def _sampled(path: Path) -> str:
    """Size and hash of a file, of samples of it where it is large."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.fstat(descriptor).st_size
            content = os.pread(descriptor, size, 0) if size <= READ_WHOLE else sample(descriptor, size)
            return f"{size:,} bytes, {fingerprint(content)[:16]}"
        finally:
            os.close(descriptor)
    except OSError as error:
        return error.strerror or "not readable"


def digest_of(values: Mapping[str, Any]) -> str:
    """16 hexadecimal digits of values as JSON has them."""
    import json

    return xxhash.xxh3_64(json.dumps(values, sort_keys=True).encode()).hexdigest()
