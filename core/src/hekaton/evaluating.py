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
        """:raises PluginError: for metrics that are no numbers by name."""
        metrics: dict[str, float] = {}
        for name in self._due:
            with generators_kept():
                found = self._evaluations[name]()
            for metric, value in found.items():
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
