"""What an export says beside the weights: of the run, the tokenizer and the source, and read by transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from hekaton.checkpoint.disk.manifest import Manifest
from hekaton.cli import main
from hekaton_llama3.model import Llama3Config
from hekaton_llama3.spec import flavors

META_ROWS = 128_256  # the size of Llama 3's vocabulary
SMALL = {"dim": 8, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "hidden_dim": 8}
TINY = Llama3Config(**SMALL, vocab_size=300)
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

Train = Callable[..., Path]


@pytest.fixture(autouse=True)
def _flavors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(flavors, "tiny", TINY)
    monkeypatch.setitem(flavors, "tiny_tied", replace(TINY, tie_embeddings=True))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """``train(*flags)`` trains one step in the folder "run", and returns what it exports."""

    def run(*flags: str, folder: str = "run", flavor: str = "tiny", seq_len: int = 16) -> Path:
        last = ["--checkpoint.enable", "--checkpoint.last_save_model_only", "--checkpoint.last_save_in_hf"]
        assert main([
            "train", "--model.flavor", flavor, "--training.steps", "1", "--training.seq_len", str(seq_len),
            "--training.local_batch_size", "1", "--training.mixed_precision_param", "float32",
            "--activation_checkpoint.mode", "none", "--lr_scheduler.warmup_steps", "0",
            "--job.dump_folder", folder, *last, *flags,
        ]) == 0  # fmt: skip
        (exported,) = (tmp_path / folder / "checkpoint").glob("step-*-hf")
        return exported

    return run


def tokenizer_at(folder: Path, *, size: int = 300, **marks: Any) -> Path:
    """A tokenizer of words, of which ``marks`` names some: ``eos_token="w5"``."""
    folder.mkdir()
    words = {f"w{i}": i for i in range(size)}
    tokenizers.Tokenizer(WordLevel(words, unk_token="w0")).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "w0", **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def source(folder: Path, *, generation: dict[str, Any] | None = None, **changes: Any) -> LlamaForCausalLM:
    """A model that transformers saved."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, intermediate_size=8,
        vocab_size=300, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 5e5}, **changes,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig.from_model_config(config)
    model.generation_config.update(**generation or {})
    model.save_pretrained(folder)
    return model


def said(folder: Path) -> dict[str, Any]:
    """Positions and special tokens as transformers reads them, which agree in both files."""
    config, generation = AutoConfig.from_pretrained(folder), GenerationConfig.from_pretrained(folder)
    ids = {name: getattr(config, name) for name in IDS}
    assert ids == {name: getattr(generation, name) for name in IDS}
    assert type(AutoModelForCausalLM.from_pretrained(folder)) is LlamaForCausalLM
    return ids | {"positions": config.max_position_embeddings}


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_run_says_its_own_length_and_its_own_tokenizer(train: Train) -> None:
    exported = train("--model.tokenizer", "byte", seq_len=100)
    assert said(exported) == {
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": None,
        "positions": 100,
    }


def test_a_vocabulary_of_metas_size_makes_no_meta_tokenizer(train: Train, tmp_path: Path) -> None:
    assets = tokenizer_at(tmp_path / "assets", bos_token="w3", eos_token="w5", pad_token="w7")
    flags = ["--model.overrides", json.dumps({"vocab_size": META_ROWS}), "--model.hf_assets_path", "assets"]
    exported = train(*flags)
    ids = {"bos_token_id": 3, "eos_token_id": 5, "pad_token_id": 7}
    assert said(exported) == ids | {"positions": 16}
    assert AutoTokenizer.from_pretrained(exported).eos_token_id == 5

    # Without the tokenizer's files, the checkpoint still knows which one it was trained with.
    assert main(["convert", "to-hf", "run/checkpoint/step-1", "bare"]) == 0
    assert said(tmp_path / "bare") == ids | {"pad_token_id": None, "positions": 16}
    assert main(["convert", "to-hf", "run/checkpoint/step-1", "full", "--hf_assets_path", str(assets)]) == 0
    assert said(tmp_path / "full") == ids | {"positions": 16}


