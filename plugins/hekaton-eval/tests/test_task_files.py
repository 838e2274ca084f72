"""Files of tasks and groups: what they may hold, and what is said of the others."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("lm_eval")
import hekaton
from hekaton.errors import ConfigError, DataError
from hekaton_eval import generation, tasks
from hekaton_eval.in_run import numbers_of
from hekaton_eval.tasks import load_tasks

MEMBER = """\
  - task: %s
    dataset_path: json
    dataset_kwargs: {cache_dir: cache, data_files: {test: %s.jsonl}}
    test_split: test
    output_type: multiple_choice
    doc_to_text: "{{question.strip()}}"
    doc_to_target: answer
    doc_to_choice: ["yes", "no"]
    metric_list: [{metric: acc}]
"""
GROUP = "group: mine\ntask:\n" + MEMBER % ("one", "one") + MEMBER % ("two", "two")
MEAN = "aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: %s}]\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with data: one question whose answer is 0, and three of which it is 1."""
    monkeypatch.chdir(tmp_path)
    answers = {"one": [0], "two": [1, 1, 1], "empty": [], "null": [0]}
    for name, right in answers.items():
        lines = [{"question": None if name == "null" else "a?", "answer": one} for one in right]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def none_of_the_harness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of files, which take seconds to read."""
    manager = tasks.TaskManager
    monkeypatch.setattr(
        tasks,
        "TaskManager",
        lambda include_path=None, **_: manager(include_path=include_path, include_defaults=False),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("by_size", "mean"), [("true", 1 / 4), ("false", 1 / 2)])
def test_a_group_may_describe_its_tasks(by_size, mean):
    """A model that always answers 0 is right in the first task and wrong in the second."""
    from lm_eval.api.model import LM
    from lm_eval.evaluator import evaluate

    class First(LM):
        def loglikelihood(self, requests):
            return [(-float(number % 2), False) for number in range(len(requests))]

        generate_until = loglikelihood_rolling = None

    Path("group.yaml").write_text(GROUP + MEAN % by_size)
    loaded = load_tasks(["group.yaml"])
    assert loaded["group_map"] == {"mine": ["mine::one", "mine::two"]}
    found = numbers_of(evaluate(lm=First(), task_dict=loaded, bootstrap_iters=0, log_samples=False))
    assert found == {"mine::one/acc": 1, "mine::two/acc": 0, "mine/acc": mean}


@pytest.mark.filterwarnings("ignore")
def test_a_group_may_name_tasks_that_are_known(none_of_the_harness):
    Path("group.yaml").write_text("group: mine\ntask: [thre]\n")
    with pytest.raises(ConfigError, match=r"group 'mine' in 'group\.yaml' names 'thre'") as e:
        load_tasks(["group.yaml"])
    assert "describe it in the group's file, or say --include_path FOLDER" in e.value.hint
    Path("more").mkdir()
    member = "\n".join(line.strip().removeprefix("- ") for line in (MEMBER % ("three", "two")).splitlines())
    Path("more/three.yaml").write_text(member)
    with pytest.raises(ConfigError) as e:
        load_tasks(["group.yaml"], include=["more"])
    assert "did you mean three?" in e.value.hint
    Path("group.yaml").write_text("group: mine\ntask: [three]\n")
    assert list(load_tasks(["group.yaml"], include=["more"])["tasks"]) == ["three"]
    Path("group.yaml").write_text(GROUP.replace('"{{question.strip()}}"', "!function os.system", 1))
    with pytest.raises(ConfigError, match=r"names the Python function 'os\.system'"):
        load_tasks(["group.yaml"])


@pytest.mark.filterwarnings("ignore")
def test_data_that_is_empty_or_lacks_something_is_told():
    Path("group.yaml").write_text(GROUP.replace("one.jsonl", "empty.jsonl"))
    with pytest.raises(DataError, match=r"data of task 'group\.yaml' has no question: a file of it is empty"):
        load_tasks(["group.yaml"])
    Path("group.yaml").write_text(GROUP.replace("test_split: test", "test_split: tset"))
    with pytest.raises(ConfigError, match="its data has no split or column 'tset'"):
        load_tasks(["group.yaml"])
    Path("group.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"'group\.yaml' cannot be loaded: .*got list"):
        load_tasks(["group.yaml"])


TEXT, TARGET, CHOICE = '"{{question.strip()}}"', "doc_to_target: answer", '["yes", "no"]'
TEMPLATES = {
    "a text": (TEXT, '"{{questoin}}"', "doc_to_text of task 'one' names 'questoin'", "did you mean 'question'?"),
    "a text of some documents": (
        TEXT, '"{% if answer > 7 %}{{questions}}{% endif %}"', "doc_to_text of task 'one' names 'questions'", "",
    ),
    "a target that is a text": (
        TARGET, "doc_to_target: anwser", "doc_to_target of task 'one' names 'anwser'",
        "did you mean 'answer'?; for the word itself write {{ 'anwser' }}",
    ),
    "choices": (CHOICE, "answr", "doc_to_choice of task 'one' names 'answr'", "did you mean 'answer'?"),
    "nothing like it": (
        TEXT, '"{{context}}"', "doc_to_text of task 'one' gives no text: UndefinedError: 'context' is undefined",
        "its data has the columns question, answer",
    ),
    "no template": (TEXT, '"{{question"', "doc_to_text of task 'one' gives no text: TemplateSyntaxError", "columns"),
    "no list of choices": (CHOICE, "yes or no", "doc_to_choice of task 'one' gives no text: ValueError", "columns"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", TEMPLATES)
def test_a_template_that_names_no_column_is_an_error_with_its_field(case):
    before, after, message, hint = TEMPLATES[case]
    with pytest.raises(ConfigError) as e:
        load_task(before, after)
    assert message in e.value.message
    assert hint in e.value.hint


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "text", ["{{ 'questoin' }}", "{{questions | default('') }}", "Yes or no, {{question}}"]
)
def test_a_template_may_ask_for_a_column(text):
    assert len(load_task(TEXT, f'"{text}"')) == 1


def load_task(before, after):
    member = "\n".join(line.strip().removeprefix("- ") for line in (MEMBER % ("one", "one")).splitlines())
    assert before in member
    Path("one.yaml").write_text(member.replace(before, after))
    return load_tasks(["one.yaml"])["tasks"]


@pytest.mark.filterwarnings("ignore")
def test_a_file_whose_data_is_on_the_hub_is_not_tried_for_minutes(monkeypatch):
    def unreachable(*_: object, **__: object) -> socket.socket:
        raise OSError("network is unreachable")

    monkeypatch.setattr(tasks.socket, "create_connection", unreachable)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    Path("mine.yaml").write_text(
        'task: mine\ndataset_path: nobody/nothing\ntest_split: test\ndoc_to_text: "a"\ndoc_to_target: "b"\n'
    )
    with pytest.raises(DataError, match="cannot be had") as e:
        load_tasks(["mine.yaml"])
    assert "offline" in str(e.value).lower()


@pytest.mark.filterwarnings("ignore")
def test_a_document_that_cannot_be_asked_is_an_error_before_the_first_step(tmp_path):
    lines = Path("one.jsonl").read_text() + Path("null.jsonl").read_text()
    Path("one.jsonl").write_text(lines)
    Path("group.yaml").write_text(GROUP)
    with pytest.raises(hekaton.HekatonError, match=r"doc_to_text of task 'mine::one' gives.*'None' has no"):
        hekaton.train(
            model={"name": "llama3", "flavor": "debugmodel", "tokenizer": "byte"},
            training={"dataset": "python_stdlib", "steps": 1, "seq_len": 64},
            evaluation={"tasks": [{"tasks": ["group.yaml"]}]},
        )
    assert not Path("outputs/metrics.jsonl").exists()


@pytest.mark.filterwarnings("ignore")
def test_examples_that_no_task_shows_are_refused(caplog):
    fixed = GROUP.replace("    metric_list", "    num_fewshot: 0\n    fewshot_split: test\n    metric_list")
    Path("group.yaml").write_text(fixed)
    with pytest.raises(ConfigError, match="num_fewshot = 2 has no effect: the tasks fix it at 0"):
        load_tasks(["group.yaml"], num_fewshot=2)
    assert len(load_tasks(["group.yaml"], num_fewshot=0)["tasks"]) == 2
    caplog.set_level("INFO", logger="hekaton")
    Path("group.yaml").write_text("".join(fixed.rsplit("    num_fewshot: 0\n", 1)))
    one, two = load_tasks(["group.yaml"], num_fewshot=2)["tasks"].values()
    assert (one.get_config("num_fewshot"), two.get_config("num_fewshot")) == (0, 2)
    assert "notice: mine::one fix num_fewshot at 0" in caplog.text


def test_tasks_of_pictures_and_of_programs_are_refused():
    for mark, message in (
        ("MULTIMODAL", "task 'mine' shows images or sounds"),
        ("UNSAFE_CODE", "task 'mine' runs the programs that the model writes"),
    ):
        with pytest.raises(ConfigError, match=message):
            tasks._check_asked("mine", SimpleNamespace(**{mark: True}))


GIVEN = {
    "foo": "'foo' is not of the form NAME=VALUE",
    "": "'' is not of the form NAME=VALUE",
    "top_k=": "'top_k=' is not of the form NAME=VALUE",
    "temperture=1": "'temperture' is not known",
    "top_k=1,top_k=2": "top_k is given twice",
    "max_gen_toks=1,max_new_tokens=2": "max_gen_toks is given twice",
}


@pytest.mark.parametrize("text", GIVEN)
def test_arguments_of_generation_that_are_none(text):
    with pytest.raises(ConfigError) as e:
        generation.given(text)
    assert GIVEN[text] in str(e.value)


@pytest.mark.filterwarnings("ignore")
def test_arguments_of_generation_without_effect_are_refused():
    Path("group.yaml").write_text(GROUP)
    with pytest.raises(ConfigError, match="--gen_kwargs has no effect: no task generates text"):
        load_tasks(["group.yaml"], generation={"max_gen_toks": 3})
    written = GROUP.replace("multiple_choice", "generate_until").replace(
        '    doc_to_choice: ["yes", "no"]\n', "    generation_kwargs: {do_sample: false, until: x}\n"
    )
    Path("group.yaml").write_text(written.replace("acc", "exact_match"))
    with pytest.raises(ConfigError, match=r"--gen_kwargs temperature=0\.7 has no effect: no task draws"):
        load_tasks(["group.yaml"], generation={"temperature": 0.7})
    asked = generation.given("temperature=0.7,do_sample=true,max_new_tokens=3")
    for task in load_tasks(["group.yaml"], generation=asked)["tasks"].values():
        wanted = generation.wanted(task.get_config("generation_kwargs"), most=9)
        assert (wanted.sampling.temperature, wanted.most, wanted.until) == (0.7, 3, ["x"])
    Path("group.yaml").write_text(written.replace("until: x", "untl: x").replace("acc", "exact_match"))
    with pytest.raises(ConfigError, match=r"generation_kwargs\.untl is not known here"):
        load_tasks(["group.yaml"])
    with pytest.raises(ConfigError, match="num_beams = 4: texts are not searched for with beams"):
        generation.wanted({"num_beams": 4}, most=9)
