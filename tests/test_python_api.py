"""``import hekaton``: training, loading and building models from Python."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

import hekaton
from hekaton.api.records import past_run
from hekaton.cli import main
from hekaton.config.job import config_of
from hekaton.config.validation import in_words
from hekaton.plugins import Plugins
from hekaton.testing import run_command, run_processes

SCRIPT = Path(__file__).with_name("python_api.py")


def test_what_it_lists_is_there_and_documented():
    assert dir(hekaton) == sorted(["__version__", *hekaton._MODULES])
    for name in dir(hekaton):
        assert getattr(hekaton, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        hekaton.lod  # noqa: B018


def test_importing_it_and_reading_runs_imports_no_torch(tmp_path):
    (tmp_path / "config.toml").write_text("[training]\nsteps = 2\n")
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 2.5}\n{"step": 1, "validation_loss": 3}\n{"st'
    )
    code = (
        "import hekaton, sys; assert 'pydantic' not in sys.modules; (run,) = hekaton.runs('.');"
        "print(run.config, run.metrics, run.validation, run.steps, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == (
        "{'training': {'steps': 2}} [{'step': 1, 'loss': 2.5}] [{'step': 1, 'validation_loss': 3}] [] False"
    )


def test_a_training_is_what_the_command_line_does_and_so_is_a_second_one(tmp_path):
    run_processes(SCRIPT, "twice", processes=1, cwd=tmp_path, timeout=120)
    first, second = json.loads((tmp_path / "losses.json").read_text())
    assert first == second
    (tmp_path / "other").mkdir()
    shutil.copy(tmp_path / "run.toml", tmp_path / "other")
    done = run_command("train", "run.toml", cwd=tmp_path / "other")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "other/outputs/metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == first
    assert len(re.findall(r"step +\d+  loss", done.stderr)) == len(first)


def test_the_code_of_the_page_runs(tmp_path):
    page = Path(__file__).resolve().parents[1] / "docs" / "how-to" / "python.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.M | re.S)
    (tmp_path / "page.py").write_text("def run():\n" + textwrap.indent("\n".join(blocks), "    "))
    (done,) = run_processes(tmp_path / "page.py", "run", processes=1, cwd=tmp_path, timeout=60)
    for line in (
        "unknown field 'step' in [training]",
        "did you mean 'steps'?",
        "run in outputs, step 20, loss ",
    ):
        assert line in done.stdout


def deep():
    found = {}
    found["a"] = found
    return found


MISUSES = {
    "train a field twice": (
        lambda: hekaton.train(training={"steps": 2}, **{"training.steps": 3}),
        "the argument training.steps is given more than once",
    ),
    "train None": (lambda: hekaton.train(None), "a TOML file was expected, not NoneType"),
    "train tables": (lambda: hekaton.train({"model": {}}), "sections are keywords: train"),
    "train bytes": (lambda: hekaton.train(b"run.toml"), "a TOML file was expected, not bytes"),
    "train a long name": (lambda: hekaton.train("a" * 5000), "at most 255 bytes"),
    "train text as a section": (lambda: hekaton.train(model="llama3"), "model must be a table, not"),
    "train tables without an end": (lambda: hekaton.train(model=deep()), "nested more than 32 levels deep"),
    "train a number of 80 bits": (lambda: hekaton.train(training={"steps": 2**80}), "more than 64 bits"),
    "load None": (lambda: hekaton.load(None), "a path was expected, not NoneType"),
    "load a number": (lambda: hekaton.load(5), "a path was expected, not int"),
    "load NUL": (lambda: hekaton.load("a\0b"), "a path cannot contain the character NUL"),
    "load a long name": (lambda: hekaton.load("a" * 5000), "at most 255 bytes"),
    "load a step that is text": (lambda: hekaton.load(".", step="x"), "step = 'x': the number of a step"),
    "load onto nothing": (lambda: hekaton.load(".", device="foo"), "device = 'foo': "),
    "load one plugin": (lambda: hekaton.load(".", plugins="nope"), "write ['nope']"),
    "runs None": (lambda: hekaton.runs(None), "a path was expected, not NoneType"),
    "runs of a URL": (lambda: hekaton.runs("memory://a"), "'memory://a' is a URL"),
    "runs of a long name": (lambda: hekaton.runs("a" * 5000), "at most 255 bytes"),
    "build a number": (lambda: hekaton.build(3, "debugmodel"), "name = 3: a name was expected"),
    "build no flavor": (lambda: hekaton.build("llama3", None), "flavor = None: a name was expected"),
    "build with text as seed": (lambda: hekaton.build("llama3", "debugmodel", seed="x"), "seed = 'x': a number"),
    "build below 0": (lambda: hekaton.build("llama3", "debugmodel", seed=-1), "seed = -1: a number"),
    "build onto nothing": (lambda: hekaton.build("llama3", "debugmodel", device="foo"), "device = 'foo': "),
    "load onto a device without weights": (lambda: hekaton.load(".", device="meta"), "hekaton.build makes"),
    "load onto what is not supported": (lambda: hekaton.load(".", device="mps"), "run on CPUs and CUDA"),
    "load onto None": (lambda: hekaton.load(".", device=None), "device = None: a device was expected"),
    "load over text": (lambda: hekaton.load(".", mesh="cpu"), "a mesh of one dim on 'cpu' was expected"),
    "load a plugin of no name": (lambda: hekaton.load(".", plugins=[3]), "plugins = [3]: a list of names"),
    "load no plugins": (lambda: hekaton.load(".", plugins=None), "plugins = None: a list was expected"),
    "load a plugin by a path": (lambda: hekaton.load(".", plugins=[Path("nope.py")]), "no file 'nope.py'"),
    "load without a part": (lambda: hekaton.load(".", leave_out="vision"), "write ['vision']"),
    "load arranged by a number": (lambda: hekaton.load(".", arrange=3), "arrange = 3: a function was expected"),
    "load by no name": (lambda: hekaton.load(".", model_name=3), "model_name = 3: a name was expected"),
    "load a numpy step": (lambda: hekaton.load("nowhere", step=np.int64(3)), "there is no 'nowhere'"),
    "build null": (lambda: hekaton.build("llama3", "debugmodel", n_layers=None), "'n_layers' cannot be null"),
    "build NaN": (lambda: hekaton.build("llama3", "debugmodel", norm_eps=float("nan")), "a finite number"),
    "build an object": (lambda: hekaton.build("llama3", "debugmodel", n_layers=object()), "valid integer"),
    "build 80 bits": (lambda: hekaton.build("llama3", "debugmodel", dim=2**80), "more than 64 bits"),
    "build too large": (lambda: hekaton.build("llama3", "debugmodel", dim=2**40), "a tensor is too large"),
    "build what cannot be there": (lambda: hekaton.build("llama3", "debugmodel", device="xpu"), "and CUDA"),
    "build one plugin": (lambda: hekaton.build("llama3", "debugmodel", plugins="x"), "write ['x']"),
}  # fmt: skip


@pytest.mark.parametrize("misuse", MISUSES)
def test_a_misuse_is_an_error_that_says_what_was_expected(misuse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, said = MISUSES[misuse]
    with pytest.raises(hekaton.HekatonError) as e:
        call()
    assert said in str(e.value)


@pytest.mark.parametrize(
    ("verb", "more"),
    [("generate", ["--prompt", "a"]), ("flux generate", ["--prompt", "a", "--out", "a.png"])],
)
def test_verbs_that_use_a_model_load_it_by_the_api(verb, more, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    calls = []

    def called(path, **options):
        calls.append((path, options["dtype"], str(options["device"]), options["model_name"]))
        raise hekaton.HekatonError("enough")

    monkeypatch.setattr(hekaton, "load", called, raising=False)
    assert main([*verb.split(), "--checkpoint", "run", "--dtype", "float64", "--device", "cpu", *more]) == 2
    assert calls == [("run", "float64", "cpu", None)]
    assert "error: enough" in capsys.readouterr().err


def test_numbers_of_numpy_are_taken():
    size = {"dim": np.int64(32), "n_layers": np.int64(1), "n_heads": 2, "n_kv_heads": 1, "vocab_size": 300}
    built = hekaton.build("llama3", "debugmodel", seed=np.int64(1), norm_eps=np.float64(1e-5), **size)
    assert built.output.weight.shape == (300, 32)


def test_a_url_that_cannot_be_reached_is_an_error(monkeypatch):
    def unreachable(path):
        raise OSError(5, "no route to the host")

    monkeypatch.setattr("hekaton.api.models.is_there", unreachable)
    with pytest.raises(hekaton.HekatonError, match=r"cannot read 'file:///run': no route to the host"):
        hekaton.load("file:///run")


def test_one_training_at_a_time(tmp_path, monkeypatch):
    """A second one, of another thread or inside of the first, would put back what the first one has set."""
    monkeypatch.chdir(tmp_path)
    inside = []

    def again(files, **_):
        with pytest.raises(hekaton.HekatonError) as e:
            hekaton.train()
        inside.append(e)

    monkeypatch.setattr("hekaton.api.training.run_from", again)
    hekaton.train()
    assert "trains one at a time" in str(inside[0].value)
    hekaton.train()
    assert len(inside) == 2


def test_the_command_line_and_python_go_one_way_to_a_run(monkeypatch):
    calls = []

    def called(files, flags=(), *, fields=None, **_):
        calls.append(([str(file) for file in files], flags, fields))
        return 75

    monkeypatch.setattr("hekaton.api.training.run_from", called)
    assert main(["train", "run.toml", "--training.steps", "3"]) == 75
    assert hekaton.train("run.toml", training={"steps": 3}) == 75
    assert calls == [
        (["run.toml"], ["--training.steps", "3"], None),
        (["run.toml"], (), {"training": {"steps": 3}}),
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a" * 5000, "at most 255 bytes"),
        ("a\\u0000b", "a path cannot contain the character NUL"),
        ("memory://a/b", "has its steps at memory://a/b\n  give that URL"),
        ("elsewhere", "no checkpoint in"),
    ],
)
def test_a_checkpoint_folder_that_has_no_steps(name, said, tmp_path):
    (tmp_path / "config.toml").write_text(f'[checkpoint]\nfolder = "{name}"\n')
    assert hekaton.runs(tmp_path)[0].steps == []
    with pytest.raises(hekaton.HekatonError) as e:
        hekaton.load(tmp_path)
    assert said in str(e.value)


def test_what_runs_left_is_read_by_one_function(tmp_path, monkeypatch, capsys):
    """``hekaton report`` and ``hekaton diff`` see what ``hekaton.runs`` sees, lines that no run wrote included."""
    lines = [{"began": 0, "ended": 1, "from": 0, "step": 2, "resumed": False, "seconds": {"compute": 1}},
             {"began": 2, "ended": 3, "from": 2, "step": 2, "resumed": True, "seconds": {"start-up": 1}}]  # fmt: skip
    (tmp_path / "accounting.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\nodd\n{"step": 3, "loss": 2}\n')
    (run,) = hekaton.runs(tmp_path)
    assert ([row["step"] for row in run.metrics], run.restarts, run.skipped) == ([1, 3], [2], 1)
    read = []
    for module in ("hekaton.cli.run_report", "hekaton.differing"):
        monkeypatch.setattr(f"{module}.past_run", lambda folder: read.append(folder) or run)
    assert main(["report", str(tmp_path), "--svg", str(tmp_path / "run.svg")]) == 0
    assert 'stroke="silver"' in (tmp_path / "run.svg").read_text()
    assert main(["diff", str(tmp_path), str(tmp_path)]) == 0
    assert read == [tmp_path] * 3
    assert "1 lines of metrics.jsonl" in capsys.readouterr().out


def test_a_section_of_a_plugin_that_is_not_loaded_is_named():
    with pytest.raises(ValidationError) as caught:
        config_of(Plugins.discover(), {"theirs": {"rank": 3}, "training": {"steps": 0}})
    assert in_words(caught.value) == (
        "training.steps must be greater than 0, not 0; nothing that is loaded knows 'theirs'"
    )


def test_a_run_that_cannot_be_read_does_not_hide_the_others(tmp_path, monkeypatch, caplog):
    for name, config in (("a", "[model]\nname = 'llama3'\n"), ("b", "[model\n"), ("c", ""), ("theirs", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text(config)
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n')
    (tmp_path / "c" / "accounting.jsonl").mkdir()
    is_file = Path.is_file
    monkeypatch.setattr(
        Path, "is_file", lambda path: is_file(path) if path.parent.name != "theirs" else denied()
    )
    first, broken, last = hekaton.runs(tmp_path)
    assert [len(run.metrics) for run in (first, broken, last)] == [1, 1, 1]
    assert (first.config, first.problems) == ({"model": {"name": "llama3"}}, [])
    (said,) = broken.problems
    assert said.startswith(f"cannot read '{tmp_path / 'b' / 'config.toml'}': Expected ']'")
    assert last.problems == [f"cannot read '{tmp_path / 'c' / 'accounting.jsonl'}': it is not a regular file"]
    left_out = f"cannot read '{tmp_path / 'theirs'}': Permission denied"
    assert caplog.messages == [said, *last.problems, left_out]
    with pytest.raises(hekaton.HekatonError, match=r"b/config\.toml"):
        past_run(tmp_path / "b")


def denied() -> bool:
    raise PermissionError(errno.EACCES, "Permission denied")


def test_a_device_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(hekaton.HekatonError, match="this machine has 1 CUDA devices"):
        hekaton.build("llama3", "debugmodel", device="cuda:1")


def test_elsewhere_and_sharded(tmp_path):
    run_processes(SCRIPT, "from_elsewhere", processes=1, cwd=tmp_path, timeout=120)
    run_processes(SCRIPT, "sharded", processes=2, timeout=120, folder=str(tmp_path / "moved"))


@pytest.mark.parametrize(
    "what", ["initial_weights", "no_traces", "interrupted", "interrupted_twice", "memory", "errors"]
)
def test_in_a_process_of_its_own(what, tmp_path):
    run_processes(SCRIPT, what, processes=1, cwd=tmp_path, timeout=120)
