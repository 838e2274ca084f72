"""Run by test_faults.py on several processes: undisturbed steps with all checks on, and steps with one bit flipped."""

import json
import math
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

import hekaton.trainer
from hekaton.config import load
from hekaton.distributed import process_group, this_process
from hekaton.errors import TrainingError
from hekaton.optim import local
from hekaton.rules import check
from hekaton.testing.distributed import shared_meshes
from hekaton.trainer import Trainer


def run(cases: dict[str, dict], folder: str, result: str) -> None:
    """:param cases: name -> ``flags``, ``steps``, and ``flip``: what to flip a bit of, and on which rank."""
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    said = {}
    with shared_meshes():
        for name, case in cases.items():
            print(f"-- {name}", flush=True)  # read when a process ends without an exception
            torch._dynamo.reset()
            try:
                said[name] = outcome(case, folder)
            except Exception as e:
                raise AssertionError(name) from e
    Path(folder, f"{result}-{dist.get_rank()}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


def go_back(flags: list[str], flip: dict, folder: str) -> None:
    """A run in which replicas drift after step 3, and one that never reads the data of steps 3 and 4."""
    torch.set_num_threads(1)
    process = this_process()
    loaded = load([], [*flags, "--job.dump_folder", folder])
    with process_group(process, loaded.config.comm, dump_folder=folder):
        trainer = Trainer(loaded, process)
        after_step, steps = trainer.faults.after_step, []

        def disturbed(step: int) -> TrainingError | None:
            steps.append(step)
            if steps == [1, 2, 3]:
                flip_bit(found(trainer, **flip), flip["ranks"])
            return after_step(step)

        trainer.faults.after_step = disturbed
        trainer.run()
        other = Trainer(loaded, process)
        for other.step in range(1, loaded.config.training.steps + 1):
            for _ in range(2 if other.step == 3 else 0):
                other.loader.next_step()
            other.train_step()
        other.loader.close()
        ours, theirs = (one.model_parts[0].state_dict() for one in (trainer, other))
        equal = all(local(ours[name]).equal(local(theirs[name])) for name in theirs)
    Path(folder, f"went-back-{process.rank}.json").write_text(json.dumps({"steps": steps, "equal": equal}))


def outcome(case: dict, folder: str) -> str:
    """What the run says of the flipped bit; nothing when it saw none."""
    process = this_process()
    loaded = load([], [*case["flags"], "--job.dump_folder", folder])
    check(loaded, world_size=process.world_size, device_type="cpu")
    trainer = Trainer(loaded, process)
    try:
        for trainer.step in range(1, case["steps"] + 1):
            last = trainer.step == case["steps"]
            flip = case.get("flip") if last else None
            if flip and flip["what"] in ("gradient", "buffer"):
                flip_in_one_pass(trainer, **flip)
            if flip and flip["what"] == "nan":
                return said_of_bad_step(trainer, **flip)
            trainer.train_step()
            if flip and flip["what"] in ("parameter", "moment"):
                flip_bit(found(trainer, **flip), flip["ranks"])
            if fault := trainer.faults.after_step(trainer.step):
                return str(fault)
    except TrainingError as e:
        return str(e)
    finally:
        trainer.loader.close()
    return ""


def said_of_bad_step(trainer: Trainer, *, what: str, name: str, ranks: list[int]) -> str:
    """What changes in a step in which one rank's gradient, already summed, has a NaN; in the next it must."""
    clip = hekaton.trainer.clip_grad_norm
    parameters = [parameter for part in trainer.model_parts for parameter in part.parameters()]

    def poisoned(those, *arguments, **named):
        gradient = found(trainer, what="gradient", name=name, ranks=ranks)
        if gradient is not None and dist.get_rank() in ranks:
            local(gradient).view(-1)[0] = math.nan
        return clip(those, *arguments, **named)

    before = [local(parameter).clone() for parameter in parameters]
    hekaton.trainer.clip_grad_norm = poisoned
    try:
        trainer.train_step()
    finally:
        hekaton.trainer.clip_grad_norm = clip
    changed = [
        str(tuple(new.shape))
        for old, new in zip(before, map(local, parameters), strict=True)
        if not old.equal(new)
    ]
    trainer.step += 1
    trainer.train_step()
    if all(old.equal(new) for old, new in zip(before, map(local, parameters), strict=True)):
        changed.append("nothing in the step after it")
    return ", ".join(changed)


def flip_in_one_pass(trainer: Trainer, **flip) -> None:
    """Flip a bit of what the first of the two passes leaves."""
    run_microbatch, passes = trainer.forward_backward._run, []

    def disturbed(inputs, targets):
        losses = run_microbatch(inputs, targets)
        passes.append(losses)
        if len(passes) == 1:
            flip_bit(found(trainer, **flip), flip["ranks"])
        return losses

    trainer.forward_backward._run = disturbed


def found(
    trainer: Trainer, *, what: str, name: str, ranks: list[int], key: str = "exp_avg"
) -> torch.Tensor | None:
    """:param key: of a moment in the optimizer's state."""
    for part in trainer.model_parts:
        parameters, buffers = dict(part.named_parameters()), dict(part.named_buffers())
        if name in buffers:
            return buffers[name]
        if name in parameters:
            if what == "parameter":
                return parameters[name]
            if what == "gradient":
                return parameters[name].grad
            return next(
                o.state[parameters[name]][key] for o in trainer.optimizers if parameters[name] in o.state
            )
    return None


@torch.no_grad()
def flip_bit(tensor: torch.Tensor | None, ranks: list[int]) -> None:
    """The lowest bit of one element, in memory: the smallest error that there is."""
    if tensor is None or dist.get_rank() not in ranks:
        return
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    local.view(-1).view(torch.uint8)[local.numel() // 2 * local.itemsize] ^= 1
