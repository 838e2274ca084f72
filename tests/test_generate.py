"""``hekaton generate``: every model against transformers' ``generate``, what it reads, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from hekaton.building import build_meta, materialize
from hekaton.checkpoint import CheckpointManager
from hekaton.cli import main
from hekaton.cli.generate import TextStream, in_order
from hekaton.config import as_dict, load
from hekaton.data.byte import ByteTokenizer
from hekaton.generation import Token, generate
from hekaton.init import initialize
from hekaton.mesh import ParallelDims
from hekaton.sampling import Sampling
from hekaton.streams import show_any_text

ASSETS = Path(__file__).resolve().parents[1] / "plugins/hekaton-hf/src/hekaton_hf/assets/python_stdlib"
VOCAB, NEW = 2048, 64

COMMON = {
    "vocab_size": VOCAB, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "tie_word_embeddings": False,
}  # fmt: skip
EXPERTS = {"moe_intermediate_size": 24, "num_experts_per_tok": 3, "norm_topk_prob": True}
YARN = {
    "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 32,
    "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0, "rope_theta": 10_000.0,
}  # fmt: skip
# Scaled down from the published models, with every mechanism, and texts longer than each of them reaches.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {
        "rope_parameters": {
            "rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32, "rope_theta": 10_000.0,
        },
    },
    "qwen3": {"head_dim": 16},
    "qwen3_moe": {**EXPERTS, "head_dim": 16, "num_experts": 8, "decoder_sparse_step": 1, "mlp_only_layers": []},
    "deepseek_v3": {
        **EXPERTS, "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_routed_experts": 8, "n_group": 4,
        "topk_group": 2, "n_shared_experts": 1, "q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8, "v_head_dim": 10, "rope_parameters": YARN,
    },
    "llama4_text": {
        "num_hidden_layers": 4, "head_dim": 16, "intermediate_size": 24, "intermediate_size_mlp": 96,
        "num_local_experts": 8, "interleave_moe_layer_step": 2, "attention_chunk_size": 12, "floor_scale": 5,
        "attn_scale": 0.5,
    },
    "gpt_oss": {
        "head_dim": 16, "intermediate_size": 48, "sliding_window": 12, "num_local_experts": 8,
        "num_experts_per_tok": 3, "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "beta_fast": 32.0,
            "beta_slow": 1.0, "truncate": False, "rope_theta": 10_000.0,
        },
    },
}  # fmt: skip
PROMPTS = ["def main(arguments):\n    return", "import"]


def generated(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["generate", *arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def prompt_arguments(*prompts: str) -> list[str]:
    return [word for prompt in prompts for word in ("--prompt", prompt)]


def published(kind: str, folder: Path) -> torch.nn.Module:
    """A model of transformers, saved with the tokenizer; no part of it can be left out without a difference."""
    config = AutoConfig.for_model(kind, **{**COMMON, **MODELS[kind]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "norm" in name:
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif "inv_freq" not in name:
                tensor.normal_(0, 0.2, generator=generator)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(ASSETS / name, folder / name)
    return model


@pytest.mark.parametrize("kind", MODELS)
def test_greedy_texts_are_those_of_transformers(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hekaton_hf.tokenizer import build

    theirs = published(kind, tmp_path)
    tokenizer = build(None, str(tmp_path))
    greedy = ["--hf", str(tmp_path), "--temperature", "0", "--max_new_tokens", str(NEW)]
    lines = generated(capsys, *greedy, *prompt_arguments(*PROMPTS))
    expected = []
    for prompt in PROMPTS:
        assert tokenizer.bos_id is not None
        ids = [tokenizer.bos_id, *tokenizer.encode_batch([prompt])[0].tolist()]
        whole = theirs.generate(
            torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, pad_token_id=0,
            attention_mask=torch.ones(1, len(ids)),
        )  # fmt: skip
        expected.append(whole[0, len(ids) :].tolist())
    assert [line["ids"] for line in lines] == expected
    assert [line["end"] for line in lines] == ["length"] * 2
    assert lines[0]["text"] == tokenizer.decode(expected[0])

    # The ends of the model's own files, which come before the tokenizer's.
    ends = [expected[0][20], expected[1][9]]
    config = tmp_path / "generation_config.json"
    config.write_text(json.dumps({"eos_token_id": ends}))
    for line, whole in zip(generated(capsys, *greedy, *prompt_arguments(*PROMPTS)), expected, strict=True):
        first = min(whole.index(end) for end in ends if end in whole)
        assert line["ids"] == whole[: first + 1]
        assert (line["end"], line["text"]) == ("token", tokenizer.decode(whole[:first]))


SIZES = {"dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "hidden_dim": 48, "vocab_size": 258}
TINY = [
    "--model.name=llama3", "--model.tokenizer=byte", "--training.seq_len=96", "--checkpoint.enable=true",
    *(f"--model.overrides.{name}={size}" for name, size in SIZES.items()),
]  # fmt: skip


def save_steps(folder: Path, *flags: str, steps: tuple[int, ...] = (1, 2)) -> torch.nn.Module:
    """Steps as a run saves them, each with weights of its own.

    :returns: the model of the last.
    """
    loaded = load([], [*TINY, *flags])
    describe = {"model": "llama3", "flavor": "debugmodel", "layout": {}, "config": as_dict(loaded.config),
                "identity": {"model.tokenizer.content": "byte"}}  # fmt: skip
    manager = CheckpointManager(folder / "checkpoint", describe=describe)
    for step in steps:
        meta = build_meta(loaded.config, loaded.plugins, ParallelDims())
        materialize(meta.model, torch.device("cpu"))
        initialize(meta.model, meta.initializers, seed=step)
        torch.manual_seed(step)
        for parameter in meta.model.parameters():  # those of adapters begin at 0
            torch.nn.init.normal_(parameter, std=0.3)
        manager.save(step, {"model": dict(meta.model.state_dict())}, {})
    return meta.model


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_steps(folder)
    return folder


SHORT = ["--prompt", "abc", "--max_new_tokens", "8", "--temperature", "0"]


def test_the_newest_good_step_of_a_run_is_read(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    one, two = (
        generated(capsys, "--checkpoint", str(run_folder / f"checkpoint/step-{step}"), *SHORT)
        for step in (1, 2)
    )
    assert one != two
    assert generated(capsys, "--checkpoint", str(run_folder), *SHORT) == two
    assert generated(capsys, "--checkpoint", str(run_folder / "checkpoint"), *SHORT) == two
    damaged = shutil.copytree(run_folder, tmp_path / "damaged")
    (file,) = (damaged / "checkpoint/step-2").glob("*.distcp")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert generated(capsys, "--checkpoint", str(damaged), *SHORT) == one
    assert "skipping" in caplog.text
    assert "step-2 is damaged" in caplog.text
    file.unlink()
    assert generated(capsys, "--checkpoint", str(damaged), *SHORT) == one


def test_texts_are_printed_in_order_with_their_prompts(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ["--checkpoint", str(run_folder), "--seed", "3", "--max_new_tokens", "20"]
    prompts = ["first", "the second", "third"]
    lines = generated(capsys, *source, *prompt_arguments(*prompts))
    (tmp_path / "prompts").write_text("the second\n\nthird\n")
    words = ["generate", *source, "--prompt", "first", "--prompt_file", str(tmp_path / "prompts")]
    assert main([*words, "--batch_size", "2"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "".join(
        f"== prompt {number} of 3\n{line['prompt']}{line['text']}\n" for number, line in enumerate(lines, 1)
    )
    count = sum(len(line["ids"]) for line in lines)
    assert "step-2: llama3, " in shown.err
    assert f"{count} tokens in " in shown.err
    monkeypatch.setattr("sys.stdin", io.StringIO("third\n"))
    assert generated(capsys, *source, "--prompt_file", "-") == lines[2:]


def test_texts_end_at_the_length_that_the_model_was_trained_for(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ["--checkpoint", str(run_folder), "--temperature", "0"]
    assert main(["generate", *source, "--prompt", "x" * 90, "--json"]) == 0  # and the mark of a beginning
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)["ids"]) == 5
    assert "notice: texts end at 96 tokens, for which the model was trained" in shown.err
    assert main(["generate", *source, "--prompt", "x" * 95]) == 2
    assert "prompt 1 has 96 tokens, and the model 96 positions: none is left" in capsys.readouterr().err


def test_a_model_with_adapters_is_run_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_steps(tmp_path, "--model.converters=lora", "--lora.rank=2", steps=(1,))
    assert any("lora" in name for name, _ in model.named_parameters())
    (expected,) = generate(
        model.eval(), [[256, *b"abc"]], max_new_tokens=8, sampling=Sampling(temperature=0), ends=[257]
    )
    assert generated(capsys, "--checkpoint", str(tmp_path), *SHORT)[0]["ids"] == expected


def test_ids_that_the_tokenizer_lacks_are_never_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_steps(tmp_path, "--model.overrides.vocab_size=4096", steps=(1,))
    drawn = [
        "--prompt",
        "a",
        "--prompt",
        "b",
        "--prompt",
        "c",
        "--max_new_tokens",
        "30",
        "--temperature",
        "9",
    ]
    lines = generated(capsys, "--checkpoint", str(tmp_path), *drawn)
    ids = [token for line in lines for token in line["ids"]]
    assert len(ids) > 10
    assert max(ids) < ByteTokenizer.vocab_size
    # The most likely of the ids that there are, by one pass over the whole text for each token.
    text = [256, *b"abc"]
    for _ in range(8):
        inputs = torch.tensor([text])
        logits = model.eval()(inputs, torch.arange(len(text))[None], torch.ones_like(inputs))
        text.append(int(logits[0, -1, :258].argmax()))
    (line,) = generated(capsys, "--checkpoint", str(tmp_path), *SHORT)
    assert line["ids"] == text[4:][: len(line["ids"])]
    main(["generate", "--checkpoint", str(tmp_path), *SHORT, "--top_k", "5"])
    assert "notice: --top_k and --top_p have no effect: --temperature 0" in capsys.readouterr().err


REFUSED = {
    "no prompt": ("", "there is no prompt"),
    "no source": ("--prompt x", "one of the arguments --checkpoint --hf is required"),
    "two sources": ("--checkpoint RUN --hf RUN --prompt x", "not allowed with argument --checkpoint"),
    "a misspelt option": ("--checkpoint RUN --promt x", "unknown option --promt\n  did you mean '--prompt'?"),
    "a prompt without quotes": ("--checkpoint RUN --prompt x y", "unexpected 'y'\n  --prompt takes one text"),
    "a number that is none": ("--checkpoint RUN --prompt x --top_k few", "invalid int value: 'few'"),
    "no tokens": ("--checkpoint RUN --prompt x --max_new_tokens 0", "--max_new_tokens 0: a number from 1 to 1,048,576"),
    "tokens without an end": ("--checkpoint none --prompt x --max_new_tokens 1048577", "a number from 1 to 1,048,576"),
    "rows without an end": ("--checkpoint none --prompt x --batch_size 65537", "a number from 1 to 65,536 was"),
    "no likely token": ("--checkpoint none --prompt x --top_k 0", "--top_k 0: a number from 1 to 2,147,483,648"),
    "a seed below 0": ("--checkpoint none --prompt x --seed -1", "--seed -1: a number from 0 to"),
    "a nucleus of more than all": ("--checkpoint RUN --prompt x --top_p 2", "top_p = 2 must be above 0"),
    "another dtype": ("--checkpoint RUN --prompt x --dtype int8", "invalid choice: 'int8'"),
    "no folder": ("--checkpoint RUN/none --prompt x", "there is no 'RUN/none'"),
    "a folder without steps": ("--checkpoint . --prompt x", "no checkpoint in '.'"),
    "a URL of no file system": ("--checkpoint nosuch://a/b --prompt x", "fsspec knows no file system 'nosuch'"),
    "a folder of Hugging Face as a checkpoint": ("--checkpoint HF --prompt x", "HF' is a folder of another format"),
    "a flavor of a folder": ("--hf HF --prompt x --model_flavor a", "--model_flavor is of checkpoints"),
    "a step as a folder of Hugging Face": ("--hf RUN --prompt x", "config.json"),
    "another model": ("--checkpoint RUN --prompt x --model_name qwen3", "is of name 'llama3', not 'qwen3'"),
    "a tokenizer that is not the run's": (
        f"--checkpoint RUN --prompt x --hf_assets_path {ASSETS}",
        f"tokenizer 'byte' reads no files, and is given '{ASSETS}'\n  the run was trained with the tokenizer 'byte': "
        "give the folder of that one, or leave out --hf_assets_path\n",
    ),
    "an option twice": ("--checkpoint RUN --prompt x --seed 1 --seed=2", "--seed is given more than once"),
    "a file of prompts that is not there": ("--checkpoint RUN --prompt_file RUN/none", "cannot read the prompts"),
    "prompts without an end": ("--checkpoint RUN --prompt_file /dev/zero", "have more than 67,108,864 characters"),
    "another part of a checkpoint": ("--checkpoint RUN --prompt x --leave_out vision", "--leave_out is of folders"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_cannot_be_met_is_one_error(
    case: str,
    run_folder: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("HF").mkdir()
    Path("HF/config.json").touch()
    words, message = REFUSED[case]
    arguments = words.replace("RUN", str(run_folder)).split() or ["--checkpoint", str(run_folder)]
    assert main(["generate", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message.replace("RUN", str(run_folder)) in err


def test_a_prompt_that_is_no_unicode_is_an_error(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As bytes of a command line that are no UTF-8 come to Python."""
    arguments = ["--checkpoint", str(run_folder), *prompt_arguments("good", "b\udcffd")]
    assert main(["generate", *arguments]) == 2
    assert "prompt 2: character 2 is not valid Unicode" in capsys.readouterr().err


def test_what_a_terminal_has_no_characters_for_is_escaped() -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    show_any_text(stream)
    print("añ\udcff", file=stream, flush=True)
    assert written.getvalue() == rb"a\xf1\udcff" + b"\n"


def test_text_is_shown_once_its_characters_are_whole() -> None:
    text = "añ😀b"
    stream = TextStream(ByteTokenizer(), [256, *b"so "])
    assert [stream.add(byte) for byte in text.encode()] == ["a", "", "ñ", "", "", "", "😀", "b"]
    assert stream.add(0xC3) == ""
    assert stream.rest() == "\N{REPLACEMENT CHARACTER}"
    assert stream.rest() == ""


def test_tokens_of_a_prompt_come_after_those_of_the_one_before() -> None:
    order = [(1, 5, False), (0, 6, False), (1, 7, True), (0, 8, True), (2, 9, True)]
    tokens = [Token(*one) for one in order]
    assert [(token.prompt, token.id) for token in in_order(tokens)] == [
        (0, 6),
        (0, 8),
        (1, 5),
        (1, 7),
        (2, 9),
    ]
