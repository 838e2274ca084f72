"""What a run reads at its start or copies at its end is found missing or wrong by the check of a configuration."""

from __future__ import annotations

import os
import shutil

import pytest

from hekaton.config import load
from hekaton.errors import ConfigErrors
from hekaton.rules import check
from hekaton_hf.tokenizer import SHIPPED

FLAGS = ["--training.dataset", "text", "--model.tokenizer", "byte"]


def problems(flags, **options):
    try:
        check(load([], [*FLAGS, *flags]), world_size=1, device_type="cpu", **options)
    except ConfigErrors as e:
        return str(e)
    return ""


def test_no_path_is_a_violation_with_its_place():
    said = problems([])
    assert "dataset 'text' needs files to read\n  from: --training.dataset" in said
    assert 'dataset_path = "data/*.jsonl"' in said


def test_a_path_where_nothing_is_is_a_violation_where_the_run_starts(tmp_path):
    flags = ["--training.dataset_path", str(tmp_path / "no" / "*.jsonl")]
    assert "--training.dataset_path" in problems(flags)
    assert problems(flags, here=False) == ""


@pytest.mark.parametrize("enabled", [True, False])
def test_validation_is_checked_where_it_is_enabled(tmp_path, enabled):
    (tmp_path / "a.txt").write_text("text")
    flags = ["--training.dataset_path", str(tmp_path / "a.txt"), "--validation.dataset", "text"]
    flags += ["--validation.enable"] if enabled else []
    assert ("--validation.dataset" in problems(flags)) == enabled


