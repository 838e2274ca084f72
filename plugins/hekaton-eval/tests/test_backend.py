"""The backend of the harness against the harness's own ``hf`` backend, on every layout."""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
import hekaton
from hekaton.cli import main
from hekaton.random_state import generators_kept
from hekaton.testing import run_processes
from hekaton_eval.backend import HekatonLM
from hekaton_hf.tokenizer import SHIPPED

JUDGED = Path(__file__).with_name("judged.py")


@pytest.fixture(scope="module")
def judged() -> Any:
    import importlib.util

    spec = importlib.util.spec_from_file_location("judged", JUDGED)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(judged: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judged")
    judged.write_tasks(folder)
    return folder


@pytest.fixture(scope="module")
def ours(judged: Any, place: Path) -> Callable[[str], Any]:
    """The answers of a model from its checkpoint, on one process."""
    known: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name not in known:
            checkpoint = judged.save_model(place / name, name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                known[name] = judged.answers(HekatonLM(checkpoint=str(checkpoint), batch_size=4), place)
        return known[name]

    return of


@pytest.mark.parametrize(
    "name",
    ["llama3", *(pytest.param(one, marks=pytest.mark.slow) for one in ("qwen3", "deepseek_v3", "gpt_oss"))],
)
def test_the_answers_are_those_of_the_hf_backend_on_the_exported_model(name, judged, place, ours, capfd):
    from lm_eval.models.huggingface import HFLM

    mine = ours(name)
    exported = place / f"{name}-hf"
    command = ["convert", "to-hf", str(place / name), str(exported), "--hf_assets_path", str(SHIPPED)]
    assert main(command) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = judged.answers(
            HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=4), place
        )
        from_folder = judged.answers(HekatonLM(hf=str(exported), batch_size=2), place)
    judged.check_same(mine, theirs)
    judged.check_same(from_folder, theirs)
    greedy = [one[0][1] for sample in mine["answers"]["tiny_choice"] for one in sample]
    assert not all(greedy)
    assert len({text[0][0] for text in mine["answers"]["tiny_until"]}) > 1


@pytest.mark.slow
def test_answers_in_a_conversation_are_those_of_the_hf_backend(judged, place, ours, capfd):
    from lm_eval.models.huggingface import HFLM

    ours("llama3")
    exported = place / "chats-hf"
    command = ["convert", "to-hf", str(place / "llama3"), str(exported), "--hf_assets_path", str(SHIPPED)]
    assert main(command) == 0
    (exported / "chat_template.jinja").write_text(
        "{% for message in messages %}<|{{ message.role }}|>{{ message.content | trim }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    given = {"apply_chat_template": True, "system_instruction": "Be brief.", "fewshot_as_multiturn": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = HFLM(pretrained=str(exported), device="cpu", dtype="float32", batch_size=4)
        theirs = judged.answers(plain, place, **given)
        mine = judged.answers(HekatonLM(hf=str(exported), batch_size=4), place, **given)
    judged.check_same(mine, theirs)
    asked_plainly = ours("llama3")["answers"]
    assert mine["answers"]["tiny_choice"] != asked_plainly["tiny_choice"]


EXTERNAL = """
from dataclasses import dataclass

from hekaton.contributions import Model, Ref, hookimpl
from hekaton.init import Normal
from hekaton.parallel.plan import ParallelPlan
from hekaton.spec import TrainSpec
from torch import nn

HEKATON_API = ">=1,<2"


@hookimpl
def hekaton_models():
    return [Model("bigrams", spec=Ref("external:spec"), summary="the next token follows from one alone")]


@dataclass(frozen=True, kw_only=True)
class Config:
    vocab_size: int = 264
    dim: int = 32


class Bigrams(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)

    def forward(self, tokens, positions=None, documents=None):
        return self.output(self.embedding(tokens))


spec = TrainSpec(
    name="bigrams", model=Bigrams, flavors={"small": Config()},
    plan=lambda config: ParallelPlan(block="embedding"), init=lambda config: {"**.weight": Normal(0.5)},
)
"""


def test_a_model_of_a_plugin_is_judged(judged, place, tmp_path, monkeypatch, capfd):
    file = tmp_path / "external.py"
    file.write_text(EXTERNAL)
    run = hekaton.train(
        plugins={"load": [str(file)]},
        model={"name": "bigrams", "flavor": "small", "tokenizer": "byte"},
        training={"dataset": "python_stdlib", "seq_len": 2048, "steps": 1, "local_batch_size": 1},
        checkpoint={"enable": True},
        job={"dump_folder": str(tmp_path / "run")},
    )
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip for a list
    command = [
        "eval",
        "--checkpoint",
        str(run.folder),
        "--tasks",
        str(place / "choice.yaml"),
        "--log_samples",
    ]
    with warnings.catch_warnings(), generators_kept():
        warnings.simplefilter("ignore")
        monkeypatch.chdir(tmp_path)  # in no repository of git, of which git would complain
        assert main([*command, "--out", str(tmp_path / "out"), "--plugins.load", str(file)]) == 0
    assert "git" not in capfd.readouterr().err
    weights = run.model.state_dict()
    logs = (weights["embedding.weight"] @ weights["output.weight"].T).double().log_softmax(-1)
    (samples,) = (tmp_path / "out" / "hekaton").glob("samples_tiny_choice_*.jsonl")
    for line in samples.read_text().splitlines():
        sample = json.loads(line)
        for choice, ((answer, _),) in zip(sample["doc"]["choices"], sample["resps"], strict=True):
            question = sample["doc"]["question"]
            scored = question[len(question.rstrip()) :] + choice  # the harness moves spaces to the answer
            pairs = list(itertools.pairwise([256, *f"{question}{choice}".encode()]))[-len(scored) :]
            assert float(answer) == pytest.approx(sum(logs[pair].item() for pair in pairs), abs=1e-4)


@pytest.mark.slow
def test_the_answers_are_the_same_on_every_layout(judged, place, ours):
    single = {name: ours(name) for name in dict.fromkeys(name for name, _ in judged.LAYOUTS)}
    run_processes(JUDGED, "on_layouts", processes=2, timeout=110, folder=str(place))
    for number, (name, degrees) in enumerate(judged.LAYOUTS):
        for rank in range(2):
            found = json.loads((place / f"layout-{number}-{rank}.json").read_text())
            judged.check_same(found, single[name])
        assert degrees


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_results(judged, place, ours, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # asks pip for a list
    expected = ours("llama3")["metrics"]
    tasks = ",".join(str(place / name) for name in judged.TASKS)
    command = ["eval", "--checkpoint", str(place / "llama3"), "--tasks", tasks, "--out", str(tmp_path)]
    with warnings.catch_warnings(), generators_kept():
        warnings.simplefilter("ignore")
        assert main([*command, "--batch_size", "5", "--log_samples"]) == 0
    table = capsys.readouterr().out
    assert "|tiny_choice |" in table
    assert "|bits_per_byte" in table
    (file,) = (tmp_path / "hekaton").glob("results_*.json")
    results = json.loads(file.read_text())
    assert results["config"]["model"] == "hekaton"
    assert results["config"]["model_source"] == str(place / "llama3")
    assert results["results"]["tiny_rolling"]["bits_per_byte,none"] == pytest.approx(
        expected["tiny_rolling/bits_per_byte"], rel=1e-6
    )
    assert results["n-samples"]["tiny_choice"] == {"original": 6, "effective": 6}
    (samples,) = (tmp_path / "hekaton").glob("samples_tiny_until_*.jsonl")
    assert len(samples.read_text().splitlines()) == 5


def test_the_harness_finds_the_backend():
    from lm_eval.api.model import LM
    from lm_eval.api.registry import Registry, get_model

    assert get_model("hekaton") is HekatonLM
    (entry,) = importlib.metadata.entry_points(group="lm_eval.models", name="hekaton")
    assert entry.load() is HekatonLM
    # The harness keeps the entry until the model is asked for. Its class then takes the entry's place by this.
    assert entry.value == f"{HekatonLM.__module__}:{HekatonLM.__name__}"
    waiting = Registry("model", base_cls=LM)
    waiting.register("hekaton", target=entry.value)
    assert waiting.get("hekaton") is HekatonLM
