"""What a user gets wrong, and what is said of it."""

from __future__ import annotations

import json
import shutil
import socket
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from jinja2.exceptions import SecurityError

pytest.importorskip("lm_eval")
import hekaton
from hekaton.cli import main
from hekaton.errors import ConfigError
from hekaton.sampling import Sampling
from hekaton.scoring import texts
from hekaton.scoring.forward import PlainForward
from hekaton.weights.facts import ModelFacts
from hekaton_eval import tasks
from hekaton_eval.backend import ScoringLM, batch_rows, of_model
from hekaton_eval.command import _parsed
from hekaton_eval.generation import wanted
from hekaton_eval.in_run import _check_each_once
from hekaton_eval.tasks import load_tasks
from hekaton_hf.tokenizer import SHIPPED

TASK = """\
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{a}}"
doc_to_target: "{{a}}"
"""


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["eval", *words]) == 2
    return capsys.readouterr().err


@pytest.fixture
def few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the harness's thousands of tasks, whose files take seconds to read, those of one folder."""
    import lm_eval.tasks

    folder = Path(lm_eval.tasks.__file__).parent / "arc"
    manager = partial(lm_eval.tasks.TaskManager, include_defaults=False, include_path=[str(folder)])
    monkeypatch.setattr(tasks, "TaskManager", lambda **_: manager())


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_task_is_told_with_the_nearest(capsys, few_tasks):
    message = said(capsys, "--checkpoint", "outputs", "--tasks", "arc_eazy")
    assert "error: unknown task 'arc_eazy'" in message
    assert "did you mean arc_easy" in message


@pytest.mark.filterwarnings("ignore")
def test_data_that_cannot_be_had_is_told_at_once(capsys, monkeypatch, few_tasks):
    def unreachable(*_: object, **__: object) -> socket.socket:
        raise OSError("network is unreachable")

    monkeypatch.setattr(tasks.socket, "create_connection", unreachable)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    began = time.process_time(), time.monotonic()
    message = said(capsys, "--checkpoint", "outputs", "--tasks", "arc_easy")
    assert "the data of task 'arc_easy' is not on this machine and cannot be had" in message
    assert time.process_time() - began[0] < 20
    import datasets.config

    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.filterwarnings("ignore")
def test_results_that_cannot_be_written_are_told_before_anything_is_computed(capsys, tmp_path):
    (tmp_path / "file").touch()
    for out in ("file", "file/below"):
        message = said(capsys, "--checkpoint", "outputs", "--tasks", "a", "--out", str(tmp_path / out))
        assert f"cannot write to '{tmp_path / out}'" in message


@pytest.mark.filterwarnings("ignore")
def test_a_task_file_without_its_data_or_that_is_none(tmp_path):
    with pytest.raises(hekaton.HekatonError, match=r"there is no task file 'nowhere\.yaml'"):
        load_tasks(["nowhere.yaml"])
    (tmp_path / "mine.yaml").write_text(TASK % "nowhere.jsonl")
    with pytest.raises(hekaton.HekatonError, match=r"the data of task .* is not on this machine"):
        load_tasks([str(tmp_path / "mine.yaml")])
    (tmp_path / "mine.yaml").write_text("task: [")
    with pytest.raises(hekaton.HekatonError, match="cannot be loaded"):
        load_tasks([str(tmp_path / "mine.yaml")])
    with pytest.raises(hekaton.HekatonError, match="there is no folder 'nowhere' with tasks"):
        load_tasks(["arc_easy"], include=["nowhere"])


