"""A package of a third party, written by following docs/tutorial.md to the letter, outside this repository.

Its files and its commands are the code blocks of that page.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from hekaton.testing import run_command, run_processes
from hekaton.testing.launcher import Finished

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"
BLOCKS: dict[str, str] = dict(
    re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE.read_text(), re.M | re.S)
)
FILES = {title: code for title, code in BLOCKS.items() if "." in title}

VOCAB, DIM, LAYERS = 320, 64, 2


def parameters(*, hidden_factor: int, tied: bool) -> int:
    """By hand: embedding, output, per layer two norms, four square matrices and two of the feed-forward."""
    layer = 2 * DIM + 4 * DIM * DIM + 2 * hidden_factor * DIM * DIM
    return (1 if tied else 2) * VOCAB * DIM + LAYERS * layer + DIM


def write_package(folder: Path) -> Path:
    for name, code in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(code)
    return folder


def write_single_file(path: Path) -> None:
    """The modules of the package, one after the other in one file."""
    names = ["settings", "model", "pairs", "sums", "tied", "__init__"]
    code = "\n".join(FILES[f"src/pocket/{name}.py"] for name in names)
    code = code.replace("from pocket.model import train_spec\n", "")
    # Two modules have a function called build.
    code = code.replace("def build(section, path)", "def build_sums(section, path)")
    code = code.replace("pocket.sums:build", "pocket.sums:build_sums")
    path.write_text(re.sub(r"pocket\.\w+:", f"{path.stem}:", code))


def commands(title: str) -> list[list[str]]:
    return [shlex.split(line[2:]) for line in BLOCKS[title].splitlines() if line.startswith("$ ")]


def losses(output: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^\S+ +step +\d+ +loss (\S+)", output, re.M)]


def check_training(
    done: subprocess.CompletedProcess[str] | Finished, *, hidden_factor: int = 3, tied: bool = True
) -> None:
    """The section's number and the converter show in the count of parameters; the dataset shows in the loss,
    since sums are written with 14 different characters: that soon, no other text is as easy to guess."""
    assert done.returncode == 0, done.stderr
    count = parameters(hidden_factor=hidden_factor, tied=tied)
    assert f"pocket tiny: {count:,} parameters" in done.stderr
    curve = losses(done.stderr)
    assert curve[0] == pytest.approx(math.log(VOCAB), abs=0.3)
    assert curve[-1] < math.log(14)


def test_the_page_has_the_blocks_that_are_tested_here():
    assert {"try it", "install", "hekaton plugins", "uninstall", "without it"} <= set(BLOCKS)
    assert {"pyproject.toml", "run.toml", "src/pocket/__init__.py", "tests/test_pocket.py"} <= set(FILES)


def test_unpackaged_the_package_by_the_path_of_its_init(tmp_path):
    write_package(tmp_path)
    ((program, *arguments),) = commands("try it")
    assert program == "hekaton"
    check_training(run_command(*arguments, cwd=tmp_path))


def test_unpackaged_a_single_file_from_another_folder(tmp_path):
    (tmp_path / "plugins").mkdir()
    write_single_file(tmp_path / "plugins" / "my_plugin.py")
    run = FILES["run.toml"].replace('converters = ["tied"]\n', "").replace("[tied]", "")
    (tmp_path / "run.toml").write_text(run)
    path = str(tmp_path / "plugins" / "my_plugin.py")
    check_training(run_command("train", "run.toml", "--plugins.load", path, cwd=tmp_path), tied=False)


def test_unpackaged_from_the_toml_file(tmp_path):
    write_single_file(tmp_path / "my_plugin.py")
    (tmp_path / "run.toml").write_text(FILES["run.toml"] + '\n[plugins]\nload = ["my_plugin.py"]\n')
    check_training(run_command("train", "run.toml", cwd=tmp_path))


def test_the_model_that_shards_itself_trains_and_refuses_other_layouts(tmp_path):
    write_package(tmp_path)
    ((_, *arguments),) = commands("try it")
    pairs = [*arguments, "--model.name", "pocket_pairs", "--training.local_batch_size", "4"]
    done = run_command(*pairs, processes=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert float(re.findall(r"step +30 +loss (\S+)", done.stderr)[0]) < math.log(14), done.stderr
    done = run_command(*pairs, "--parallelism.tensor_parallel_degree", "2", processes=2, cwd=tmp_path)
    assert done.returncode == 2
    assert "pocket_pairs tiny is sharded over data-parallel ranks only" in done.stderr
    assert "from: --parallelism.tensor_parallel_degree" in done.stderr


def test_the_pages_own_tests_pass(tmp_path):
    write_package(tmp_path)
    path = os.pathsep.join([str(tmp_path / "src"), str(tmp_path / "tests")])
    for name in re.findall(r"^def (test_\w+)", FILES["tests/test_pocket.py"], re.M):
        run_processes(
            tmp_path / "tests/test_pocket.py",
            name,
            processes=1,
            environment=os.environ | {"PYTHONPATH": path},
        )


in_clean_environment = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def package(tmp_path_factory, clean_environment):
    """The folder of the package, installed as the page says."""
    folder = write_package(tmp_path_factory.mktemp("third_party"))
    (pip, *arguments), *_ = commands("install")
    done = clean_environment.run(pip, *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr
    yield folder
    clean_environment.run("pip", "uninstall", "--yes", "hekaton-pocket", cwd=folder)


class TestInstalled:
    pytestmark = in_clean_environment

    def test_hekaton_plugins_shows_it_as_the_page_does(self, clean_environment, package):
        _, (program, *arguments), _ = commands("install")
        done = clean_environment.run(program, *arguments, cwd=package)
        assert (done.returncode, done.stderr) == (0, "")
        printed = [line.split() for line in done.stdout.splitlines()]
        shown = [line.split() for line in BLOCKS["hekaton plugins"].splitlines()]
        start = printed.index(shown[0])
        assert sorted(printed[start : start + len(shown)]) == sorted(shown)

    def test_nothing_else_is_installed_there(self, clean_environment, package):
        done = clean_environment.run("hekaton", "plugins", "--json", cwd=package)
        plugins = json.loads(done.stdout)["plugins"]
        assert {plugin["name"] for plugin in plugins} == {"builtin", "pocket"}
        done = clean_environment.run("python", "-c", "import tokenizers", cwd=package)
        assert "No module named 'tokenizers'" in done.stderr

    def test_it_trains_by_name(self, clean_environment, package):
        *_, (program, *arguments) = commands("install")
        check_training(clean_environment.run(program, *arguments, cwd=package))

    def test_its_section_has_flags(self, clean_environment, package):
        done = clean_environment.run(
            "hekaton", "train", "run.toml", "--pocket.hidden_factor", "8", cwd=package
        )
        check_training(done, hidden_factor=8)

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--pocket.hiden_factor", "8"], "hidden_factor"),
            (["--sums.largest", "0"], "sums.largest"),
            (["--model.flavor", "smal"], "small"),
            (["--model.name", "poket"], "did you mean 'pocket'?"),
        ],
    )
    def test_its_names_and_values_are_checked(self, clean_environment, package, flags, message):
        done = clean_environment.run("hekaton", "train", "run.toml", *flags, cwd=package)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert "Traceback" not in done.stderr

    def test_uninstalled(self, clean_environment, package):
        removal, (program, *arguments) = commands("uninstall")
        assert clean_environment.run(*removal, cwd=package).returncode == 0
        try:
            done = clean_environment.run(program, *arguments, cwd=package)
            assert done.returncode == 2
            assert BLOCKS["without it"] in done.stderr
            assert "Traceback" not in done.stderr
        finally:
            clean_environment.pip_install(str(package))
