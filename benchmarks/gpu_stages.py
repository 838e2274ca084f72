"""The stages of benchmarks/gpu.py, each run as ``python gpu_stages.py STAGE --out FILE [--small]``.

A stage writes rows, dictionaries of JSON, one a line, as soon as it has them.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import logging
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
QUICK_START = ROOT / "model_zoo/llama3/train_configs/debug_model.toml"
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
GIB = 2**30
SMALL = False
Emit = Callable[[dict[str, Any]], None]


def milliseconds(work: Callable[[], object], repeats: int = 20) -> float:
    """Median duration of the work, by events on the device."""
    for _ in range(3):
        work()
    took = []
    for _ in range(repeats if not SMALL else 2):
        if CUDA:
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            end.synchronize()
            took.append(start.elapsed_time(end))
        else:
            began = time.perf_counter()
            work()
            took.append((time.perf_counter() - began) * 1e3)
    return statistics.median(took)


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def allocated() -> int:
    return torch.cuda.memory_allocated() if CUDA else 0


# -- environment


def environment(emit: Emit) -> None:
    name = torch.cuda.get_device_name() if CUDA else platform.processor() or platform.machine()
    memory = torch.cuda.get_device_properties(0).total_memory / GIB if CUDA else 0.0
    emit({"what": f"device: {name}, {memory:.0f} GiB"})
    emit(
        {"what": f"torch {torch.__version__}, CUDA {torch.version.cuda}, Python {platform.python_version()}"}
    )
    n = 8192 if not SMALL else 256
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    took = milliseconds(lambda: a @ b)
    emit({"what": f"bf16 product of {n} x {n}", "ms": took, "TFLOP/s": 2 * n**3 / took / 1e9})
    source = torch.randn(2**30 if not SMALL else 2**20, device=DEVICE)
    target = torch.empty_like(source)
    took = milliseconds(partial(target.copy_, source))
    emit({"what": "copy, bytes read and written", "ms": took, "TB/s": 2 * source.nbytes / took / 1e9})
    del source, target
    for row in attention_kernels():
        emit(row)


def attention_kernels() -> Iterator[dict[str, Any]]:
    """Forward and backward of one layer's attention, 8B-shaped, by kernel."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from hekaton_blocks import DocumentAttention, PackedDocuments, pack_documents

    seq, heads, kv_heads, head_dim = (8192, 32, 8, 128) if not SMALL else (256, 4, 2, 16)
    q, k, v = (
        torch.randn(1, n, seq, head_dim, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        for n in (heads, kv_heads, kv_heads)
    )
    grad = torch.randn_like(q)
    flops = 0.5 * 4 * seq * seq * heads * head_dim * 3.5
    attend = DocumentAttention()

    def both_ways(call: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def work() -> None:
            torch.autograd.grad(call(), (q, k, v), grad)

        return work

    one = torch.zeros(1, seq, dtype=torch.long, device=DEVICE)
    several = (torch.arange(seq, device=DEVICE) // (seq // 8))[None]
    cases: dict[str, Callable[[], torch.Tensor]] = {}

    def by_backend(kernel: Any) -> torch.Tensor:
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    for kernel in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
        cases[f"attention, one document: {kernel.name}"] = partial(by_backend, kernel)
    cases["attention, one document: default"] = lambda: attend(q, k, v)
    if isinstance(pack_documents(one), PackedDocuments):
        packed_one, packed_several = pack_documents(one), pack_documents(several)
        cases["attention, one document: flex"] = lambda: attend(q, k, v, packed_one)
        cases["attention, 8 documents: flex"] = lambda: attend(q, k, v, packed_several)
        yield {"what": "tiles of 8 documents", "ms": milliseconds(lambda: pack_documents(several))}
    else:
        cases["attention, 8 documents"] = lambda: attend(q, k, v, several)
    for what, call in cases.items():
        try:
            took = milliseconds(both_ways(call), repeats=10)
        except RuntimeError as e:
            yield {"what": what, "error": str(e).splitlines()[0]}
        else:
            row = {"what": what, "ms": took}
            yield row | ({"TFLOP/s": flops / took / 1e9} if "one document" in what else {})


# -- tests


def tests(emit: Emit) -> None:
    places = [ROOT / name for name in ("core/tests", "plugins", "model_zoo", "tests")]
    tests = sorted(file for place in places for file in place.glob("**/test_*.py"))
    files = [str(file) for file in tests if "mark.cuda" in file.read_text(encoding="utf-8")]
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", "-ra", *files]
    if SMALL:
        command += ["--collect-only"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    for line in done.stdout.splitlines():
        if re.match(r"(FAILED|ERROR) ", line) or re.search(r"\d+ (passed|failed|error|deselected)", line):
            emit({"what": line})
    if done.returncode not in (0, 5):  # 5: without a device all are deselected
        sys.exit(done.returncode)


# -- quick start


def quick_start(emit: Emit) -> None:
    """On this device and, at once, in another process on the CPU."""
    steps = 150 if not SMALL else 3
    with tempfile.TemporaryDirectory() as folder:
        curve = Path(folder, "losses")
        command = [sys.executable, __file__, "cpu_curve", "--out", str(curve), "--steps", str(steps)]
        if CUDA:
            cpu = subprocess.Popen(command, env={**_environ(), "CUDA_VISIBLE_DEVICES": ""})
            began = time.perf_counter()
            here = losses_of_quick_start(steps)
            took = time.perf_counter() - began
            assert cpu.wait() == 0
        else:
            began = time.perf_counter()
            here = losses_of_quick_start(steps)
            took = time.perf_counter() - began
            subprocess.run(command, check=True)
        expected = json.loads(curve.read_text())
    largest = max(abs(a - b) for a, b in zip(here, expected, strict=True))
    emit(
        {
            "steps": steps, "first loss": here[0], "last loss": here[-1], "CPU's last loss": expected[-1],
            "largest difference": largest, "seconds": took,
        }
    )  # fmt: skip
    assert largest < 1e-3, f"the curve differs from the CPU's by {largest}"


def losses_of_quick_start(steps: int) -> list[float]:
    flags = ["--training.steps", "150", "--checkpoint.no-enable", "--metrics.no-enable_tensorboard"]
    with trainer([QUICK_START], flags) as run:
        return [run.train_step()[0]["loss"].item() for _ in range(steps)]


def _environ() -> dict[str, str]:
    import os

    return dict(os.environ)


# -- 8B-shaped layers


@contextlib.contextmanager
def trainer(files: Sequence[Path], flags: Sequence[str]) -> Iterator[Any]:
    """A trainer in a process group of one."""
    from hekaton.config import load
    from hekaton.distributed import process_group, this_process
    from hekaton.rules import check
    from hekaton.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        process = this_process()
        loaded = load(list(files), [*flags, "--job.dump_folder", folder])
        check(loaded, world_size=1, device_type=process.device.type)
        with process_group(process, loaded.config.comm, dump_folder=folder):
            run = Trainer(loaded, process)
            with contextlib.closing(run.loader):
                yield run


def layers_that_fit(copies: int) -> int:
    """Layers beside embedding and output: 16 bytes a parameter in float32 with AdamW, and activations."""
    if not CUDA:
        return 2
    memory = torch.cuda.get_device_properties(0).total_memory * 0.92 / 1e9
    ends, layer, activations = 16.8, 3.5, 2.3
    return max(1, min(8, int((memory - 13 - copies * ends) / (copies * layer + activations))))


def shape(n_layers: int, *more: str, rows: int = 1) -> list[str]:
    sizes = {"dim": 64, "n_heads": 4, "n_kv_heads": 2, "hidden_dim": 128, "vocab_size": 2048} if SMALL else {}
    return [
        "--model.name", "llama3", "--model.flavor", "8B", "--model.overrides.n_layers", str(n_layers),
        *itertools.chain.from_iterable((f"--model.overrides.{key}", str(n)) for key, n in sizes.items()),
        "--training.seq_len", "128" if SMALL else "8192", "--training.local_batch_size", str(rows),
        "--training.steps", "1000", "--activation_checkpoint.mode", "none",
        *(["--compile.backend", "aot_eager"] if SMALL and "--compile.enable" in more else []), *more,
    ]  # fmt: skip


class Loop:
    """What one would write by hand with FSDP2 on one device: the same layers, precision and optimizer."""

    def __init__(self, run: Any, *, compiled: bool) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        from hekaton.building import build_meta, materialize
        from hekaton.mesh import ParallelDims

        config = run.config
        self.max_norm = config.training.max_norm
        self.model: Any = build_meta(config, run.plugins, ParallelDims()).model
        precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        mesh = init_device_mesh(DEVICE.type, (1,))
        backend = config.compile.backend
        for layer in self.model.layers.values():
            if compiled:
                layer.compile(backend=backend, fullgraph=True)
            fully_shard(layer, mesh=mesh, mp_policy=precision)
        fully_shard(self.model, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
        materialize(self.model, DEVICE)
        with torch.no_grad():
            for parameter in self.model.parameters():
                local: Any = parameter.to_local()
                local.normal_(0.0, 0.02) if parameter.dim() > 1 else local.fill_(1.0)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
        self.loss = torch.compile(cross_entropy, backend=backend) if compiled else cross_entropy

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        batch = {name: value.to(DEVICE, non_blocking=True) for name, value in batch.items()}
        inputs = [batch["tokens"]]
        if "positions" in batch:
            inputs += [batch["positions"], (batch["positions"] == 0).cumsum(-1)]
        loss = self.loss(self.model(*inputs), batch["labels"])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


class Side:
    """Step times and peak memory of one of two that take turns."""

    def __init__(self, step: Callable[[], object]) -> None:
        self._step = step
        self.seconds: list[float] = []
        self.peak = 0

    def measure(self, steps: int, *, count: bool, others: int) -> None:
        """A few steps in a row, waited for at the end; ``others`` are the bytes that the other side holds."""
        if CUDA:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        for _ in range(steps):
            self._step()
        synchronize()
        if count:
            self.seconds.append((time.perf_counter() - began) / steps)
        if CUDA:
            self.peak = max(self.peak, torch.cuda.max_memory_allocated() - others)


def against_loop(what: str, flags: Sequence[str], *, turns: int, rows: int, emit: Emit) -> None:
    compiled = "--compile.enable" in flags
    n_layers = layers_that_fit(copies=2)
    before = allocated()
    with trainer([], shape(n_layers, *flags, rows=rows)) as run:
        run.train_step()
        synchronize()
        held = allocated() - before
        batches = itertools.cycle([_pinned(run.loader.next_step()) for _ in range(8)])
        loop = Loop(run, compiled=compiled)
        by_hand, ours = Side(lambda: loop.step(next(batches))), Side(run.train_step)
        by_hand.measure(2, count=False, others=before + held)
        loops = allocated() - before - held
        ours.measure(2, count=False, others=before + loops)
        by_hand.peak = ours.peak = 0
        for _ in range(turns):
            by_hand.measure(4, count=True, others=before + held)
            ours.measure(4, count=True, others=before + loops)
        tokens = run.config.training.seq_len * rows
        ratios = [b / a for a, b in zip(by_hand.seconds, ours.seconds, strict=True)]
        emit(row_of(f"{what}: loop", by_hand, run, tokens, n_layers))
        emit(
            row_of(f"{what}: hekaton", ours, run, tokens, n_layers)
            | {"time / loop's": statistics.median(ratios)}
        )


def _pinned(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.pin_memory() if CUDA else value for name, value in batch.items()}


def row_of(what: str, side: Side, run: Any, tokens: int, n_layers: int) -> dict[str, Any]:
    from hekaton.building import model_config
    from hekaton.flops import peak_tflops

    seconds = statistics.median(side.seconds)
    spec, settings = model_config(run.config, run.plugins)
    tflops = tokens * spec.flops_per_unit(settings, run.config.training.seq_len) / seconds / 1e12
    peak = peak_tflops(DEVICE)
    return {
        "what": what, "layers": n_layers, "ms": seconds * 1e3, "tokens/s": tokens / seconds,
        "TFLOP/s": tflops, "MFU": tflops / peak if peak else "", "peak GiB": side.peak / GIB,
    }  # fmt: skip


def layers(emit: Emit) -> None:
    documents, concat = ("--training.packing", "documents"), ("--training.packing", "concat")
    cases: list[tuple[str, list[str], int]] = [
        ("compiled, one document", [*concat, "--compile.enable"], 1),
        ("compiled, one document", [*concat, "--compile.enable"], 2),
        ("compiled, documents", [*documents, "--compile.enable"], 1),
        ("compiled, documents", [*documents, "--compile.enable"], 2),
        ("eager, one document", [*concat], 1),
        ("eager, documents", [*documents], 1),
    ]
    for what, flags, rows in cases[3:5] if SMALL else cases:
        name = f"{what}, {rows} row{'s' if rows > 1 else ''}"
        attempt(name, partial(against_loop, name, flags, turns=5, rows=rows, emit=emit), emit)


def recompute(emit: Emit) -> None:
    modes = {
        "none": [],
        "every 2nd block": ["--activation_checkpoint.mode", "selective"],
        "by operator": [
            "--activation_checkpoint.mode", "selective", "--activation_checkpoint.selective_ac_option", "op",
        ],
        "full": ["--activation_checkpoint.mode", "full"],
    }  # fmt: skip
    modes["every 2nd block"] += ["--activation_checkpoint.selective_ac_option", "2"]
    budget = ["--activation_checkpoint.mode", "memory_budget"]
    for compiled in (True, False):
        tried = modes | ({"memory budget 0.5": budget} if compiled else {})
        if SMALL:
            tried = dict(list(tried.items())[-2:])
        for name, flags in tried.items():
            what = f"{'compiled' if compiled else 'eager'}, documents, {name}"
            more = [*flags, *(["--compile.enable"] if compiled else [])]
            attempt(what, partial(alone, what, more, emit), emit)


def alone(what: str, flags: Sequence[str], emit: Emit) -> None:
    n_layers = layers_that_fit(copies=2)
    before = allocated()
    with trainer([], shape(n_layers, *flags)) as run:
        side = Side(run.train_step)
        side.measure(3, count=False, others=before)
        side.peak = 0
        for _ in range(3):
            side.measure(3, count=True, others=before)
        emit(row_of(what, side, run, run.config.training.seq_len, n_layers))


def attempt(what: str, work: Callable[[], object], emit: Emit) -> None:
    """Do the work; when it fails, note why, and give its memory back to what comes next."""
    try:
        work()
    except Exception as e:
        logging.exception("%s failed", what)
        emit({"what": what, "error": f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"[:200]})
    gc.collect()
    torch._dynamo.reset()
    if CUDA:
        torch.cuda.empty_cache()


# -- checkpoint, profile, syncs


def checkpoint(emit: Emit) -> None:
    """Steps with and without a save in the background, by the time from one step's end to the next.

    Between two saves lies more time than one takes: a save that comes sooner waits for the one before.
    """
    from hekaton.config import load
    from hekaton.contributions import hookimpl
    from hekaton.distributed import process_group, this_process
    from hekaton.rules import check
    from hekaton.trainer import Trainer

    n_layers, interval, steps = (1, 150, 455) if not SMALL else (2, 2, 5)
    ends: list[float] = []

    class Watch:
        @staticmethod
        @hookimpl
        def hekaton_step_ended(step: int, metrics: Any) -> None:
            synchronize()
            ends.append(time.perf_counter())

    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    mode = "async_with_pinned_mem" if CUDA else "async"
    flags = shape(
        n_layers, "--training.steps", str(steps), "--checkpoint.enable",
        "--checkpoint.interval", str(interval), "--checkpoint.async_mode", mode,
        "--model.overrides.vocab_size", "32768" if not SMALL else "2048",
        "--checkpoint.keep_latest_k", "2",
    )  # fmt: skip
    process = this_process()
    with tempfile.TemporaryDirectory() as folder:
        loaded = load([], [*flags, "--job.dump_folder", folder])
        check(loaded, world_size=1, device_type=process.device.type)
        import types

        plugin = types.ModuleType("watch_steps")
        plugin.hekaton_step_ended = Watch.hekaton_step_ended  # type: ignore[attr-defined]
        plugin.HEKATON_API = ">=1.0"  # type: ignore[attr-defined]
        loaded.plugins.register(plugin, name="watch_steps")
        log = logging.getLogger("hekaton")
        log.addHandler(Keep())
        log.setLevel(logging.INFO)
        with process_group(process, loaded.config.comm, dump_folder=folder):
            Trainer(loaded, process).run()
    took = {step: b - a for step, (a, b) in enumerate(itertools.pairwise(ends), start=2)}
    saving = {step: seconds for step, seconds in took.items() if step % interval == 0}
    plain = [seconds for step, seconds in took.items() if step not in saving and step > 3]
    usual = statistics.median(plain)
    for step, seconds in saving.items():
        emit(
            {
                "what": f"step {step}, with a save",
                "ms": seconds * 1e3,
                "ms above a step": (seconds - usual) * 1e3,
            }
        )
    emit({"what": "a step without a save", "ms": usual * 1e3})
    for message in messages:
        if message.startswith("saved"):
            emit({"what": re.sub(r"\S*/(step-\d+)", r"\1", message)})


def profile(emit: Emit) -> None:
    from torch.profiler import ProfilerActivity

    n_layers = min(4, layers_that_fit(copies=2))
    with trainer([], shape(n_layers, "--compile.enable")) as run:
        for _ in range(4):
            run.train_step()
        synchronize()
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
        with torch.profiler.profile(activities=kinds) as profiler:
            for _ in range(2):
                run.train_step()
            synchronize()
    busy = [
        (event.time_range.start, event.time_range.end, event.name)
        for event in profiler.events()
        if (event.device_type == torch.autograd.DeviceType.CUDA) == CUDA
        and (CUDA or event.cpu_parent is None)
    ]
    busy.sort()
    total = busy[-1][1] - busy[0][0]
    idle, reached, gaps = 0.0, busy[0][0], []
    for start, end, name in busy:
        if start > reached:
            idle += start - reached
            gaps.append((start - reached, name))
        reached = max(reached, end)
    emit({"what": "two steps", "ms": total / 1e3, "share": 1.0})
    emit({"what": "nothing on the device", "ms": idle / 1e3, "share": idle / total})
    for gap, name in sorted(gaps, reverse=True)[:5]:
        emit({"what": f"gap before {name[:60]}", "ms": gap / 1e3, "share": gap / total})
    by_name: dict[str, list[float]] = {}
    for start, end, name in busy:
        by_name.setdefault(name, []).append(end - start)
    for name, times in sorted(by_name.items(), key=lambda item: -sum(item[1]))[:10]:
        emit({"what": f"{len(times)} x {name[:80]}", "ms": sum(times) / 1e3, "share": sum(times) / total})


def syncs(emit: Emit) -> None:
    for packing, compiled in itertools.product(("documents", "concat"), (False, True)):
        flags = ["--training.packing", packing, *(["--compile.enable"] if compiled else [])]
        with trainer([], shape(2, *flags)) as run:
            for _ in range(3):
                run.train_step()
            if CUDA:
                torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                for _ in range(3):
                    run.train_step()
            if CUDA:
                torch.cuda.set_sync_debug_mode("default")
        found = [
            str(warning.message).splitlines()[0] for warning in caught if "synchroniz" in str(warning.message)
        ]
        what = f"{packing}, {'compiled' if compiled else 'eager'}"
        emit({"what": what, "host waits in 3 steps": len(found), "first": found[0][:100] if found else ""})
        gc.collect()


def main() -> None:
    global SMALL
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int)
    arguments = parser.parse_args()
    SMALL = arguments.small
    if arguments.stage == "cpu_curve":
        arguments.out.write_text(json.dumps(losses_of_quick_start(arguments.steps)))
        return
    with arguments.out.open("w") as out:

        def emit(row: dict[str, Any]) -> None:
            out.write(json.dumps(row) + "\n")
            out.flush()
            print(row, flush=True)

        globals()[arguments.stage](emit)


if __name__ == "__main__":
    main()