GENERATION = {
    "until: 3": "generation_kwargs.until = 3: texts were expected",
    "until: [a, 1]": "generation_kwargs.until = ['a', 1]: texts were expected",
    "max_gen_toks: x": "generation_kwargs = {'max_gen_toks': 'x'}: invalid literal for int()",
    "max_gen_toks: 0": "generation_kwargs.max_gen_toks = 0 must be at least 1",
    "temperature: [1]": "generation_kwargs = {'temperature': [1]}: float() argument must be",
    "do_sample: 3": "generation_kwargs.do_sample = 3: true or false was expected",
    "do_sample: true, temperature: -1.0": "temperature = -1 must be a finite number",
    "do_sample: true, top_p: 5": "top_p = 5 must be above 0",
}


def test_what_a_task_asks_of_generation_is_checked():
    for text, message in GENERATION.items():
        with pytest.raises(ConfigError) as e:
            wanted(yaml.safe_load("{" + text + "}"), most=4)
        assert message in str(e.value)
    with pytest.raises(ConfigError, match=r"generation_kwargs = \[1\]: a table was expected"):
        wanted([1], most=4)
    none = wanted({"until": None, "max_new_tokens": 3}, most=4)
    assert (none.until, none.most, none.sampling.temperature) == ([], 3, 0)


@pytest.mark.filterwarnings("ignore")
def test_task_files_that_ask_nothing_or_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text('{"a": "x"}\n')
    task = (TASK % "a.jsonl").replace("{data_files", f"{{cache_dir: {tmp_path / 'cache'}, data_files")
    for name, content, message in (
        (
            "until.yaml",
            task + "generation_kwargs: {until: 3}\n",
            r"task 'mine': generation_kwargs\.until = 3",
        ),
        ("metrics.yaml", task + "metric_list: []\n", "task 'mine' has an empty metric_list"),
        ("group.yaml", "group: g\ntask: []\n", r"there is no task in 'group\.yaml'"),
        (
            "include.yaml",
            "include: gone.yaml\ntask: a\n",
            r"cannot be loaded: FileNotFoundError: .*gone\.yaml",
        ),
    ):
        Path(name).write_text(content)
        with pytest.raises(ConfigError, match=message):
            load_tasks([name])
    for name in ("one.yaml", "two.yaml"):
        Path(name).write_text(task)
    assert list(load_tasks(["one.yaml", "one.yaml"])["tasks"]) == ["mine"]
    with pytest.raises(ConfigError, match=r"'one\.yaml' and 'two\.yaml' both have a task 'mine'"):
        load_tasks(["one.yaml", "two.yaml"])
    with pytest.raises(ConfigError, match=r"entries 1 and 2 of \[\[evaluation.tasks\]\] both ask 'mine'"):
        _check_each_once([load_tasks(["one.yaml"]), load_tasks(["two.yaml"])])


RUNS = "from pathlib import Path\nPath('ran').touch()\ndef text(doc): return doc['a']\n"
CODE = {
    "doc_to_text: !function mine.text\n": r"names the Python function 'mine\.text' \(!function\)",
    "class: !function mine.text\n": r"names the Python function 'mine\.text' \(!function\)",
    "process_docs: !function os.system\n": r"names the Python function 'os\.system' \(!function\)",
    "metric_list: [{metric: ./mine.py, hf_evaluate: true}]\n": r"metric '\./mine\.py' is none of the harness's own",
    "metric_list: [{metric: mine}]\n": "metric 'mine' is none of the harness's own",
}


@pytest.mark.filterwarnings("ignore")
def test_a_task_file_runs_no_code_unless_it_is_trusted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text('{"a": "x"}\n')
    Path("mine.py").write_text(RUNS)
    task = (TASK % "a.jsonl").replace("{data_files", f"{{cache_dir: {tmp_path / 'cache'}, data_files")
    for added, message in CODE.items():
        Path("code.yaml").write_text(task.replace('doc_to_text: "{{a}}"\n', "") + added)
        with pytest.raises(ConfigError, match=message) as e:
            load_tasks(["code.yaml"])
        assert "--trust_task_code" in e.value.hint
        assert not Path("ran").exists()
    Path("base.yaml").write_text("doc_to_text: !function mine.text\n")
    Path("code.yaml").write_text("include: base.yaml\n" + task)
    with pytest.raises(ConfigError, match="names the Python function"):
        load_tasks(["code.yaml"])
    Path("code.yaml").write_text(task.replace('"{{a}}"', "!function mine.text", 1))
    (mine,) = load_tasks(["code.yaml"], trust_code=True)["tasks"].values()
    assert mine.doc_to_text({"a": "x"}) == "x"
    assert Path("ran").exists()