def test_a_tokenizer_wins_over_files_beside_it_that_contradict_it(train: Train, tmp_path: Path) -> None:
    assets = tokenizer_at(tmp_path / "assets", bos_token="w3", eos_token="w5")
    content = {"eos_token_id": [8, 9], "bos_token_id": 1, "temperature": 0.5, "do_sample": True}
    (assets / "generation_config.json").write_text(json.dumps(content))
    exported = train("--model.hf_assets_path", "assets")
    assert said(exported)["eos_token_id"] == 5
    assert GenerationConfig.from_pretrained(exported).temperature == 0.5

    # Further ends of a text beside the tokenizer's own are no contradiction.
    edit(assets / "generation_config.json", eos_token_id=[8, 5], bos_token_id=3)
    assert said(train("--model.hf_assets_path", "assets", folder="more"))["eos_token_id"] == [8, 5]


def test_a_tokenizer_that_is_not_the_trained_one_gives_a_notice(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer_at(tmp_path / "assets", bos_token="w3", eos_token="w5")
    train("--model.hf_assets_path", "assets")
    assert main(["convert", "to-hf", "run/checkpoint/step-1", "same", "--hf_assets_path", "assets"]) == 0
    assert "it is another one" not in capsys.readouterr().err
    tokenizer_at(tmp_path / "other", bos_token="w3", eos_token="w6")
    assert main(["convert", "to-hf", "run/checkpoint/step-1", "out", "--hf_assets_path", "other"]) == 0
    assert (
        "the tokenizer in 'other' ends texts with id 6, the model was trained with 5"
        in capsys.readouterr().err
    )
    assert said(tmp_path / "out")["eos_token_id"] == 6


def test_what_the_source_says_goes_through_a_conversion(tmp_path: Path) -> None:
    source(
        tmp_path / "hf", max_position_embeddings=2048, bos_token_id=11, eos_token_id=[12, 13], pad_token_id=14,
        generation={"do_sample": True, "top_p": 0.75},
    )  # fmt: skip
    before = said(tmp_path / "hf")
    assert before["positions"] == 2048
    assert main(["convert", "from-hf", "hf", "step", "--model_flavor", "tiny"]) == 0
    assert main(["convert", "to-hf", "step", "out"]) == 0
    assert said(tmp_path / "out") == before
    assert GenerationConfig.from_pretrained(tmp_path / "out").top_p == 0.75


def test_what_the_source_leaves_out_is_what_transformers_takes(tmp_path: Path) -> None:
    source(tmp_path / "hf")
    file = tmp_path / "hf/config.json"
    content = json.loads(file.read_text())
    for key in (*IDS, "max_position_embeddings"):
        content.pop(key, None)
    file.write_text(json.dumps(content))
    (tmp_path / "hf/generation_config.json").unlink()
    theirs = AutoConfig.from_pretrained(tmp_path / "hf")
    assert main(["convert", "from-hf", "hf", "step", "--model_flavor", "tiny"]) == 0
    assert main(["convert", "to-hf", "step", "out"]) == 0
    ours = AutoConfig.from_pretrained(tmp_path / "out")
    for name in (*IDS, "max_position_embeddings"):
        assert getattr(ours, name) == getattr(theirs, name), name


@pytest.mark.parametrize("way", ["hf", "converted", "run"])
@pytest.mark.parametrize(("made_for", "trained_at", "positions"), [(2048, 16, 2048), (8, 16, 16)])
def test_a_run_that_starts_from_a_source_keeps_what_it_says(
    way: str, made_for: int, trained_at: int, positions: int, train: Train, tmp_path: Path
) -> None:
    """Positions: the longer ones. Tokens: those of the run's tokenizer, with the further ends of the source."""
    source(
        tmp_path / "hf", max_position_embeddings=made_for, bos_token_id=256, eos_token_id=[257, 13], pad_token_id=9
    )  # fmt: skip
    in_hf = ["--checkpoint.initial_load_path", "hf", "--checkpoint.initial_load_in_hf"]
    start = {
        "hf": in_hf,
        "converted": ["--checkpoint.initial_load_path", "step"],
        "run": ["--checkpoint.initial_load_path", "first/checkpoint"],
    }[way]
    if way == "converted":
        assert main(["convert", "from-hf", "hf", "step", "--model_flavor", "tiny"]) == 0
    if way == "run":
        train(*in_hf, "--model.tokenizer", "byte", folder="first")
    flags = ["--model.tokenizer", "byte", "--training.steps", "2", "--checkpoint.interval", "1"]
    exported = train(*start, *flags, seq_len=trained_at)
    ids = {"bos_token_id": 256, "eos_token_id": [257, 13], "pad_token_id": 9}
    assert said(exported) == ids | {"positions": positions}
    # So does one that resumes.
    shutil.rmtree(tmp_path / "hf")
    assert train(*flags, "--checkpoint.load_step", "1", seq_len=trained_at) == exported
    assert (tmp_path / "run/checkpoint/superseded/step-2-hf").exists()
    assert said(exported) == ids | {"positions": positions}


def test_a_tokenizer_with_ids_past_the_embedding_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source(tmp_path / "hf")
    assert main(["convert", "from-hf", "hf", "step", "--model_flavor", "tiny"]) == 0
    assets = tokenizer_at(tmp_path / "assets", size=301, eos_token="w300")
    assert main(["convert", "to-hf", "step", "out", "--hf_assets_path", "assets"]) == 2
    assert (
        f"the tokenizer in '{assets.name}' has 301 ids, the model vocab_size = 300" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


def test_facts_that_a_manifest_garbles_say_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source(tmp_path / "hf")
    assert main(["convert", "from-hf", "hf", "step", "--model_flavor", "tiny"]) == 0
    garbled = {
        "max_position_embeddings": -3, "bos_token_id": "x", "eos_token_id": [True, 1e9, 10**12, {}, 4], "pad_token_id": {},
        "generation": {"top_k": [1], "y": "z" * 10_000, "eos_token_id": None},
    }  # fmt: skip
    file = tmp_path / "step/manifest.json"
    manifest = Manifest.from_json(file.read_text())
    for facts in (garbled, {}):
        file.write_text(replace(manifest, describe={**manifest.describe, "facts": facts}).to_json())
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert main(["convert", "to-hf", "step", "out"]) == 0
        ids = dict.fromkeys(IDS) | ({"eos_token_id": 4} if facts is garbled else {})
        assert said(tmp_path / "out") == ids | {"positions": 8192}, "as written where nobody says"
    for facts in ("x", None, [1]):
        file.write_text(replace(manifest, describe={**manifest.describe, "facts": facts}).to_json())
        assert main(["convert", "to-hf", "step", "refused"]) == 2
        assert f"its describe.facts is of type {type(facts).__name__} and not dict" in capsys.readouterr().err


@torch.no_grad()
def test_a_configuration_of_little_more_than_sizes_gives_the_logits_of_transformers(tmp_path: Path) -> None:
    """No rope_theta, no rms_norm_eps, no architecture, and an index that lists the tied output."""
    reference = source(tmp_path / "hf", tie_word_embeddings=True)
    weights = load_file(tmp_path / "hf/model.safetensors")
    assert "lm_head.weight" not in weights
    (tmp_path / "hf/model.safetensors").unlink()
    save_file(weights, tmp_path / "hf/all.safetensors", {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys([*weights, "lm_head.weight"], "all.safetensors")}
    (tmp_path / "hf/model.safetensors.index.json").write_text(json.dumps(index))
    sizes = {
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 8, "vocab_size": 300, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "hf/config.json").write_text(json.dumps(sizes))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokens = torch.arange(40)[None]
    assert not torch.equal(theirs(tokens).logits, reference(tokens).logits), "eps and theta are others"

    flavors["read"] = replace(TINY, tie_embeddings=True, rope_theta=10_000.0, norm_eps=1e-6)
    try:
        assert main(["convert", "from-hf", "hf", "step"]) == 0
        assert main(["convert", "to-hf", "step", "out"]) == 0
    finally:
        del flavors["read"]
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(ours(tokens).logits, theirs(tokens).logits)
