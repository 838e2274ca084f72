"""./run_tests.sh on other versions: what it refuses, and the lowest versions that are allowed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version


def run(repository: Path, *words: str, timeout: float) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(
        [repository / "run_tests.sh", *words], env=environment, capture_output=True, text=True, timeout=timeout
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--torch"], "--torch needs a version, such as 2.14.1"),
        (["--python"], "--python needs a version, such as 3.12"),
        (["--lowest", "--torch", "2.13.0"], "--lowest chooses the version of torch: leave out --torch"),
        (["--python", "3.99", "--quick"], "there is no Python 3.99 here"),
    ],
)
def test_unusable_versions_are_reported(words: list[str], said: str, repository: Path) -> None:
    done = run(repository, *words, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"error: {said}"


@pytest.fixture(scope="module")
def lowest(repository: Path) -> dict[str, Version]:
    """Distribution -> its version in the environment of the lowest ones."""
    done = run(repository, "--lowest", "--prepare", timeout=1000)
    assert done.returncode == 0, done.stderr
    text = Path(done.stdout.strip(), "versions.txt").read_text()
    return {
        name.lower().replace("_", "-"): Version(version)
        for name, version in re.findall(r"(\S+)==(\S+)", text)
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_floor_is_a_version_that_can_be_installed(
    lowest: dict[str, Version], requirements: list[Requirement]
) -> None:
    """Beside each other: a floor that another distribution does not allow would never be tested."""
    assert len(requirements) > 10
    for one in requirements:
        (floor,) = [Version(bound.version) for bound in one.specifier if bound.operator == ">="]
        installed = lowest[one.name.lower().replace("_", "-")]
        assert (installed.major, installed.minor) == (floor.major, floor.minor), one


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_lowest_versions_train_save_export_and_download(
    lowest: dict[str, Version], repository: Path
) -> None:
    """A few files of the suite that use every dependency; all of it is ./run_tests.sh --lowest."""
    files = [
        "core/tests/test_torch_versions.py",
        "core/tests/checkpoint/test_steps.py",
        *(
            f"plugins/hekaton-hf/tests/test_{name}.py"
            for name in ("text", "stream", "chat", "tokenizer", "quantized", "mxfp4", "download")
        ),
        "tests/test_exported_facts.py",
        "tests/test_run_features.py",
    ]
    slow = ("wrong_arguments", "at_once", "imported_only")  # and about no dependency
    done = run(
        repository, "--lowest", "--quick", "-q", "-k", f"not ({' or '.join(slow)})", *files, timeout=1100
    )
    assert done.returncode == 0, done.stdout[-5000:]
