"""The documentation is true: generated pages are fresh, code blocks run, links resolve."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from hekaton import testing
from hekaton.cli.one_plugin import source_of
from hekaton.config import JobConfig, load
from hekaton.contributions import Contribution, Ref, Section
from hekaton.plugins import CONTRIBUTION_HOOKS, Plugins, hookspecs, kind_name
from hekaton.rules import check
from hekaton.testing import run_command, run_processes
from hekaton.testing.conformance.promises import page_of
from hekaton.testing.launcher import Finished

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
TEST_PAGE = DOCS / "how-to" / "test-a-plugin.md"
PROGRAMS = Path(__file__).with_name("other_programs.py")
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("hekaton_")}
PLUGIN_PAGE = DOCS / "how-to" / "plugins.md"
EVERY_PAGE = DOCS / "how-to" / "every-contribution.md"

# What the tutorial shows is tested by test_third_party_package.py, with the package that it builds.
PAGES = [
    path
    for path in [
        *DOCS.rglob("*.md"),
        *ROOT.glob("*.md"),
        *ROOT.glob("*/README.md"),
        *ROOT.glob("*/*/README.md"),
    ]
    if path.name != "tutorial.md" and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
]


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """(title, text) of the code blocks of a page."""
    pattern = rf'^```{language}(?: title="([^"]+)")?\n(.*?)^```$'
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.M | re.S)


def write_files(page: Path, folder: Path) -> None:
    """Every code block whose title is the name of a file."""
    for language in ("python", "toml"):
        for title, text in blocks(page, language):
            if title:
                (folder / title).write_text(text, encoding="utf-8")


def hekaton(*arguments: str, cwd: Path) -> Finished:
    """Run the command, on one thread so that tests side by side do not wait for each other."""
    return run_command(*arguments, cwd=cwd, environment=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=110)


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``docs/generate.py`` as a module."""
    monkeypatch.syspath_prepend(str(DOCS))
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def pages(tmp_path: Path, generate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the documentation, which ``generate`` works on."""
    folder = tmp_path / "docs"
    shutil.copytree(DOCS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(generate, "DOCS", folder)
    return folder


def test_generated_pages_are_up_to_date(generate: ModuleType, capsys: pytest.CaptureFixture[str]):
    assert generate.main(["--check"]) == 0, capsys.readouterr().err


def test_an_altered_page_is_named_with_the_cure(
    generate: ModuleType, pages: Path, capsys: pytest.CaptureFixture[str]
):
    page = pages / "reference" / "hooks.md"
    fresh = page.read_text(encoding="utf-8")
    page.write_text(fresh.replace("hekaton_models", "hekaton_model"), encoding="utf-8")
    assert generate.main(["--check"]) == 1
    error = capsys.readouterr().err
    assert "docs/reference/hooks.md" in error
    assert "configuration.md" not in error
    assert "run: python docs/generate.py" in error

    assert generate.main([]) == 0
    assert page.read_text(encoding="utf-8") == fresh


def test_a_missing_page_is_named(generate: ModuleType, pages: Path, capsys: pytest.CaptureFixture[str]):
    (pages / "reference" / "cli.md").unlink()
    assert generate.main(["--check"]) == 1
    assert "docs/reference/cli.md" in capsys.readouterr().err


def test_pages_depend_neither_on_the_terminal_nor_on_other_plugins(tmp_path: Path):
    (tmp_path / "stranger.py").write_text(
        "from hekaton.contributions import Command, Optimizer, Ref, hookimpl\n"
        "@hookimpl\n"
        "def hekaton_optimizers():\n"
        "    return [Optimizer('Stranger', build=Ref('stranger:build'))]\n"
        "@hookimpl\n"
        "def hekaton_commands():\n"
        "    return [Command('stray', run=Ref('stranger:run'))]\n"
    )
    installed = tmp_path / "stranger-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[hekaton]\nstranger = stranger\n")
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path), "COLUMNS": "40", "FORCE_COLOR": "1", "HEKATON_DISABLE": "llama3",
    }  # fmt: skip
    assert "Stranger" in run_command("plugins", environment=environment).stdout
    environment["PYTHONPATH"] += f"{os.pathsep}{DOCS}"
    run_processes(PROGRAMS, "check_pages", processes=1, environment=environment)


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_in_the_reference_with_its_signature(name: str):
    written = str(inspect.signature(HOOKS[name])).replace("'", "")
    signature = re.sub(r"\b(?:\w+\.)+(?=[A-Z])", "", written)
    page = (DOCS / "reference" / "hooks.md").read_text(encoding="utf-8")
    assert f"### {name}\n\n```python\ndef {name}{signature}\n```" in page


# What signatures of the hook reference mention and other pages, Python or torch describe.
DESCRIBED_ELSEWHERE = {
    *(
        "Any",
        "BaseException",
        "Callable",
        "Collection",
        "False",
        "Iterable",
        "Iterator",
        "Literal",
        "Mapping",
    ),
    *("None", "Path", "Sequence", "True", "DeviceMesh", "ProcessGroup"),
    *("ConfigError", "HekatonError", "JobConfig", "Plugins", "UrlPath"),
}


def test_every_type_that_the_hook_reference_mentions_is_described_there():
    page = (DOCS / "reference" / "hooks.md").read_text(encoding="utf-8")
    signatures = "\n".join(re.findall(r"```python\n(.*?)```", page, re.S))
    types = " ".join(re.findall(r"^\| `[a-z_]+` \| `(.*?)` \|", page, re.M))
    without_strings = re.sub(r'"[^"]*"', "", f"{signatures} {types}")
    mentioned = set(re.findall(r"(?<![\w.'])[A-Z]\w*[a-z]\w*", without_strings))
    described = set(re.findall(r"^### (\w+)$|^\| `(\w+)` \| `hekaton|^(\w+)\(name: str", page, re.M))
    assert {"Draw", "BatchTensor", "Feed"} <= mentioned  # the page was read
    assert mentioned - DESCRIBED_ELSEWHERE <= {name for names in described for name in names}


def test_every_check_of_the_kit_is_in_its_guide():
    guide = (DOCS / "how-to" / "test-a-plugin.md").read_text(encoding="utf-8")
    assert [name for name in testing.__all__ if f"`{name}(" not in guide] == []


def _fields(schema: dict[str, object], path: str, definitions: dict[str, dict[str, object]]) -> list[str]:
    properties = schema.get("properties", {})
    assert isinstance(properties, dict)
    found = []
    for name, field in properties.items():
        target = field.get("$ref", "").rpartition("/")[2]
        if target:
            found += _fields(definitions[target], f"{path}.{name}".lstrip("."), definitions)
        else:
            found.append(f"{path}.{name}")
    return found


def test_every_field_is_in_the_reference_below_its_section(first_party_plugins: dict[str, str]):
    schema = JobConfig.model_json_schema()
    expected = _fields(schema, "", schema["$defs"])
    for path, contributed in Plugins.discover().all(Section).items():
        if contributed.plugin.name in first_party_plugins:
            schema = contributed.record.schema.load().model_json_schema()
            expected += _fields(schema, contributed.record.joins or path, schema.get("$defs", {}))
    page = (DOCS / "reference" / "configuration.md").read_text(encoding="utf-8")
    found = []
    for part in re.split(r"\n###? \[", page)[1:]:
        section = part[: part.index("]")]
        found += [f"{section}.{name}" for name in re.findall(r"^\| `(\w+)` \|", part, re.M)]
    assert sorted(found) == sorted(expected)


def test_every_verb_is_in_the_reference_with_its_help():
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    for verb in ("train", "checkpoint", "config", "convert", "download", "plugins"):
        assert f"## hekaton {verb}\n" in page
        assert re.search(rf"\$ hekaton {verb} --help\nusage: hekaton {verb}", page)


def build_site(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    # Not --quiet: it hides the warnings from --strict, too.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    environment = os.environ | {"HEKATON_DOCS_CELLS_AS_THEY_ARE": "1"}  # test_notebook.py runs them
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, env=environment)


def test_the_site_builds_with_every_link_and_fetches_nothing(tmp_path: Path):
    done = build_site(ROOT, tmp_path / "site")
    assert done.returncode == 0, done.stdout + done.stderr
    site = tmp_path / "site"
    hooks = (site / "reference/hooks/index.html").read_text(encoding="utf-8")
    targets = set(re.findall(r'href="(../../source/[^"]+)"', hooks))
    assert "../../source/model_zoo/llama3/src/hekaton_llama3/spec/#train_spec" in targets
    for target in targets:
        path, _, name = target.partition("#")
        source = (site / "reference/hooks" / path / "index.html").read_text(encoding="utf-8")
        assert f'id="{name}"' in source, target
    for page in site.rglob("*.html"):
        fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text())
        assert fetched == [], page


@pytest.mark.parametrize("link", ["no-such-page.md", "design.md#no-such-heading", "../core/no_such.py"])
def test_a_dead_link_fails_the_build(tmp_path: Path, link: str):
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    for folder in ("core", "plugins", "model_zoo"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    with (tmp_path / "docs" / "index.md").open("a") as page:
        page.write(f"\n[dead]({link})\n")
    done = build_site(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert f"'{link}'" in done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_resolve(page: Path):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


@pytest.mark.parametrize(
    ("page", "number"),
    [
        pytest.param(page, number, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, (title, _) in enumerate(blocks(page, "toml"))
        if title != "pyproject.toml"
    ],
)
def test_every_toml_block_is_a_configuration_that_loads(
    page: Path, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    block = tmp_path / "block.toml"
    block.write_text(blocks(page, "toml")[number][1], encoding="utf-8")
    titles = [title for title, _ in blocks(page, "python") if title]
    plugins = [title for title in titles if not title.startswith("test_")]
    flags = ["--plugins.load", ",".join(plugins)] if plugins else []
    try:
        loaded = load([block], flags)
        degrees = dict(loaded.config.parallelism)
        world_size = math.prod(max(1, n) for name, n in degrees.items() if name.endswith("_degree"))
        check(loaded, world_size=world_size, device_type="cpu", here=False)
    finally:
        for plugin in plugins:
            sys.modules.pop(Path(plugin).stem, None)


def test_the_model_plugin_of_the_readme_trains(tmp_path: Path):
    readme = ROOT / "README.md"
    ((_, plugin),) = [block for block in blocks(readme, "python") if block[0] == "tiny.py"]
    assert len(plugin.splitlines()) < 40
    write_files(readme, tmp_path)
    (command,) = re.findall(r"^hekaton train .*--plugins.load.*$", readme.read_text(), re.M)
    done = hekaton(
        *shlex.split(command)[1:], "--training.steps", "2", "--metrics.log_freq", "1", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"step +2 +loss \d", done.stderr)


def test_the_plugin_of_the_how_to_trains(tmp_path: Path):
    write_files(PLUGIN_PAGE, tmp_path)
    done = hekaton("train", "lab.toml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "done after step 4" in done.stdout
    (table,) = tmp_path.rglob("metrics.csv")
    rows = [line.split(",") for line in table.read_text().splitlines()]
    assert [step for step, name, _ in rows if name == "loss"] == ["1", "2", "3", "4"]

    # A run that starts again logs its steps once.
    assert hekaton("train", "lab.toml", "--training.steps", "2", cwd=tmp_path).returncode == 0
    rows = [line.split(",") for line in table.read_text().splitlines()]
    assert [step for step, name, _ in rows if name == "loss"] == ["1", "2"]


@pytest.fixture
def waves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """The tests of the page with a plugin of one of each, run in a folder with its files."""
    write_files(EVERY_PAGE, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    namespace: dict[str, object] = {"__name__": "test_waves"}
    exec(compile((tmp_path / "test_waves.py").read_text(), "test_waves.py", "exec"), namespace)
    yield namespace
    del sys.modules["waves"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "test_the_model" else ())
        for name in re.findall(r"^def (test_\w+)", EVERY_PAGE.read_text(encoding="utf-8"), re.M)
    ],
)
def test_one_contribution_of_each_kind_passes_its_checks(name: str, waves: dict[str, object]):
    test = waves[name]
    assert callable(test)
    test()


def test_one_contribution_of_each_kind_trains(tmp_path: Path):
    write_files(EVERY_PAGE, tmp_path)
    done = hekaton("train", "waves.toml", "--metrics.log_freq", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r" loss (\S+)", done.stderr)]
    assert len(losses) == 20
    assert losses[-1] < losses[0] / 3
    assert "points/s" in done.stderr


def linked_definitions(text: str) -> list[tuple[str, str]]:
    """(shown, target) of the links to source files, each of which defines the name that it leads to."""
    links = re.findall(r"\[([^\]]+)\]\(\.\./\.\./([^)#]+\.py)#(\w+)\)", text)
    for _, path, name in links:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert re.search(rf"\b{name}\b", " ".join(map(ast.unparse, tree.body))), (path, name)
    return [(shown.strip("`"), f"{path}#{name}") for shown, path, name in links]


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_has_an_example_and_leads_to_what_implements_it(name: str):
    page = (DOCS / "reference" / "hooks.md").read_text(encoding="utf-8")
    (text,) = re.findall(rf"^### {name}\n(.*?)(?=^##|\Z)", page, re.M | re.S)
    assert "Example: " in text
    targets = [target for _, target in linked_definitions(text)]
    assert any(target.endswith(f"#{name}") for target in targets), targets


@pytest.mark.parametrize("kind", CONTRIBUTION_HOOKS.values(), ids=kind_name)
def test_the_page_of_a_kind_leads_to_the_source_that_the_command_shows(kind: type[Contribution]):
    text = (DOCS / f"contracts/{page_of(kind)}.md").read_text(encoding="utf-8").rpartition("\n## ")[2]
    ((target, place), (hook, _)) = linked_definitions(text)
    assert CONTRIBUTION_HOOKS[hook] is kind
    file, _, line = source_of(Ref(target)).rpartition(":")
    path, _, name = place.partition("#")
    assert Path(file).samefile(ROOT / path)
    assert re.search(rf"\b{name}\b", (ROOT / path).read_text().splitlines()[int(line) - 1])


(TESTS_OF_THE_PAGE,) = [text for title, text in blocks(TEST_PAGE, "python") if title]


@pytest.mark.parametrize("name", re.findall(r"^def (test_\w+)", TESTS_OF_THE_PAGE, re.M))
def test_the_tests_of_the_how_to_pass(name: str, tmp_path: Path):
    namespace: dict[str, object] = {"__name__": "test_my_model"}
    exec(compile(TESTS_OF_THE_PAGE, "test_my_model.py", "exec"), namespace)
    test = namespace[name]
    assert callable(test)
    test(*[tmp_path for _ in inspect.signature(test).parameters])


@pytest.mark.parametrize(
    ("hook", "returned", "shown"),
    [
        ("hekaton_loggrs", "[]", "unknown hook"),
        ("hekaton_optimizers", "[Optimizer('AdamW', build=Ref('lab:build'))]", "two plugins"),
        ("hekaton_loggers", "[Optimizer('mine', build=Ref('lab:build'))]", "must return Logger records"),
    ],
)
def test_errors_shown_in_the_how_to_are_those_printed(tmp_path: Path, hook: str, returned: str, shown: str):
    (tmp_path / "lab.py").write_text(
        "from hekaton.contributions import Optimizer, Ref, hookimpl\n"
        f"@hookimpl\ndef {hook}():\n    return {returned}\n"
    )
    done = hekaton("plugins", "--plugins.load", "lab.py", cwd=tmp_path)
    assert done.returncode == 2
    ((_, quoted),) = [block for block in blocks(PLUGIN_PAGE, "text") if shown in block[1]]
    for line in quoted.splitlines():
        assert line in done.stderr
