"""Rules of the model: its configuration holds together, and it can do what the run asks of it."""

from __future__ import annotations

from collections.abc import Iterator

from hekaton.building import model_config
from hekaton.errors import ConfigErrors, HekatonError
from hekaton.parameters import group_names, trained_names
from hekaton.rules.run import Run
from hekaton.spec import RunFacts


def model_accepts(run: Run) -> Iterator[HekatonError]:
    """Flavor, section and overrides make a configuration, with which the model can do what the run asks."""
    try:
        spec, model = model_config(run.config, run.plugins)
    except HekatonError as e:
        overrides = [path for path in run.origins if path.startswith("model.overrides.")]
        for problem in e.problems if isinstance(e, ConfigErrors) else [e]:
            yield run.violation(problem.message, *overrides, "model.flavor", hint=problem.hint)
        return
    if spec.check is None:
        return
    config, settings = run.config, run.config.parallelism
    facts = RunFacts(
        seq_len=max(config.training.seq_len, config.validation.seq_len if config.validation.enable else 0),
        packed=config.training.packing != "concat",
        pp=settings.pipeline_parallel_degree,
        cp=settings.context_parallel_degree,
        tp=settings.tensor_parallel_degree,
    )
    for refusal in spec.check(model, facts):
        fields = [field if "." in field else f"model.overrides.{field}" for field in refusal.fields]
        yield run.violation(
            f"{config.model.name} {config.model.flavor} {refusal.message}", *fields, hint=refusal.hint
        )


def optimizer_groups_match(run: Run) -> Iterator[HekatonError]:
    """Every entry of [[optimizer.groups]] matches parameters that are trained."""
    meta = run.meta
    if not run.config.optimizer.groups or isinstance(meta, HekatonError):
        return
    try:
        group_names(trained_names(meta.model), run.config.optimizer, what=run.config.model.name)
    except HekatonError as e:
        yield run.violation(e.message, "optimizer.groups", hint=e.hint)


def objective_takes_the_model(run: Run) -> Iterator[HekatonError]:
    """The objective can be built for the model."""
    wrong = run.objective
    if isinstance(wrong, HekatonError) and not isinstance(run.meta, HekatonError):
        yield run.violation(wrong.message, "training.objective", "model.name", hint=wrong.hint)


def second_token_is_trained(run: Run) -> Iterator[HekatonError]:
    """A layer for a second token is there to be trained, and nothing else predicts one."""
    if run.model is None:
        return
    asked = run.config.training.objective == "multi_token"
    has_layer = getattr(run.model, "n_mtp_layers", 0)
    if asked and not has_layer:
        yield run.violation(
            'training.objective = "multi_token" is for a model with a layer for a second token',
            "training.objective",
            hint="set n_mtp_layers = 1 in [model.overrides] of a model that has it, such as deepseek_v3",
        )
    if has_layer and not asked:
        yield run.violation(
            f"n_mtp_layers = {has_layer} is a layer for a second token, which the run does not train",
            "model.overrides.n_mtp_layers",
            "training.objective",
            hint='add training.objective = "multi_token"',
        )
