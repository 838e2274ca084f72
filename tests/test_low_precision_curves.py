"""The check of losses in low precision: curves outside of the band are a failure, and are not plotted."""

import math
import re
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture
def curves(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    import low_precision_curves

    return low_precision_curves


@pytest.mark.parametrize(
    ("name", "change", "status"),
    [
        ("float8 tensorwise", lambda step, loss: loss * 1.004, 0),
        ("float8 tensorwise", lambda step, loss: loss * (1.006 if 20 <= step < 30 else 1), 1),
        ("mxfp8", lambda step, loss: loss * 0.99, 1),
        ("mxfp8", lambda step, loss: math.nan if step == 39 else loss, 1),
    ],
)
def test_a_curve_outside_of_the_band_fails(name, change, status, curves, monkeypatch, tmp_path, capsys):
    falling = [6 - step / 20 for step in range(40)]

    def losses(flags, *, steps):
        moved = flags == curves.RUNS[name]
        return [change(step, loss) if moved else loss for step, loss in enumerate(falling[:steps])]

    monkeypatch.setattr(curves, "losses", losses)
    plot = tmp_path / "plot.svg"
    monkeypatch.setattr(sys, "argv", ["curves", "--steps", "40", "--plot", str(plot)])
    assert curves.main() == status
    assert (f"outside of the band of 0.5%: {name}\n" in capsys.readouterr().out) == bool(status)
    assert plot.exists() == (not status)


def test_the_plot_in_the_documentation_is_of_runs_within_the_band(curves):
    drawn = (REPOSITORY / "docs/how-to/low-precision-curves.svg").read_text(encoding="utf-8")
    bands = dict(re.findall(r">([^<]*): within ([0-9.]+)%<", drawn))
    assert set(bands) == set(curves.RUNS) - {curves.REFERENCE}
    assert all(float(one) / 100 <= curves.BAND for one in bands.values())
    assert f">{curves.REFERENCE}<" in drawn
    assert "over 200 steps" in drawn
