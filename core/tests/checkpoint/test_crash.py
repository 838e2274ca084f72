"""Killed at any moment of a save, a run resumes from a whole step and loses none that it should have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path


def test_killed_at_every_moment_of_a_save(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_while_saving.py")
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert len(outcomes) > 60

    seen = []
    for outcome in outcomes:
        assert len(outcome["values"]) == 1, "no step is a mixture of two"
        seen.append((outcome["step"], outcome["values"][0]))
        assert len(outcome["whole"]) >= 2, "the step that was resumed from outlives its successor"
        assert not [name for name in outcome["left"] if name.endswith(".replaced")]
    # As the saves go on, what is found is the newest that was whole: never an older one again, except
    # that the run which went back to step 2 sets the abandoned step 3 aside before its own is whole.
    assert [found for found, _ in groupby(seen)] == [
        (2, 2.0), (3, 3.0), (3, 3.5), (2, 2.0), (3, -3.0), (4, 4.0),
    ]  # fmt: skip
