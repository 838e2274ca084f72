"""The way of a run: build, then batch -> forward/backward -> clip -> step -> log -> checkpoint, validate."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hekaton.build import build_component, build_meta, build_model
from hekaton.config import Loaded, to_toml
from hekaton.contributions import Dataset, Logger, LRSchedule, Objective, Optimizer, Tokenizer
from hekaton.data import Documents
from hekaton.data import Tokenizer as TokenizerProtocol
from hekaton.data.loader import Loader, build_loader
from hekaton.distributed import Process, all_sum, set_timeout
from hekaton.errors import ConfigError, DataError
from hekaton.forward_backward import ForwardBackward
from hekaton.loss import Batch
from hekaton.mesh import ParallelDims
from hekaton.metrics import Console, Meter, MetricLogger, log_all
from hekaton.optim import LearningRate, clip_grad_norm
from hekaton.profiling import Profiler
from hekaton.spec import SteppingConverter

if TYPE_CHECKING:
    from hekaton.contributions import Component

log = logging.getLogger("hekaton")


class Trainer:
    """One run on this process. Everything that a component can own is a component's; here is the order."""

    def __init__(self, loaded: Loaded, process: Process) -> None:
        self.config = config = loaded.config
        self.plugins = loaded.plugins
        self.process = process
        self.step = 0
        self.seed = config.debug.seed or 0
        self._set_determinism()

        self.dims = ParallelDims.of(config, world_size=process.world_size)
        self.meshes = self.dims.build_mesh(process.device.type)

        self.tokenizer: TokenizerProtocol = self._build(
            Tokenizer, config.model.tokenizer, config.model.hf_assets_path
        )
        global_batch_size = config.global_batch_size(process.world_size)
        self.rows = self._rows(global_batch_size)
        self.loader = self._loader(
            self._build(Dataset, config.training.dataset, config.training.dataset_path),
            seq_len=config.training.seq_len,
            global_batch_size=global_batch_size,
        )

        self.validation_documents: Documents | None = None
        if config.validation.enable:
            self.validation_documents = self._build(
                Dataset, config.validation.dataset, config.validation.dataset_path
            )

        meta = build_meta(config, self.plugins, self.dims)
        self._check_vocabulary(meta.config)
        if config.model.print_after_conversion:
            log.info("the model after %d converter(s):\n%s", len(meta.converters), meta.model)
        log.info(
            "%s %s: %s parameters, %s on %d process(es)",
            config.model.name, config.model.flavor, f"{sum(p.numel() for p in meta.model.parameters()):,}",
            process.device.type, process.world_size,
        )  # fmt: skip
        built = build_model(
            meta, self.meshes, self.dims, config, self.plugins, device=process.device, seed=self.seed
        )
        self.model_parts = list(built.parts.values())
        self.converters = meta.converters
        self.forward_backward = ForwardBackward(
            built,
            self._build(Objective, meta.spec.objective),
            self.meshes,
            self.dims,
            config,
            device=process.device,
        )

        self.optimizers: list[torch.optim.Optimizer] = [
            self._build(Optimizer, config.optimizer.name, config.optimizer, list(part.parameters()))
            for part in self.model_parts
        ]
        schedule_steps = config.lr_scheduler.total_steps or config.training.steps
        self.learning_rate = LearningRate(
            self.optimizers,
            self._build(LRSchedule, config.lr_scheduler.name, config.lr_scheduler, schedule_steps),
        )
        flops = meta.spec.flops_per_token
        self.meter = Meter(
            process.device,
            flops_per_token=flops(meta.config, config.training.seq_len) if flops else None,
            processes=process.world_size,
        )

    def run(self) -> None:
        """Train from where the newest checkpoint left off, or from the start, to the last step."""
        config = self.config
        checkpoints = None
        if config.checkpoint.enable:
            from hekaton.checkpoint.run import RunCheckpoints

            checkpoints = RunCheckpoints(self)
        self._write_config()
        if checkpoints is not None and config.checkpoint.create_seed_checkpoint:
            with contextlib.closing(self.loader), contextlib.closing(checkpoints):
                checkpoints.save_seed()
            return
        if checkpoints is not None:
            checkpoints.resume()
        steps = config.training.steps
        if self.step >= steps:
            log.info("step %d of %d is done already: nothing to train", self.step, steps)
        with contextlib.ExitStack() as ending:
            ending.push(self._run_ended)
            ending.callback(self.loader.close)
            if checkpoints is not None:
                ending.push(checkpoints.end)
            loggers = self._loggers(ending)
            console = Console(steps=steps, step=self.step, colour=not config.metrics.disable_color_printing)
            ending.callback(console.close)
            loggers.insert(0, console)
            profiler = Profiler(
                config.profiling, Path(config.job.dump_folder), rank=self.process.rank, step=self.step
            )
            ending.callback(profiler.close)
            self.plugins.call("hekaton_run_started", config=config, step=self.step)
            with _collected_garbage(config.training.gc_freq, debug=config.training.gc_debug) as collect:
                first = self.step + 1
                self.meter.start()
                while self.step < steps:
                    if checkpoints is not None:
                        checkpoints.poll()
                    self.step += 1
                    loss, grad_norm = self.train_step()
                    metrics = {}
                    if self.step in (first, steps) or self.step % config.metrics.log_freq == 0:
                        metrics = self._metrics(loss, grad_norm)
                        log_all(loggers, self.step, metrics)
                    console.advance(self.step)
                    if self.step == first:
                        set_timeout(config.comm.train_timeout_seconds)
                    if checkpoints is not None and checkpoints.due():
                        with self._left_out():
                            checkpoints.save(good=self._is_good(loss, grad_norm))
                    if config.validation.enable and (
                        self.step % config.validation.freq == 0 or self.step == steps
                    ):
                        with self._left_out():
                            validation = {"validation_loss": self.validate()}
                        log_all(loggers, self.step, validation)
                        metrics |= validation
                    self.plugins.call("hekaton_step_ended", step=self.step, metrics=metrics)
                    profiler.step()
                    collect(self.step)

    def _run_ended(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.plugins.call("hekaton_run_ended", step=self.step, error=error)

    def train_step(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step.

        :returns: this rank's part of the loss (their sum over ranks is the mean over the step's targets), and
            the gradient norm before clipping; both stay on the device.
        """
        phases = self.meter.phases
        with phases("data"):
            batch = self._to_device(self.loader.next_step())
        with phases("forward_backward"):
            loss = self.forward_backward(batch)
        with phases("optimizer"):
            grad_norm = self.optimizer_step()
        self.meter.add(batch["tokens"].numel() * self.dims.dp)
        return loss, grad_norm

    def optimizer_step(self) -> torch.Tensor:
        """Clip, step, forget the gradients; :returns: the gradient norm before clipping."""
        parameters = [parameter for part in self.model_parts for parameter in part.parameters()]
        grad_norm = clip_grad_norm(
            parameters, self.config.training.max_norm, pipeline=self.meshes.dense["pp"].get_group()
        )
        self.learning_rate.apply()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.learning_rate.steps_done += 1
        for converter in self.converters:
            if isinstance(converter, SteppingConverter):
                converter.after_step(self.model_parts)
        return grad_norm

    @torch.no_grad()
    def validate(self) -> float:
        """Mean loss over the targets of the validation set, or of its first ``validation.steps`` batches."""
        settings = self.config.validation
        assert self.validation_documents is not None
        loader = self._loader(
            self.validation_documents,
            seq_len=settings.seq_len,
            global_batch_size=settings.local_batch_size * self.dims.dp,
            validation=True,
        )
        for part in self.model_parts:
            part.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.process.device)
        steps = 0
        with contextlib.closing(loader):
            while steps != settings.steps:
                try:
                    batch = self._to_device(loader.next_step())
                except StopIteration:
                    break
                total, count = self.forward_backward.evaluate(batch)
                sums += torch.stack((total, count))
                steps += 1
        for part in self.model_parts:
            part.train()
        loss = all_sum(sums[:1], self.meshes.report.get_group()).item()
        return loss / max(all_sum(sums[1:], self.meshes.loss.get_group()).item(), 1.0)

    def _metrics(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> dict[str, float]:
        return {
            "loss": all_sum(loss.clone(), self.meshes.report.get_group()).item(),
            "grad_norm": grad_norm.item(),
            "lr": float(self.optimizers[0].param_groups[0]["lr"]),
            **self.meter.report(),
        }

    def _is_good(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> bool:
        return math.isfinite(all_sum(loss.clone(), self.meshes.report.get_group()).item()) and math.isfinite(
            grad_norm.item()
        )

    def _build(self, kind: type[Component], name: str, *arguments: Any) -> Any:
        return build_component(self.config, self.plugins, kind, name, *arguments)

    def _loader(
        self,
        documents: Documents,
        *,
        seq_len: int,
        global_batch_size: int,
        validation: bool = False,
    ) -> Loader:
        """The batches of a dataset, for the rows of the global batch that this rank owns."""
        settings = self.config.validation.dataloader if validation else self.config.training.dataloader
        return build_loader(
            documents,
            self.tokenizer,
            seq_len=seq_len,
            global_batch_size=global_batch_size,
            rows=self._rows(global_batch_size),
            seed=self.seed,
            packing=self.config.training.packing,
            repeat=not validation,
            num_workers=settings.num_workers,
            pin_memory=settings.pin_memory and self.process.device.type == "cuda",
            prefetch_factor=settings.prefetch_factor,
            anything_left=self._anything_left,
        )

    def _anything_left(self, mine: bool) -> bool:
        """Whether any rank's rows have something left of a validation set."""
        left = torch.tensor(float(mine), device=self.process.device)
        return bool(all_sum(left, self.meshes.loss.get_group()).item())

    def _rows(self, global_batch_size: int) -> range:
        """The rows of the global batch that this rank reads."""
        rows = global_batch_size // self.dims.dp
        first = self.meshes.batch["dp"].get_local_rank() * rows
        return range(first, first + rows)

    def _loggers(self, ending: contextlib.ExitStack) -> list[MetricLogger]:
        """The loggers of this rank, closed at the end."""
        settings = self.config.metrics
        if self.process.rank != 0 and not settings.save_for_all_ranks:
            return []
        folder = Path(self.config.job.dump_folder, settings.save_tb_folder)
        if settings.save_for_all_ranks:
            folder /= f"rank_{self.process.rank}"
        names = dict.fromkeys([*settings.loggers, *(["tensorboard"] if settings.enable_tensorboard else [])])
        loggers: list[MetricLogger] = []
        with _writing_to(folder):
            for name in names:
                loggers.append(self._build(Logger, name, folder))
                ending.callback(loggers[-1].close)
        return loggers

    def _to_device(self, batch: Batch) -> Batch:
        return {name: value.to(self.process.device, non_blocking=True) for name, value in batch.items()}

    def _check_vocabulary(self, model_config: Any) -> None:
        rows = getattr(model_config, "vocab_size", None)
        if rows is not None and self.tokenizer.vocab_size > rows:
            raise DataError(
                f"tokenizer '{self.config.model.tokenizer}' has {self.tokenizer.vocab_size:,} ids, "
                f"{self.config.model.name} {self.config.model.flavor} has vocab_size {rows:,}",
                hint="choose another flavor or tokenizer, or set model.overrides.vocab_size",
            )

    def _set_determinism(self) -> None:
        torch.manual_seed(self.seed + self.process.rank)
        debug = self.config.debug
        if debug.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
            torch.use_deterministic_algorithms(True, warn_only=debug.deterministic_warn_only)
            torch.backends.cudnn.benchmark = False

    def _write_config(self) -> None:
        if self.process.rank != 0:
            return
        text = to_toml(self.config)
        if self.config.job.print_config:
            log.info("configuration:\n%s", text)
        path = Path(self.config.job.dump_folder, self.config.job.save_config_file or "config.toml")
        with _writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")

    @contextlib.contextmanager
    def _left_out(self) -> Iterator[None]:
        self._wait_for_device()
        began = time.perf_counter()
        yield
        self._wait_for_device()
        self.meter.leave_out(time.perf_counter() - began)

    def _wait_for_device(self) -> None:
        if self.process.device.type == "cuda":
            # Not for all of it: a checkpoint may be on its way to the host.
            torch.cuda.current_stream(self.process.device).synchronize()


@contextlib.contextmanager
def _writing_to(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise ConfigError(
            f"cannot write to '{path}': {e.strerror or e}", hint="choose another job.dump_folder"
        ) from e


@contextlib.contextmanager
def _collected_garbage(freq: int, *, debug: bool) -> Iterator[Any]:
    """Collect garbage every ``freq`` steps, on every rank at the same one, instead of whenever Python likes:
    a rank that collects alone keeps all others waiting."""
    gc.disable()
    if debug:
        gc.set_debug(gc.DEBUG_STATS)
    gc.collect(1)

    def collect(step: int) -> None:
        if step % freq == 0:
            gc.collect(1)

    try:
        yield collect
    finally:
        gc.set_debug(0)
        gc.enable()
