"""``hekaton new``: what it writes for every kind, alone and together, and what it refuses."""

from __future__ import annotations

import ast
import datetime
import errno
import subprocess
import sys
import tomllib

import pytest

from hekaton.cli import main
from hekaton.contributions import API_VERSION
from hekaton.errors import ConfigError
from hekaton.plugins import CONTRIBUTION_HOOKS, hookspecs
from hekaton.scaffold import KINDS, chosen, distribution_files, write
from hekaton.scaffold.kinds import LONGEST
from hekaton.testing import run_command

EVERY = [word for kind in KINDS for word in (kind, f"my_{kind}")]


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A distribution with one contribution of each kind."""
    folder = tmp_path_factory.mktemp("new") / "everything"
    write(distribution_files(chosen(EVERY), licence="MIT", author="Ada"), folder)
    return folder


def test_every_hook_has_a_kind():
    written = {hook for kind in KINDS.values() for hook in kind.hooks} | {"hekaton_sections"}
    assert written >= set(CONTRIBUTION_HOOKS)
    lifecycle = {name for name in vars(hookspecs) if name.startswith("hekaton_")} - set(CONTRIBUTION_HOOKS)
    assert written & lifecycle


def test_the_distribution_is_complete(everything):
    files = {path.relative_to(everything).as_posix() for path in everything.rglob("*") if path.is_file()}
    assert files >= {
        "pyproject.toml", "README.md", "LICENSE", "run.toml", ".github/workflows/test.yml",
        ".github/workflows/publish.yml", "tests/test_my_model.py", "src/hekaton_my_model/py.typed",
        "src/hekaton_my_model/__init__.py", "src/hekaton_my_model/settings.py",
    }  # fmt: skip
    project = tomllib.loads((everything / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["hekaton"] == {"my_model": "hekaton_my_model"}
    assert project["license"] == "MIT"
    assert "Ada" in (everything / "LICENSE").read_text()
    assert 'HEKATON_API = ">=1,<2"' in (everything / "src/hekaton_my_model/__init__.py").read_text()
    assert API_VERSION.startswith("1.")
    for_users, _, for_authors = (everything / "README.md").read_text().partition("To work on it")
    assert "run.toml" in for_authors
    assert "run.toml" not in for_users, "a wheel does not have it"


def test_nothing_of_the_templates_is_left(everything):
    for path in everything.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert "template" not in text.lower(), path
            assert "hekaton.scaffold" not in text, path


@pytest.fixture(scope="module")
def each(tmp_path_factory):
    """A distribution of each kind alone, with the longest name."""
    folder = tmp_path_factory.mktemp("each")
    for kind in KINDS:
        write(distribution_files(chosen([kind, "n" * LONGEST])), folder / kind)
    return folder


@pytest.mark.parametrize("written", ["everything", "each"])
def test_what_is_written_passes_its_own_lint(written, request):
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."],
            cwd=request.getfixturevalue(written), capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_alone_has_all_that_it_names(kind):
    texts = distribution_files(chosen([kind, "mine"]))
    modules = {path.split("/")[-1][:-3] for path in texts if path.startswith("src/") and path.endswith(".py")}
    for path, text in texts.items():
        if not path.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hekaton_mine."):
                assert node.module.rpartition(".")[2] in modules
            if isinstance(node, ast.Constant) and str(node.value).startswith("hekaton_mine."):
                module, _, attribute = node.value.removeprefix("hekaton_mine.").partition(":")
                source = ast.parse(texts[f"src/hekaton_mine/{module}.py"])
                names = {getattr(one, "name", "") for one in source.body}
                names |= {node.id for node in ast.walk(source) if isinstance(node, ast.Name)}
                assert attribute in names


def test_a_run_with_everything_takes_a_step(everything, tmp_path):
    done = run_command(
        "train", str(everything / "run.toml"), "--training.steps", "1", "--plugins.load",
        str(everything / "src/hekaton_my_model/__init__.py"), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "my_model tiny: " in done.stderr
    assert "step      1  loss" in done.stderr
    logged = (tmp_path / "outputs/tb").rglob("metrics.csv")
    assert any("loss" in path.read_text() for path in logged)


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ("", "is given nothing", "hekaton new model pocket"),
        ("model", "is given model", ""),
        ("modle pocket", "unknown kind 'modle'", "did you mean 'model'?"),
        ("model Pocket", "'Pocket' cannot be the name", "did you mean 'pocket'?"),
        ("model my-decoder", "'my-decoder' cannot be the name", "did you mean 'my_decoder'?\nbegin with"),
        ("model größe", "'größe' cannot be the name", "lower case"),
        ("model pocket_", "'pocket_' cannot be the name", "single underscores"),
        (f"model {'n' * 33}", "it has 33 characters", "at most 32"),
        ("model poc__ket", "'poc__ket' cannot be the name", "single underscores"),
        ("dataset template_model", "'template_model' cannot be the name", "hekaton's own"),
        ("dataset training", "hekaton has a section [training] of its own", ""),
        ("model a model b", "one model at a time", ""),
        ("model a dataset a", "both have the section [a]", "a name of its own"),
    ],
)
def test_words_that_make_no_plugin_are_refused(words, message, hint):
    with pytest.raises(ConfigError) as error:
        chosen(words.split())
    assert message in error.value.message
    assert hint in error.value.hint


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("model llama3", "a distribution hekaton-llama3 is installed"),
        ("model blocks", "a distribution hekaton-blocks is installed"),
        ("dataset builtin", "there is a plugin 'builtin' already"),
        ("dataset taken", "there is a package hekaton_taken already"),
        ("dataset python_stdlib", "has the dataset 'python_stdlib' already"),
        ("command train", "has the command 'train' already"),
        ("objective multi_token", "has the objective 'multi_token' already"),
        ("model mine dataset multi_token", "has the section [multi_token] already"),
    ],
)
def test_a_name_that_is_taken_is_refused_before_anything_is_written(
    words, said, tmp_path, monkeypatch, capsys
):
    (tmp_path / "site").mkdir()
    (tmp_path / "site/hekaton_taken.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    assert main(["new", *words.split()]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["site"]


@pytest.mark.parametrize("name", ["class", "json", "torch", "test", "x", "a1_b2"])
def test_names_of_python_are_names_of_contributions(name):
    """They stand behind hekaton_ where Python reads them."""
    for path, text in distribution_files(chosen(["model", name, "command", "other"])).items():
        if path.endswith(".py"):
            compile(text, path, "exec")


def test_a_folder_with_spaces_and_an_author_in_any_script(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    author = 'Zoë {x} "東京"'
    words = ["new", "schedule", "mine", "--into", "a b/größe", "--licence", "MIT", "--author", author]
    assert main(words) == 0
    assert "cd 'a b/größe'\n" in capsys.readouterr().out
    assert f"(c) {datetime.date.today().year} {author}" in (tmp_path / "a b/größe/LICENSE").read_text("utf-8")


@pytest.mark.parametrize(
    ("into", "said"),
    [
        ("mine", "'mine' is there already"),
        ("mine/file", "'mine/file' is there already"),
        ("mine/file/below", "'mine/file/below' cannot be written: Not a directory"),
        ("dangling", "'dangling' is there already"),
        ("/proc/mine", "'/proc/mine' cannot be written: "),
    ],
)
def test_a_folder_that_cannot_be_written_is_an_error(into, said, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("kept")
    (tmp_path / "dangling").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    assert main(["new", "command", "mine", "--into", into]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"error: {said}")
    assert "name another folder with --into" in printed
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["dangling", "file", "mine"]


@pytest.mark.parametrize("there", [False, True])
def test_what_was_written_is_removed_where_the_disk_is_full(there, tmp_path, monkeypatch):
    if there:
        (tmp_path / "mine").mkdir()
    before = sorted(tmp_path.rglob("*"))
    texts = distribution_files(chosen(["command", "mine"]))
    written = []

    def full(path, text, encoding):
        if len(written) == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(path.write_bytes(text.encode(encoding)))

    monkeypatch.setattr(type(tmp_path), "write_text", full)
    with pytest.raises(ConfigError, match="cannot be written: No space left on device"):
        write(texts, tmp_path / "mine" if there else tmp_path / "a/b")
    assert len(written) == 6
    assert sorted(tmp_path.rglob("*")) == before


def test_an_encoder_comes_with_a_dataset_that_names_it():
    texts = distribution_files(chosen(["encoder", "answers"]))
    assert 'encoder="answers"' in texts["src/hekaton_answers/__init__.py"]
    assert tomllib.loads(texts["run.toml"])["training"]["dataset"] == "answers_texts"
    assert "encoder=" not in distribution_files(chosen(["dataset", "sums"]))["src/hekaton_sums/__init__.py"]