JSONL = '{"text": "a"}\n'
BROKEN = {
    "a stream of nothing": ("stream", " , ", [], "dataset 'stream' needs files to read"),
    "a stream that is not there": ("stream", "none/*.jsonl", [], "no files match 'none/*.jsonl'"),
    "a folder as a stream": ("stream", ".", [], "'.' is a folder"),
    "a FIFO as a stream": ("stream", "fifo.jsonl", [], "cannot read 'fifo.jsonl': it is not a regular file"),
    "a device as a stream": ("stream", "zero.jsonl", [], "cannot read 'zero.jsonl': it is not a regular file"),
    "a store that nobody knows": ("stream", "nowhere://a.jsonl", [], "Protocol not known: nowhere"),
    "a format that streams do not have": ("stream", "http://127.0.0.1:1/a.txt", [], "not a format that streams have"),
    "fewer parts than rows": (
        "stream", "a.jsonl", ["--training.local_batch_size", "3"], "set stream_dataset.parts_per_file = 3",
    ),
    "a dataset without a name": ("hub_stream", "", [], "dataset 'hub_stream' needs the name of a dataset"),
    "a copy of C4 that is not there": ("c4", "none", [], "no files match 'none'"),
    "a copy of its other split": ("c4_validation", "none", [], "no files match 'none'"),
    "documents of C4 that are not there": ("c4_test", "", [], "there is no folder 'tests/assets/c4_test'"),
    "a template that is not there": (
        "chat", "a.jsonl", ["--chat_dataset.template", "none.jinja"], "cannot read 'none.jinja': No such file",
    ),
    "a template that is none": (
        "chat", "a.jsonl", ["--chat_dataset.template", "bad.jinja"], "the chat template in 'bad.jinja' is none",
    ),
    "a tokenizer without a template": ("chat", "a.jsonl", [], "needs a chat template, and the tokenizer has none"),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", BROKEN)
def test_a_dataset_that_a_run_could_not_open_is_a_violation(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(JSONL)
    (tmp_path / "bad.jinja").write_text("{% for %}")
    os.mkfifo("fifo.jsonl")
    os.symlink("/dev/zero", "zero.jsonl")
    dataset, path, flags, message = BROKEN[case]
    where = ["--training.dataset", dataset, *(["--training.dataset_path", path] if path else [])]
    said = problems([*where, *flags])
    assert message in said
    assert "from: --training.dataset" in said


@pytest.mark.parametrize(
    ("dataset", "path"),
    [("stream", "a.jsonl"), ("stream", "http://127.0.0.1:1/a.jsonl"), ("c4", "a.jsonl"), ("c4", "")],
)
def test_what_only_a_network_can_tell_is_left_to_the_run(tmp_path, monkeypatch, dataset, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(JSONL)
    flags = ["--training.dataset", dataset, "--training.local_batch_size", "1"]
    assert problems([*flags, *(["--training.dataset_path", path] if path else [])]) == ""


def test_the_rows_of_a_mixture_are_those_of_the_batch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text(JSONL)
    source = (
        '[[mixture.sources]]\ndataset = "stream"\ndataset_path = "a.jsonl"\nsettings = {parts_per_file = 2}\n'
    )
    (tmp_path / "run.toml").write_text(source)
    flags = ["--training.dataset", "mixture", "--training.local_batch_size"]
    check(load(["run.toml"], [*flags, "2", "--model.tokenizer", "byte"]), world_size=1, device_type="cpu")
    with pytest.raises(ConfigErrors, match=r"set stream_dataset\.parts_per_file = 3"):
        check(load(["run.toml"], [*flags, "3", "--model.tokenizer", "byte"]), world_size=1, device_type="cpu")


EXPORT = ["--checkpoint.enable", "--checkpoint.last_save_model_only", "--checkpoint.last_save_in_hf"]
LLAMA = ["--model.name", "llama3", "--model.flavor", "debugmodel"]
OTHER_TOKENIZER = """
from hekaton.contributions import Ref, Tokenizer, hookimpl
from hekaton.data.byte import ByteTokenizer

HEKATON_API = ">=1,<2"


def build(section, path):
    return ByteTokenizer()


@hookimpl
def hekaton_tokenizers():
    return [Tokenizer("other", build=Ref(f"{__name__}:build"), summary="does not read what it is given")]
"""


@pytest.fixture
def assets(tmp_path):
    return shutil.copytree(SHIPPED, tmp_path / "assets")


def problems_of_export(assets, *flags):
    of_assets = ["--model.tokenizer", "hf", "--model.hf_assets_path", str(assets)]
    words = ["--training.dataset", "python_stdlib", *LLAMA, *of_assets, *flags]
    try:
        check(load([], words), world_size=1, device_type="cpu")
    except ConfigErrors as e:
        return str(e)
    return ""


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("generation_config.json", "[]", "a JSON object was expected"),
        ("generation_config.json", '{"top_k": 1, "top_k": 2}', "it has the key 'top_k' twice"),
        ("config.json", "{", "cannot read"),
        (
            "special_tokens_map.json",
            '{"pad_token": "<nobody>"}',
            "does not know its own pad_token '<nobody>'",
        ),
    ],
)
def test_what_the_last_save_could_not_export_is_a_violation_at_the_start(assets, file, content, said):
    assert problems_of_export(assets, *EXPORT) == ""
    (assets / file).write_text(content)
    assert problems_of_export(assets) == ""  # nothing is exported
    found = problems_of_export(assets, *EXPORT)
    assert said in found
    assert "--model.hf_assets_path; --checkpoint.last_save_in_hf" in found


def test_a_tokenizer_beside_the_export_with_more_ids_than_the_model_is_a_violation(assets, tmp_path):
    plugin = tmp_path / "other_tokenizer.py"
    plugin.write_text(OTHER_TOKENIZER)
    other = ["--plugins.load", str(plugin), "--model.tokenizer", "other", *EXPORT]
    assert problems_of_export(assets, *other) == ""
    found = problems_of_export(assets, *other, "--model.overrides.vocab_size", "300")
    assert "has 2,048 ids, the model vocab_size = 300" in found
    missing = problems_of_export(tmp_path / "nothing", *other)
    assert f"there is no folder '{tmp_path / 'nothing'}'" in missing