@pytest.mark.filterwarnings("ignore")
def test_templates_of_a_task_reach_nothing_of_python(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text('{"a": "x"}\n')
    template = "{{ cycler.__init__.__globals__.os.mkdir('ran') }}"
    task = (TASK % "a.jsonl").replace("{data_files", f"{{cache_dir: {tmp_path / 'cache'}, data_files")
    Path("code.yaml").write_text(task.replace("{{a}}", template, 1))
    with pytest.raises((ConfigError, SecurityError), match="unsafe"):
        (mine,) = load_tasks(["code.yaml"])["tasks"].values()
        mine.doc_to_text({"a": "x"})
    assert not Path("ran").exists()


@pytest.mark.filterwarnings("ignore")
def test_more_examples_than_a_task_has_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.jsonl").write_text("".join(json.dumps({"a": str(one)}) + "\n" for one in range(4)))
    task = (TASK % "a.jsonl").replace("{data_files", f"{{cache_dir: {tmp_path / 'cache'}, data_files")
    Path("one.yaml").write_text(task + "fewshot_split: test\n")
    with pytest.raises(ConfigError, match=r"is to show 4 examples before each question, and has 3"):
        load_tasks(["one.yaml"], num_fewshot=4)
    (mine,) = load_tasks(["one.yaml"], num_fewshot=3)["tasks"].values()
    mine.set_fewshot_seed(seed=1)
    assert mine.fewshot_context({"a": "0"}, num_fewshot=3).count("\n\n") == 3


def test_answers_without_room_are_errors_before_the_first_step(model):
    class Task:
        def get_config(self, name: str) -> object:
            return {"output_type": "generate_until", "generation_kwargs": None}[name]

    with pytest.raises(ConfigError, match="256 tokens are to be generated, and the model has 16 positions"):
        model.check({"mine": Task()}, chats=False)
    with pytest.raises(ConfigError, match="has no chat template"):
        model.check({}, chats=True)


@pytest.fixture(scope="module")
def model() -> ScoringLM:
    from hekaton.data.byte import build

    module = hekaton.build(
        "llama3", "debugmodel", n_layers=1, dim=32, n_heads=2, n_kv_heads=1, vocab_size=300
    )
    return ScoringLM(
        PlainForward(module.eval()), build(None, None), vocab_size=300, max_length=16, ends=[], quiet=True
    )


def test_an_answer_and_a_context_that_are_too_long(model, caplog):
    with pytest.raises(ConfigError, match="an answer of 20 tokens is longer than the 16 positions"):
        model.loglikelihood([_asked("a", "b" * 20)], disable_tqdm=True)
    with pytest.raises(ConfigError, match="16 tokens are to be generated, and the model has 16 positions"):
        model.generate_until([_asked("a", {"max_gen_toks": 16})])
    caplog.set_level("WARNING", logger="hekaton")
    (long,) = model.generate_until([_asked("x" * 40 + "abcdefghijkl", {"max_gen_toks": 3})])
    (cut,) = model._generated(["xabcdefghijkl"], {"max_gen_toks": 3}, quiet=True)
    assert model._prompts(["x" * 40 + "abcdefghijkl"], 3) == [model.tok_encode("xabcdefghijkl")[-13:]]
    assert long == cut
    assert "1 of 1 contexts lose their beginning: the model has 16 positions, of which 3" in caplog.text
    model.loglikelihood([_asked("x" * 14, "ab"), _asked("x" * 16, "ab")], disable_tqdm=True)
    assert "1 of 2 contexts lose their beginning: the model has 16 positions\n" in caplog.text


def test_texts_that_are_longer_than_those_of_training_are_told(caplog):
    loaded = SimpleNamespace(config=SimpleNamespace(vocab_size=9), facts=ModelFacts(positions=8), ends=())
    caplog.set_level("WARNING", logger="hekaton")
    assert of_model(loaded, max_length=8)["max_length"] == 8
    assert not caplog.text
    assert of_model(loaded, max_length=9)["max_length"] == 9
    assert "max_length = 9 is more than the 8 positions that the model was trained for" in caplog.text


def test_a_tokenizer_without_a_template_cannot_chat(model):
    with pytest.raises(ConfigError, match="has no chat template"):
        model.apply_chat_template([{"role": "user", "content": "hi"}])


def test_texts_without_an_answer_are_certain(model):
    assert texts.log_likelihoods(model._forward, [texts.TextPair([1], [])], vocab_size=300) == [(0.0, True)]
    assert Sampling(temperature=0).temperature == 0


def _asked(*arguments: object) -> object:
    from types import SimpleNamespace

    return SimpleNamespace(args=arguments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "a"], "one of the arguments --checkpoint --hf is required"),
        (["--checkpoint", "a"], "--tasks"),
        (["--checkpoint", "a", "--tasks", "a", "--limit", "0"], "--limit 0: a number from 1 to"),
        (
            ["--checkpoint", "a", "--tasks", "a", "--num_fewshot", "70000"],
            "a number from 0 to 65,536 was expected",
        ),
        (["--checkpoint", "a", "--tasks", "a", "--seed", f"{2**64}"], "a number from 0 to 18,446"),
        (
            ["--checkpoint", "a", "--tasks", "a", *["--parallelism.data_parallel_shard_degree", "2"] * 2],
            "--parallelism.data_parallel_shard_degree is given more than once",
        ),
        (["--checkpoint", "a", "--tasks", "a", "--lmit", "3"], "unknown argument '--lmit'"),
        (["--checkpoint", "a", "--tasks", "a", "--log_samples"], "has no effect without --out"),
    ],
)
def test_wrong_options(words, message):
    with pytest.raises(ConfigError) as e:
        _parsed(words)
    assert message in str(e.value)


