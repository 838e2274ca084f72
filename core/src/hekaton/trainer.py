"""The way of a run: batch -> forward/backward -> clip -> step -> log -> checkpoint, validate."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch

from hekaton.accounting import accounts_of
from hekaton.assembly import assemble
from hekaton.checkpoint.disk.places import check_places, places_of
from hekaton.checkpoint.ranks import Ranks
from hekaton.checkpoint.runs.resume import Checkpoints, open_checkpoints
from hekaton.checkpoint.runs.run_state import RunState
from hekaton.config import Loaded
from hekaton.control import Request, RunControl
from hekaton.distributed import Process, all_sum, set_timeout, wait_for
from hekaton.draws import Draw
from hekaton.evaluating import make_evaluations
from hekaton.failures.whereabouts import Whereabouts
from hekaton.fault import FaultChecks
from hekaton.fault.bad_steps import BadSteps
from hekaton.finiteness import check_weights
from hekaton.flops import flops_per_unit
from hekaton.forward_backward import TOTAL
from hekaton.identity.built import agree_on_imports, agree_on_run
from hekaton.identity.kept import identity_of
from hekaton.metrics import Meter, MetricLogger, with_own
from hekaton.optim import clip_grad_norm
from hekaton.profiling import Profiler
from hekaton.reading import MixtureWatch, batch_on, log_read, log_shares, run_loader, shares_of_sources
from hekaton.reporting import Reporter
from hekaton.requests import requests_of
from hekaton.sources import open_dataset
from hekaton.stop_signals import stop_on_signals
from hekaton.surroundings import collected_garbage, set_determinism, write_config
from hekaton.updating import tell_converters, update
from hekaton.validation import images_due, images_of, make_validation

log = logging.getLogger("hekaton")

Losses: TypeAlias = dict[str, torch.Tensor]


class Trainer:
    """One run on this process. Everything that a component can own is a component's; here is the order."""

    def __init__(
        self,
        loaded: Loaded,
        process: Process,
        *,
        where: Whereabouts | None = None,
        loggers: Sequence[MetricLogger] = (),
    ) -> None:
        """:param where: is told the step and phase; :param loggers: beside those that are configured."""
        self.where = where or Whereabouts()
        self._loggers = loggers
        self.config = config = loaded.config
        self._accounts = accounts_of(config, rank=process.rank, where=self.where)
        self.plugins = loaded.plugins
        self.process = process
        self.step, self.control = 0, RunControl()
        check_places(places_of(config), Ranks.of())
        set_determinism(config.debug, rank=process.rank)
        torch.set_float32_matmul_precision(config.training.float32_matmul_precision)
        documents = open_dataset(config, self.plugins, config.training.dataset, config.training.dataset_path)
        self.assembled = assembled = assemble(loaded, process)
        self.dims, self.meshes = assembled.dims, assembled.meshes
        self.model_parts, self.optimizers = assembled.parts, assembled.optimizers
        self.learning_rate, self.forward_backward = assembled.learning_rate, assembled.forward_backward
        self._global_batch_size = config.global_batch_size(process.world_size)
        self.loader = run_loader(
            assembled,
            config.training.dataset,
            documents,
            seq_len=config.training.seq_len,
            global_batch_size=self._global_batch_size,
            settings=config.training.dataloader,
        )
        self._mixture = MixtureWatch(self.loader, documents, self.control)
        self.validation = make_validation(assembled)
        self.evaluations = make_evaluations(assembled)
        encoders = {"training data": str(self.loader.identity()["encoder"]), **self.validation.encoders}
        agree_on_run(assembled, documents, self.validation.documents, encoders=encoders)
        self._identity = identity_of(assembled, documents, self.validation.documents)
        self.faults = FaultChecks(assembled)
        self.bad_steps = BadSteps(assembled, self.loader, self.faults)
        self.meter = Meter(
            process.device,
            unit=self.loader.unit,
            flops_per_unit=flops_per_unit(assembled, self.loader),
            processes=process.world_size,
            peak=config.metrics.peak_tflops,
        )

    def run(self) -> Request:
        """Train from where the newest checkpoint left off, or from the start, to the last step.

        :returns: the request that ended the run before its last step, or one that asks for nothing.
        """
        config, steps = self.config, self.config.training.steps
        with contextlib.ExitStack() as opened:
            opened.callback(self.loader.close)
            state = RunState.of(self.assembled, self.loader, self._identity, bad_steps=self.bad_steps)
            checkpoints = open_checkpoints(config, self.plugins, state)
            opened.callback(checkpoints.close)
            write_config(config, self.process)
            if config.checkpoint.create_seed_checkpoint:
                checkpoints.save_seed()
                return Request()
            self.where.at("load")
            self.step = checkpoints.resume()
            self.where.at("start")
            tell_converters(self.assembled)
            if self.step >= steps:
                log.info("step %d of %d is done already: nothing to train", self.step, steps)
            log_shares(self.loader, step=self.step)
            opened.pop_all()  # from here on both are closed at the end of the run
        asked = Request()
        with contextlib.ExitStack() as ending:
            ending.enter_context(stop_on_signals(self.control, limit=config.fault.stop_seconds))
            ending.push(self._run_ended)
            ending.push(self._check_weights)
            ending.callback(self.loader.close)
            ending.push(checkpoints.end)
            reporter = ending.enter_context(Reporter(self.assembled, step=self.step, more=self._loggers))
            profiler = ending.enter_context(contextlib.closing(self._profiler()))
            ending.callback(self.control.close)
            self.plugins.call("hekaton_run_started", config=config, step=self.step, control=self.control)
            agree_on_imports(self.plugins)
            collect = ending.enter_context(
                collected_garbage(config.training.gc_freq, debug=config.training.gc_debug)
            )
            requests = requests_of(config, self.process, self.control, profiler)
            self._accounts.write(self.step, resumed=True)
            first = self.step + 1
            self.meter.start()
            while self.step < steps:
                checkpoints.poll()
                self.step += 1
                with self.faults.measured(self.step, self.where):
                    losses, grad_norm = self.train_step()
                self.where.at("after the optimizer")
                drifted = None if self.bad_steps.go_back else self.faults.after_step(self.step)
                self.bad_steps.look_at(self.step, drifted)
                if self.bad_steps.go_back:
                    self._go_back(checkpoints, reporter)
                    continue
                metrics: Mapping[str, float] = {}
                if self.step == first or reporter.due(self.step):
                    self.where.at("waiting for the device")
                    metrics = self._metrics(losses, grad_norm)
                    self.where.at("after the optimizer")
                    reporter.log(self.step, metrics)
                    self.bad_steps.settle()
                    self._accounts.write(self.step)
                reporter.advance(self.step)
                if self.step == first:
                    set_timeout(config.comm.train_timeout_seconds)
                if checkpoints.due(self.step):
                    with self._left_out("save"):
                        checkpoints.save(self.step, good=self._is_good(losses))
                for phase, judged in (("validation", self.validation), ("evaluation", self.evaluations)):
                    if judged.due(self.step):
                        with self._left_out(phase):
                            found = judged()
                        reporter.log(self.step, found)
                        metrics = {**metrics, **found}
                if images_due(self.assembled, self.step):
                    with self._left_out("images"):
                        reporter.log_images(self.step, images_of(self.assembled))
                self.where.at("after the step")
                self.plugins.call("hekaton_step_ended", step=self.step, metrics=metrics, control=self.control)
                profiler.step(self.step)
                collect(self.step)
                requests.look()
                asked = self.control.agreed()
                if asked.save and not checkpoints.due(self.step):
                    log.info("saving step %d: %s", self.step, "; ".join(asked.reasons))
                    with self._left_out("save"):
                        checkpoints.save(self.step, good=self._is_good(losses))
                self._accounts.keep_up(self.step)
                if asked.stop:
                    log.info("stopping after step %d: %s", self.step, "; ".join(asked.reasons))
                    break
            self.where.at("end")
            self.bad_steps.settle()
            log_read(self.loader, self.meshes.batch["dp"].get_group(), device=self.process.device)
        return asked if self.step < steps else Request()

    def train_step(self) -> tuple[Losses, torch.Tensor]:
        """One optimizer step.

        :returns: this rank's part of the loss and its terms, and the gradient norm; all stay on the device.
        """
        self.bad_steps.begin()
        with self._phase("data"):
            batch = batch_on(self.process.device, self.loader.next_step())
        with self._phase("forward_backward"):
            losses = self.forward_backward(batch, self._draw(), first=self.faults.replay(self.step))
        with self._phase("optimizer"):
            grad_norm = self.optimizer_step(losses)
        self._mixture.look(self.step)
        self.meter.add(self._global_batch_size * self.loader.units_per_row)
        return losses, grad_norm

    def optimizer_step(self, losses: Losses | None = None) -> torch.Tensor:
        """Clip, step unless the gradients are bad, forget them; the schedule goes on in any case.

        :param losses: of :meth:`train_step`, to find spikes; :returns: the gradient norm before clipping.
        """
        parameters = [parameter for part in self.model_parts for parameter in part.parameters()]
        grad_norm = clip_grad_norm(
            parameters, self.config.training.max_norm, pipeline=self.meshes.dense["pp"].get_group()
        )
        loss = None if losses is None else partial(self._whole_loss, losses)
        fault = self.faults.replayed(self.step)
        with self.bad_steps.left_out(self.step, grad_norm, loss, fault=fault) as left_out:
            if not left_out:
                update(self.assembled)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        self.learning_rate.steps_done += 1
        return grad_norm

    def _go_back(self, checkpoints: Checkpoints, reporter: Reporter) -> None:
        """To the last good step, but not with the data: that goes on after the bad step."""
        bad = self.step
        with self._left_out("load"):
            self.step, cursor = checkpoints.go_back(self.bad_steps.good_before, why=self.bad_steps.why)
        tell_converters(self.assembled)
        self.bad_steps.went_back(bad, self.step, cursor)
        reporter.go_back(self.step)
        self._accounts.write(bad)
        self._accounts.write(self.step, resumed=True)

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self.where.at(name, step=self.step)
        with self.meter.phases(name):
            yield

    def _profiler(self) -> Profiler:
        folder = Path(self.config.job.dump_folder)
        return Profiler(self.config.profiling, folder, rank=self.process.rank, step=self.step)

    def _run_ended(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.control.is_over = error is None
        self.step = self._accounts.end(self.step, error)
        self.plugins.call("hekaton_run_ended", step=self.step, error=error)

    def _check_weights(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None:
            check_weights(self.model_parts, step=self.step, device=self.process.device)

    def _metrics(self, losses: Losses, grad_norm: torch.Tensor) -> dict[str, float]:
        report = self.assembled.meta.spec.report
        metrics = {
            **self._whole(losses),
            "grad_norm": grad_norm.item(),
            **self.learning_rate.report(),
            **self.meter.report(),
            **shares_of_sources(self.loader, self.meshes.batch["dp"].get_group()),
        }
        return metrics if report is None else with_own(metrics, report(self.model_parts, self.meshes))

    def _whole(self, losses: Losses) -> dict[str, float]:
        """The losses of the step over all ranks."""
        whole = all_sum(torch.stack(list(losses.values())), self.meshes.report.get_group())
        return dict(zip(losses, whole.tolist(), strict=True))

    def _whole_loss(self, losses: Losses) -> float:
        return self._whole(losses)[TOTAL]

    def _is_good(self, losses: Losses) -> bool:
        """Whether the weights are: no gradient that is not finite has come to them."""
        self.bad_steps.settle()
        return math.isfinite(self._whole_loss(losses)) or self.bad_steps.left_out_last

    def _draw(self) -> Draw:
        return self.assembled.draw(self.step, rows=self.loader.rows)

    @contextlib.contextmanager
    def _left_out(self, phase: str) -> Iterator[None]:
        self.where.at("waiting for the device")
        wait_for(self.process.device)
        self.where.at(phase)
        began = time.perf_counter()
        yield
        wait_for(self.process.device)
        self.meter.leave_out(time.perf_counter() - began)
