"""Run by test_layouts.py on one or several processes: train a few steps under each layout, and compare.

A run's result is everything that the layout must not change: the initial weights, the first step's loss,
gradients and gradient norm, and the loss after the last step.
"""

import contextlib
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hekaton.config import load
from hekaton.distributed import all_sum, this_process
from hekaton.rules import check
from hekaton.testing.distributed import shared_meshes
from hekaton.trainer import Trainer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from mistakes import mistake  # noqa: E402

STEPS = 5
TINY = {
    "dim": 64, "n_layers": 6, "n_heads": 8, "n_kv_heads": 4, "hidden_dim": 96, "vocab_size": 264,
}  # fmt: skip
FLAGS = [
    "--plugins.load", str(HERE / "short_documents.py"),
    "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.tokenizer", "byte",
    "--model.overrides", json.dumps(TINY),
    "--training.dataset", "short_documents", "--training.seq_len", "32", "--training.steps", str(STEPS),
    "--training.global_batch_size", "8", "--training.max_norm", "0.5",
    "--lr_scheduler.warmup_steps", "2", "--activation_checkpoint.mode", "none", "--metrics.log_freq", "1",
]  # fmt: skip


def run(cases: dict[str, dict], folder: str, reference: bool) -> None:
    """Run every case; as the reference write what it gave, otherwise how far it is from its reference.

    :param cases: name -> ``flags``, ``reference`` (the name of the reference's case), ``mutation``, ``steps``.
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
        try:
            with mistake(case.get("mistake")):
                result = train(
                    case["flags"],
                    folder,
                    mutation=case.get("mutation"),
                    steps=case.get("steps", STEPS),
                    last=case.get("last_gradients", False),
                )
        except Exception as e:
            raise AssertionError(f"layout {name}") from e
        if dist.get_rank() == 0:
            if reference:
                torch.save(result, Path(folder, f"{name}.pt"))
            else:
                expected = torch.load(Path(folder, f"{case['reference']}.pt"), weights_only=True)
                differences[name] = difference(result, expected)
    return differences


def train(
    flags: list[str], folder: str, *, mutation: str | None = None, steps: int = STEPS, last: bool = False
) -> dict:
    """:param last: compare the gradients of the last step too; :returns: on rank 0 the result; parameters and
    gradients whole, by name."""
    process = this_process()
    loaded = load([], [*FLAGS, "--job.dump_folder", folder, *flags])
    check(loaded, world_size=process.world_size, device_type="cpu")
    trainer = Trainer(loaded, process)
    result = {"weights": whole(trainer, lambda parameter: parameter)}
    with mutated(trainer, mutation):
        for step in range(steps):
            trainer.step = step + 1
            part = trainer.forward_backward(trainer.loader.next_step(), trainer._draw())
            loss = all_sum(part["loss"].clone(), trainer.meshes.report.get_group()).item()
            if step == 0:
                result["gradients"] = whole(trainer, lambda parameter: parameter.grad)
            elif last and step == steps - 1:
                of_last = whole(trainer, lambda parameter: parameter.grad)
                result["gradients"] |= {f"{name} (last step)": grad for name, grad in of_last.items()}
            if step == steps - 1:
                result["counts"] = counted(trainer)
            grad_norm = trainer.optimizer_step().item()
            if step == 0:
                result |= {"first_loss": loss, "grad_norm": grad_norm}
    result["last_loss"] = loss
    result["buffers"] = whole_buffers(trainer)
    report = trainer.assembled.meta.spec.report
    result["report"] = {} if report is None else report(trainer.model_parts, trainer.meshes)
    trainer.loader.close()
    return result


def whole(trainer: Trainer, what) -> dict[str, torch.Tensor]:
    """A tensor of every parameter, put together from all ranks; every pipeline rank has some of them."""
    mine = {}
    for part in trainer.model_parts:
        for name, parameter in part.named_parameters():
            tensor = what(parameter)
            if tensor is None:  # no gradient: frozen
                continue
            tensor = tensor.detach()
            mine[name] = (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).clone()
    return {name: tensor for part in gathered(mine) for name, tensor in part.items()}


def whole_buffers(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The buffers that a checkpoint keeps, of all stages of a pipeline."""
    mine = {
        name: tensor.clone()
        for part in trainer.model_parts
        for name, tensor in part.state_dict().items()
        if name in dict(part.named_buffers())
    }
    return {name: tensor for part in gathered(mine) for name, tensor in part.items()}


def counted(trainer: Trainer) -> dict[str, list[int]]:
    """The tokens that each expert was sent in this step, over all processes."""
    mine = {
        name: buffer
        for part in trainer.model_parts
        for name, buffer in part.named_buffers()
        if name.endswith("tokens_per_expert")
    }
    everywhere = gathered(mine)
    names = {name for part in everywhere for name in part}
    return {name: sum(part[name] for part in everywhere if name in part).tolist() for name in names}


def gathered(mine: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Those of every rank, on rank 0; nothing on the others, which compare nothing."""
    everywhere = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(mine, everywhere)
    return everywhere or []


def difference(result: dict, expected: dict) -> dict[str, float]:
    """Relative differences; of gradients the largest norm-wise, of weights whether any bit."""
    assert result["weights"].keys() == expected["weights"].keys()
    assert result["gradients"].keys() == expected["gradients"].keys()
    gradients = {
        name: ((grad - expected["gradients"][name]).norm() / expected["gradients"][name].norm()).item()
        for name, grad in result["gradients"].items()
    }
    worst = max(gradients, key=gradients.get)
    return {
        "weights": float(
            not all(torch.equal(w, expected["weights"][name]) for name, w in result["weights"].items())
        ),
        "buffers": float(
            result["buffers"].keys() != expected["buffers"].keys()
            or not all(torch.equal(b, expected["buffers"][name]) for name, b in result["buffers"].items())
        ),
        "counts": float(result["counts"] != expected["counts"]),
        "report": float(result["report"] != expected["report"]),
        "gradients": gradients[worst],
        "worst_gradient": worst,
        **{
            key: abs(result[key] - expected[key]) / abs(expected[key])
            for key in ("first_loss", "grad_norm", "last_loss")
        },
    }


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
