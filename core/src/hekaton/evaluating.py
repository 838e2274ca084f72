"""What plugins judge a run by between its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hekaton.assembly import Assembled
from hekaton.contributions import OF_EVALUATION, Evaluation
from hekaton.errors import PluginError
from hekaton.metrics import RunEvaluation
from hekaton.random_state import generators_kept


class Evaluations:
    """Those of a run."""

    def __init__(self, evaluations: Mapping[str, RunEvaluation]) -> None:
        self._evaluations = evaluations
        self._due: Sequence[str] = ()

    def due(self, step: int) -> bool:
        """Whether any is due after this step; a call is then of these."""
        self._due = [name for name, one in self._evaluations.items() if one.due(step)]
        return bool(self._due)

    def __call__(self) -> dict[str, float]:
        """:raises PluginError: for metrics that are no numbers by name, or that two evaluations give."""
        metrics: dict[str, float] = {}
        given: dict[str, str] = {}
        for name in self._due:
            with generators_kept():
                found = self._evaluations[name]()
            if not isinstance(found, Mapping):
                raise PluginError(f"evaluation '{name}' gives {type(found).__name__}, not numbers by name")
            for metric, value in found.items():
                if (other := given.setdefault(metric, name)) != name:
                    raise PluginError(f"evaluations '{other}' and '{name}' both give '{metric}'")
                if not isinstance(value, int | float):
                    raise PluginError(
                        f"evaluation '{name}' gives '{metric}' as {type(value).__name__}, not as a number"
                    )
                metrics[f"{OF_EVALUATION}{metric}"] = float(value)
        return metrics


def make_evaluations(assembled: Assembled) -> Evaluations:
    """The evaluations that the configuration asks for: those whose section is not as it is by default."""
    config, plugins = assembled.config, assembled.plugins
    evaluations = {}
    for name, contributed in plugins.all(Evaluation).items():
        path = plugins.section_of(contributed.record)
        section = config.section(path) if path else None
        if section is not None and section != type(section)():
            with generators_kept():
                evaluations[name] = assembled.build(Evaluation, name, assembled)
    return Evaluations(evaluations)
