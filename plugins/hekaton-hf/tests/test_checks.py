"""What a run reads at its start or copies at its end is found missing or wrong by the check of a configuration."""

from __future__ import annotations

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
