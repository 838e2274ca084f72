"""Killed at any moment of a save, a run resumes from a whole step and loses none that it should have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from hekaton.testing import run_processes

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def small_disk(folder: Path, *command: str) -> list[str]:
    """The command in a namespace of its own, with a disk of one megabyte at ``folder``."""
    mount = 'mount -t tmpfs -o size=1m small "$0" && exec "$@"'
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, str(folder), *command]


def test_a_disk_that_is_full_at_any_moment_of_a_save(tmp_path: Path) -> None:
    if subprocess.run(small_disk(tmp_path, "true"), capture_output=True).returncode != 0:
        pytest.skip("needs leave to mount a file system (user namespaces)")
    script = Path(__file__).with_name("saving_to_a_full_disk.py")
    done = subprocess.run(
        small_disk(tmp_path, sys.executable, "-W", "error", str(script), str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=100,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    *full, enough = json.loads(done.stdout)
    assert enough == [2, "", ["step-2"]]
    assert len(full) > 4
    for step, said, left in full:
        assert (step, left) == (1, ["step-1"])
        assert "No space left on device" in said


@pytest.mark.timeout(330)
@pytest.mark.parametrize(
    ("scheme", "every"),
    [pytest.param("", 1, id="disk"), pytest.param("file://", 2, id="fsspec", marks=pytest.mark.slow)],
)
def test_killed_at_every_moment_of_a_save(scheme: str, every: int, tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_while_saving.py")
    (done,) = run_processes(
        script, "run", processes=1, timeout=300, folder=str(tmp_path), scheme=scheme, every=every
    )
    outcomes = json.loads(done.stdout)
    assert len(outcomes) > 60 / every

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
