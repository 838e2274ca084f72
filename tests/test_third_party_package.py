"""A package of a third party, written by following docs/tutorial.md to the letter, outside this repository.

Its files and its commands are the code blocks of that page.
"""

from __future__ import annotations

import json
import math
import re
import resource
import shlex
import subprocess
import textwrap
import time
from pathlib import Path

import pytest

from hekaton.scaffold import chosen, distribution_files, write
from hekaton.testing import run_command
from hekaton.testing.launcher import Finished

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorial.md"
BLOCKS: dict[str, str] = dict(
    re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE.read_text(), re.M | re.S)
)
FILES = {title: code for title, code in BLOCKS.items() if "." in title}
PACKAGE = "src/hekaton_pocket"

VOCAB, DIM, LAYERS = 320, 64, 2


def parameters(*, hidden_factor: int) -> int:
    """By hand: embedding and output, per layer two norms, four square matrices and three of the feed-forward."""
    layer = 2 * DIM + 4 * DIM * DIM + 3 * hidden_factor * DIM * DIM
    return 2 * VOCAB * DIM + LAYERS * layer + DIM


def write_package(folder: Path) -> Path:
    """What the page's command writes, and the two additions that the page makes to it."""
    ((program, verb, *words),) = commands("begin")
    assert (program, verb, words[-2:]) == ("hekaton", "new", ["--into", "hekaton-pocket"])
    texts = distribution_files(chosen(words[:-2]))
    texts[f"{PACKAGE}/pairs.py"] = FILES[f"{PACKAGE}/pairs.py"]
    plugin, record = texts[f"{PACKAGE}/__init__.py"], BLOCKS["a second record"]
    first = plugin.index("        )\n    ]\n")  # where the first record ends
    added = f"        ),\n{textwrap.indent(record.rstrip(), 8 * ' ')},\n"
    texts[f"{PACKAGE}/__init__.py"] = f"{plugin[:first]}{added}{plugin[first + 10 :]}"
    write(texts, folder / "hekaton-pocket")
    return folder / "hekaton-pocket"


def write_single_file(path: Path, package: Path) -> None:
    """The modules of the package, one after the other in one file."""
    code = ""
    for name in ["settings", "model", "hugging_face", "dataset", "converter", "pairs", "__init__"]:
        module = (package / PACKAGE / f"{name}.py").read_text()
        # Two modules have a function called build.
        code += module.replace("def build(", f"def build_{name}(")
    code = code.replace("from __future__ import annotations\n", "")
    code = re.sub(r"^from hekaton_pocket\S* import .*\n", "", code, flags=re.M)
    code = re.sub(r"hekaton_pocket\.(dataset|converter):build", rf"{path.stem}:build_\1", code)
    path.write_text(re.sub(r"hekaton_pocket\.\w+:", f"{path.stem}:", code))


def commands(title: str) -> list[list[str]]:
    return [shlex.split(line[2:]) for line in BLOCKS[title].splitlines() if line.startswith("$ ")]


def losses(output: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^\S+ +step +\d+ +loss (\S+)", output, re.M)]


def check_training(done: subprocess.CompletedProcess[str] | Finished, *, hidden_factor: int = 3) -> None:
    """The section's number shows in the count of parameters; the dataset shows in the loss, since sums are
    written with 14 different characters: that soon, no other text is as easy to guess."""
    assert done.returncode == 0, done.stderr
    count = parameters(hidden_factor=hidden_factor)
    assert f"pocket tiny: {count:,} parameters" in done.stderr
    curve = losses(done.stderr)
    assert curve[0] == pytest.approx(math.log(VOCAB), abs=0.3)
    assert curve[-1] < math.log(14)


def test_the_page_has_the_blocks_that_are_tested_here():
    assert {"begin", "try it", "install", "hekaton plugins", "uninstall", "without it"} <= set(BLOCKS)
    assert {"pyproject.toml", "run.toml", f"{PACKAGE}/__init__.py", "tests/test_pocket.py"} <= set(FILES)


def test_unpackaged_the_package_by_the_path_of_its_init(tmp_path):
    package = write_package(tmp_path)
    ((program, *arguments),) = commands("try it")
    assert program == "hekaton"
    check_training(run_command(*arguments, cwd=package))


def test_unpackaged_a_single_file_from_another_folder(tmp_path):
    package = write_package(tmp_path)
    (tmp_path / "plugins").mkdir()
    path = tmp_path / "plugins" / "my_plugin.py"
    write_single_file(path, package)
    done = run_command("train", str(package / "run.toml"), "--plugins.load", str(path), cwd=tmp_path)
    check_training(done)


def test_unpackaged_from_the_toml_file(tmp_path):
    package = write_package(tmp_path)
    write_single_file(package / "my_plugin.py", package)
    (package / "run.toml").write_text(FILES["run.toml"] + '\n[plugins]\nload = ["my_plugin.py"]\n')
    check_training(run_command("train", "run.toml", cwd=package))


def test_the_model_that_shards_itself_trains_and_refuses_other_layouts(tmp_path):
    package = write_package(tmp_path)
    ((_, *arguments),) = commands("try it")
    pairs = [*arguments, "--model.name", "pocket_pairs", "--training.local_batch_size", "4"]
    done = run_command(*pairs, processes=2, cwd=package)
    assert done.returncode == 0, done.stderr
    assert float(re.findall(r"step +30 +loss (\S+)", done.stderr)[0]) < math.log(14), done.stderr
    done = run_command(*pairs, "--parallelism.tensor_parallel_degree", "2", processes=2, cwd=package)
    assert done.returncode == 2
    assert "pocket_pairs tiny is sharded over data-parallel ranks only" in done.stderr
    assert "from: --parallelism.tensor_parallel_degree" in done.stderr


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


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_new_plugin_is_green_within_a_minute(clean_environment, tmp_path):
    """From nothing to the first step, on two cores. Where others keep these busy, the time that the processes
    computed counts, as if one core had done everything."""
    clean_environment.pip_install("pytest", "hatchling", "editables")
    began, computed = time.monotonic(), _computed()
    project = tmp_path / "hekaton-minute"
    for folder, *command in (
        (tmp_path, "hekaton", "new", "model", "minute", "dataset", "minutes"),
        (project, "pip", "install", "--no-build-isolation", "-e", "."),
        (project, "pytest", "-q"),
        (project, "hekaton", "train", "run.toml", "--training.steps", "1"),
    ):
        done = clean_environment.run(*command, cwd=folder)
        assert done.returncode == 0, done.stdout + done.stderr
        print(command[0], f"{time.monotonic() - began:.1f} s, {_computed() - computed:.1f} s computed")
    took = min(time.monotonic() - began, _computed() - computed)
    clean_environment.run("pip", "uninstall", "--yes", "hekaton-minute", "pytest", cwd=tmp_path)
    assert "step      1  loss" in done.stderr
    assert took < 60


def _computed() -> float:
    """Seconds of processors that ended children of this process had."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


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
