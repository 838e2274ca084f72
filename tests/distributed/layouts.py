"""Run by test_layouts.py on one or several processes: train a few steps under each layout, and compare.

A run's result is everything that the layout must not change: the initial weights, the first step's loss,
gradients and gradient norm, and the loss of the last step. Every rank compares the parts of tensors that it has.
"""

import contextlib
import functools
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from hekaton.config import load
from hekaton.distributed import all_sum, this_process
from hekaton.rules import check
from hekaton.testing.distributed import shared_meshes
from hekaton.trainer import Trainer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from mistakes import mistake  # noqa: E402

STEPS = 3
"""The loss of the third is that of weights which both moments of the optimizer have changed."""
LAST = " (last step)"
TINY = {
    "dim": 64, "n_layers": 6, "n_heads": 8, "n_kv_heads": 4, "hidden_dim": 96, "vocab_size": 264,
}  # fmt: skip
FLAGS = [
    "--plugins.load", str(HERE / "short_documents.py"),
    "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.tokenizer", "byte",
    "--training.dataset", "short_documents", "--training.seq_len", "32", "--training.steps", "5",
    "--training.global_batch_size", "8", "--training.max_norm", "0.5",
    "--lr_scheduler.warmup_steps", "2", "--activation_checkpoint.mode", "none", "--metrics.log_freq", "1",
]  # fmt: skip


def run(cases: dict[str, dict], folder: str, reference: bool) -> None:
    """Run every case; as the reference write what it gave, otherwise how far it is from its reference.

    :param cases: name -> ``flags``, ``reference`` (the name of the reference's case), ``mutation``, ``mistake``,
        ``steps``, ``layers`` of the model where the flags do not override it, ``last_gradients``.
    """
    warnings.filterwarnings("ignore", category=UserWarning, module="torch")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    with shared_meshes():
        differences = compare(cases, folder, reference)
    if dist.get_rank() == 0 and not reference:
        Path(folder, f"differences-{dist.get_world_size()}.json").write_text(json.dumps(differences))
    dist.destroy_process_group()


def compare(cases: dict[str, dict], folder: str, reference: bool) -> dict[str, dict]:
    """On rank 0 the differences of every case; as the reference none."""
    differences = {}
    for name, case in cases.items():
        print(f"-- {name}", flush=True)  # read when a process ends without an exception
        torch.use_deterministic_algorithms(False)
        torch._dynamo.reset()  # compiled code of the cases before counts towards the limit of recompilations
        expected = None if reference else read(folder, case["reference"])
        try:
            with mistake(case.get("mistake")):
                result = train(
                    case["flags"],
                    folder,
                    expected=expected,
                    mutation=case.get("mutation"),
                    steps=case.get("steps", STEPS),
                    last=case.get("last_gradients", False),
                    layers=case.get("layers", TINY["n_layers"]),
                )
        except Exception as e:
            raise AssertionError(f"layout {name}") from e
        everywhere = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
        dist.gather_object(result, everywhere)
        if everywhere and expected is None:
            torch.save(everywhere[0], Path(folder, f"{name}.pt"))
        elif everywhere:
            differences[name] = difference(everywhere, expected)
    return differences


@functools.cache
def read(folder: str, reference: str) -> dict:
    return torch.load(Path(folder, f"{reference}.pt"), weights_only=True)


def train(
    flags: list[str],
    folder: str,
    *,
    expected: dict | None,
    mutation: str | None = None,
    steps: int = STEPS,
    last: bool = False,
    layers: int = TINY["n_layers"],
) -> dict:
    """:param expected: the reference's result, None where this is the reference; :param last: compare the
    gradients of the last step too; :returns: this rank's result, see :func:`parts`."""
    process = this_process()
    model = ["--model.overrides", json.dumps(TINY | {"n_layers": layers})]
    loaded = load([], [*FLAGS, *model, "--job.dump_folder", folder, *flags])
    check(loaded, world_size=process.world_size, device_type="cpu")
    trainer = Trainer(loaded, process)
    weights, gradients = (None, None) if expected is None else (expected["weights"], expected["gradients"])
    result = {"weights": parts(trainer, lambda parameter: parameter, weights)}
    with mutated(trainer, mutation):
        for step in range(steps):
            trainer.step = step + 1
            part = trainer.forward_backward(trainer.loader.next_step(), trainer._draw())
            loss = all_sum(part["loss"].clone(), trainer.meshes.report.get_group()).item()
            if step == 0:
                result["gradients"] = parts(trainer, lambda parameter: parameter.grad, gradients)
            elif last and step == steps - 1:
                result["gradients"] |= parts(
                    trainer, lambda parameter: parameter.grad, gradients, suffix=LAST
                )
            if step == steps - 1:
                result["counts"] = tokens_per_expert(trainer)
            grad_norm = trainer.optimizer_step().item()
            if step == 0:
                result |= {"first_loss": loss, "grad_norm": grad_norm}
    result["last_loss"] = loss
    result["buffers"] = buffers(trainer)
    report = trainer.assembled.meta.spec.report
    result["report"] = {} if report is None else report(trainer.model_parts, trainer.meshes)
    trainer.loader.close()
    return result