def test_a_batch_size_that_is_none():
    assert batch_rows("auto") is None
    for said in ("many", "0", str(2**17), "1" * 40):
        with pytest.raises(ConfigError, match=f"batch_size = {said}: auto, or a number from 1 to 65,536"):
            batch_rows(said)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_that_is_being_written_and_a_tokenizer_of_another_model(tmp_path, monkeypatch, capsys):
    import importlib.util

    spec = importlib.util.spec_from_file_location("judged", Path(__file__).with_name("judged.py"))
    judged = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(judged)
    judged.write_tasks(tmp_path)
    monkeypatch.chdir(tmp_path)
    judged.save_model(tmp_path / "step-1", "llama3")
    common = ["--tasks", "choice.yaml"]
    other = json.loads((SHIPPED / "tokenizer.json").read_text())
    other["pre_tokenizer"] = {"type": "Whitespace"}
    Path("other").mkdir()
    Path("other/tokenizer.json").write_text(json.dumps(other))
    message = said(capsys, "--checkpoint", "step-1", *common, "--hf_assets_path", "other")
    assert "is not the one that step-1 was trained with" in message
    shutil.copytree("step-1", "step-2")
    Path("step-2/manifest.json").unlink()
    message = said(capsys, "--checkpoint", "step-2", *common)
    assert "step-2" in message
    message = said(capsys, "--checkpoint", "step-1", *common, "--parallelism.pipeline_parallel_degree", "2")
    assert "parallelism.pipeline_parallel_degree: a model that is not trained is placed without it" in message
