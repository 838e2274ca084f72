"""Every distribution builds a wheel that is whole, and installs without the source tree."""

from __future__ import annotations

import json
import tomllib
import zipfile

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def _source_files(folder):
    """What the wheel must hold: every file of the package, by its path in the wheel."""
    return {
        path.relative_to(folder / "src").as_posix()
        for path in (folder / "src").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_every_wheel_holds_its_package_and_nothing_else(wheels, repository):
    assert {"core", "model_zoo/llama3", "plugins/hekaton-hf"} <= set(wheels)
    for name, wheel in wheels.items():
        folder = repository / name
        inside = {entry for entry in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in entry}
        assert inside == _source_files(folder), name
        (package,) = {entry.partition("/")[0] for entry in inside}
        assert f"{package}/py.typed" in inside, name
        assert not [entry for entry in inside if "/tests/" in entry or "/test_" in entry], name


def test_every_wheel_says_what_it_is(wheels, repository):
    for name, wheel in wheels.items():
        project = tomllib.loads((repository / name / "pyproject.toml").read_text())["project"]
        archive = zipfile.ZipFile(wheel)
        (metadata,) = [entry for entry in archive.namelist() if entry.endswith(".dist-info/METADATA")]
        text = archive.read(metadata).decode()
        assert f"Name: {project['name']}\nVersion: {project['version']}\n" in text
        assert f"Summary: {project['description']}\n" in text
        assert "License-Expression: BSD-3-Clause\n" in text
        assert "Requires-Python: >=3.11\n" in text
        licenses = [entry for entry in archive.namelist() if entry.endswith(".dist-info/licenses/LICENSE")]
        assert [archive.read(entry) for entry in licenses] == [(repository / "LICENSE").read_bytes()], name
        _, _, readme = text.partition("\n\n")
        assert len(readme.strip().splitlines()) > 3, f"{name} has no README to speak of"


@pytest.fixture(scope="module")
def everything(clean_environment, wheels, tmp_path_factory):
    """A folder outside the source tree, where every first-party distribution is installed from its wheel."""
    folder = tmp_path_factory.mktemp("elsewhere")
    before = installed(clean_environment, folder)
    clean_environment.pip_install(*[str(wheel) for name, wheel in wheels.items() if name != "core"])
    yield folder
    clean_environment.run(
        "pip", "uninstall", "--yes", *(installed(clean_environment, folder) - before), cwd=folder
    )


def installed(environment, folder):
    """The names of the distributions of an environment."""
    return {
        each["name"]
        for each in json.loads(environment.run("pip", "list", "--format", "json", cwd=folder).stdout)
    }


def test_hekaton_plugins_lists_them_all(clean_environment, everything, first_party_plugins):
    done = clean_environment.run("hekaton", "plugins", "--json", cwd=everything)
    assert (done.returncode, done.stderr) == (0, "")
    plugins = {plugin["name"]: plugin for plugin in json.loads(done.stdout)["plugins"]}
    assert plugins.keys() == first_party_plugins.keys()
    for name, plugin in plugins.items():
        assert plugin["status"] == "ok", plugin
        assert plugin["distribution"] == first_party_plugins[name]
        assert plugin["contributions"], plugin


def test_nothing_is_imported_from_the_source_tree(clean_environment, everything, repository):
    code = "import hekaton, hekaton_llama3, hekaton_hf; print(hekaton.__file__, hekaton_llama3.__file__)"
    done = clean_environment.run("python", "-c", code, cwd=everything)
    assert done.returncode == 0, done.stderr
    assert str(repository) not in done.stdout
    assert done.stdout.count("site-packages") == 2


def test_llama3_trains_from_its_wheels(clean_environment, everything):
    (everything / "run.toml").write_text(
        '[model]\nname = "llama3"\nflavor = "debugmodel"\n'
        "[training]\nsteps = 2\nseq_len = 64\nlocal_batch_size = 2\n"
    )
    done = clean_environment.run("hekaton", "train", "run.toml", cwd=everything)
    assert done.returncode == 0, done.stderr
    assert "step      2  loss" in done.stderr