def parts(trainer: Trainer, what, expected: dict[str, torch.Tensor] | None, *, suffix: str = "") -> dict:
    """Of every parameter of this rank that has such a tensor, by name.

    :param expected: what to compare it with, whole; None for the reference.
    :returns: for the reference the tensors; otherwise of this rank's parts the number of elements, the square
        of the norm of the difference, and whether every bit is the same.
    """
    mine = {}
    for part in trainer.model_parts:
        for name, parameter in part.named_parameters():
            tensor = what(parameter)
            if tensor is None:  # no gradient: frozen
                continue
            tensor = tensor.detach()
            if isinstance(tensor, DTensor) and (
                expected is None or any(placement.is_partial() for placement in tensor.placements)
            ):
                tensor = tensor.full_tensor()
            mine[name + suffix] = (
                tensor.clone() if expected is None else compared(tensor, expected[name + suffix])
            )
    return mine


def compared(tensor: torch.Tensor, whole: torch.Tensor) -> tuple[int, float, bool]:
    if isinstance(tensor, DTensor):
        whole = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None).to_local()
        tensor = tensor.to_local()
    assert tensor.shape == whole.shape
    return tensor.numel(), (tensor - whole).double().square().sum().item(), torch.equal(tensor, whole)


def buffers(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Those that a checkpoint keeps, of this rank's stages of a pipeline."""
    return {
        name: tensor.clone()
        for part in trainer.model_parts
        for name, tensor in part.state_dict().items()
        if name in dict(part.named_buffers())
    }


def tokens_per_expert(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The tokens of this step that each expert was sent by this rank."""
    return {
        name: buffer.clone()
        for part in trainer.model_parts
        for name, buffer in part.named_buffers()
        if name.endswith("tokens_per_expert")
    }


def difference(ranks: list[dict], expected: dict) -> dict[str, float]:
    """Relative differences; of gradients the largest norm-wise, of weights whether any bit.

    ``differing`` are the parameters whose gradients differ in the first step, the worst first.
    """
    first = ranks[0]
    weights, gradients, kept, counts = (
        by_name(ranks, kind) for kind in ("weights", "gradients", "buffers", "counts")
    )
    assert weights.keys() == expected["weights"].keys()
    assert gradients.keys() == expected["gradients"].keys()
    relative = {name: norm(its, expected["gradients"][name]) for name, its in gradients.items()}
    of_first = [name for name in relative if not name.endswith(LAST)]
    return {
        "weights": float(not all(same for its in weights.values() for *_, same in its)),
        "buffers": float(
            kept.keys() != expected["buffers"].keys()
            or not all(torch.equal(its[-1], expected["buffers"][name]) for name, its in kept.items())
        ),
        "counts": float(
            counts.keys() != expected["counts"].keys()
            or not all(torch.equal(sum(its), expected["counts"][name]) for name, its in counts.items())
        ),
        "report": float(first["report"] != expected["report"]),
        "gradients": max(relative.values()),
        "differing": sorted(
            (name for name in of_first if relative[name] > 1e-10), key=relative.get, reverse=True
        ),
        **{
            key: abs(first[key] - expected[key]) / abs(expected[key])
            for key in ("first_loss", "grad_norm", "last_loss")
        },
    }


def by_name(ranks: list[dict], kind: str) -> dict[str, list]:
    """What those ranks say that have a thing."""
    names = {name for rank in ranks for name in rank[kind]}
    return {name: [rank[kind][name] for rank in ranks if name in rank[kind]] for name in names}


def norm(of_ranks: list[tuple[int, float, bool]], expected: torch.Tensor) -> float:
    """Of a difference, relative to what is expected; every element is on equally many ranks."""
    copies, rest = divmod(sum(elements for elements, *_ in of_ranks), expected.numel())
    assert copies
    assert not rest
    squares = sum(square for _, square, _ in of_ranks) / copies
    return (squares**0.5 / expected.norm()).item()


@contextlib.contextmanager
def mutated(trainer: Trainer, mutation: str | None):
    """Break the run in a way that the comparison must notice."""
    patch = pytest.MonkeyPatch()
    step = trainer.forward_backward
    if mutation == "no gradient reduction":

        def own_part(output, input, group=None, **_):
            output.copy_(input.chunk(dist.get_world_size(group))[dist.get_rank(group)])

        name = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
        patch.setattr(dist, name, own_part)
    elif mutation == "halved loss":
        loss = step._loss

        def halved(outputs, targets):
            return {name: term / 2 for name, term in loss(outputs, targets).items()}

        patch.setattr(step, "_loss", halved)
    elif mutation == "positions shifted by one":
        split = step._split

        def shifted(inputs, targets):
            inputs, targets = split(inputs, targets)
            if dist.get_rank() == 0:
                inputs["positions"] = inputs["positions"] + 1
            return inputs, targets

        patch.setattr(step, "_split", shifted)
    else:
        assert mutation is None
    yield
    patch.undo()
