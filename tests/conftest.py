"""A clean virtual environment and the wheels of this repository, made once for all tests that need them."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Environment:
    """A virtual environment, run without anything of the one that runs the tests."""

    folder: Path

    def run(self, command: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a program of the environment (``hekaton``, ``pip``, ``python``)."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTHON", "HEKATON", "VIRTUAL_ENV", "COV_"))
        }
        path = f"{self.folder / 'bin'}{os.pathsep}{environment['PATH']}"
        return subprocess.run(
            [str(self.folder / "bin" / command), *arguments],
            cwd=cwd,
            env=environment | {"PATH": path},
            capture_output=True,
            text=True,
            timeout=900,
        )

    def pip_install(self, *requirements: str) -> None:
        done = self.run("pip", "install", "--quiet", "--no-compile", *requirements, cwd=self.folder)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is learned of data files does not go to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HEKATON_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def distribution_folders() -> list[Path]:
    """Every folder of the repository that is a distribution."""
    found = [REPOSITORY / "core", *REPOSITORY.glob("plugins/*"), *REPOSITORY.glob("model_zoo/*")]
    return sorted(folder for folder in found if (folder / "pyproject.toml").is_file())


@pytest.fixture(scope="session")
def first_party_plugins() -> dict[str, str]:
    """Entry-point name -> distribution of every plugin in the repository."""
    plugins = {}
    for folder in distribution_folders():
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        for name in project.get("entry-points", {}).get("hekaton", {}):
            plugins[name] = project["name"]
    return plugins


@pytest.fixture(scope="session")
def requirements() -> list[Requirement]:
    """What the distributions of the repository need of others, extras aside."""
    needed: dict[str, Requirement] = {}
    for folder in distribution_folders():
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        for text in project["dependencies"]:
            if not text.startswith("hekaton"):
                needed[text] = Requirement(text)
    return list(needed.values())


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder of a distribution, from the repository's root -> its wheel, built from a copy of the sources."""
    base = tmp_path_factory.mktemp("wheels")

    def built(name: str) -> Path:
        source, out = base / "source" / name, base / "dist" / name
        shutil.copytree(
            REPOSITORY / name, source, ignore=shutil.ignore_patterns("__pycache__", "dist", "build")
        )
        subprocess.run(
            [
                sys.executable,
                "-m",
                "build",
                "--installer",
                "uv",
                "--wheel",
                "--outdir",
                str(out),
                str(source),
            ],
            check=True,
            capture_output=True,
            timeout=300,
        )
        (wheel,) = out.glob("*.whl")
        return wheel

    names = [folder.relative_to(REPOSITORY).as_posix() for folder in distribution_folders()]
    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(names, pool.map(built, names), strict=True))


@pytest.fixture(scope="session")
def clean_environment(
    tmp_path_factory: pytest.TempPathFactory, wheels: dict[str, Path]
) -> Iterator[Environment]:
    """Nothing but torch and the wheel of the core."""
    environment = Environment(tmp_path_factory.mktemp("environment"))
    subprocess.run([sys.executable, "-m", "venv", str(environment.folder)], check=True, timeout=300)
    torch = importlib.metadata.version("torch").partition("+")[0]
    environment.pip_install(f"torch=={torch}", str(wheels["core"]))
    yield environment
    shutil.rmtree(environment.folder)  # a gigabyte


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY
