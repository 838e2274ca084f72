"""Our own distributions keep the promises of their kinds, by the fixture that others use."""

from __future__ import annotations

import atexit
import gzip
import json
import re
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hekaton.cli import main
from hekaton.plugins import Plugins
from hekaton.testing.conformance import PROMISES, cases_of
from hekaton.weights import whole
from hekaton.weights.format import Weights
from hekaton_hf.tokenizer import SHIPPED
from hekaton_lora.peft import PeftFormat

OURS = sorted(
    {info.distribution for info in Plugins.discover().infos if info.distribution.startswith("hekaton")}
)
WIDTHS = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 264}
HEADS = {"n_kv_heads": 2, "head_dim": 8}
EXPERTS = {"n_experts": 4, "top_k": 2, "hidden_dim": 16}
LATENT = {"kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8, "inter_dim": 48}
DEEPSEEK_V3 = WIDTHS | LATENT | {"moe": EXPERTS | {"n_groups": 2, "n_limited_groups": 1}}
FLUX = {
    "dim": 32,
    "n_heads": 2,
    "n_double_blocks": 1,
    "n_single_blocks": 1,
    "axes": [4, 6, 6],
    "guidance": True,
}
SIZES = {
    "hekaton-deepseek-v3": DEEPSEEK_V3,
    "hekaton-flux": FLUX,
    "hekaton-gpt-oss": WIDTHS | HEADS | {"window": 8, "moe": EXPERTS},
    "hekaton-llama3": WIDTHS | {"n_kv_heads": 2, "hidden_dim": 48},
    # The fourth layer has no rotary positions.
    "hekaton-llama4": WIDTHS
    | HEADS
    | {
        "n_layers": 4,
        "hidden_dim": 48,
        "attention_chunk_size": 8,
        "floor_scale": 8,
        "moe": EXPERTS | {"top_k": 1},
    },
    "hekaton-qwen3": WIDTHS | HEADS | {"hidden_dim": 48},
}
"""Distribution -> the sizes of its model."""
MORE = {
    "hekaton-flux": [
        "model_zoo/flux/train_configs/debug_model.toml", "--validation.enable", "false", "--flow_matching.sample_freq", "0",
        "--metrics.enable_tensorboard", "false", "--lr_scheduler.warmup_steps", "1",
    ],
    # The scales of the other recipe are those of a rank's part of the batch.
    "hekaton-float8": ["--quantize.linear.float8.recipe_name", "rowwise"],
}  # fmt: skip
"""Distribution -> other arguments of the run that it is tried in."""
WITH_EXPERTS = [
    "--model.name", "qwen3", "--model.flavor", "debugmodel_moe", "--model.tokenizer", "byte", "--training.dataset",
    "python_stdlib", "--model.overrides",
    json.dumps(WIDTHS | HEADS | {"dim": 64, "hidden_dim": 128, "moe": EXPERTS | {"hidden_dim": 64}}),
]  # fmt: skip
WITH_A_SECOND_TOKEN = [
    "--model.name", "deepseek_v3", "--model.flavor", "debugmodel", "--model.tokenizer", "byte", "--training.dataset",
    "python_stdlib", "--model.overrides", json.dumps(DEEPSEEK_V3 | {"n_mtp_layers": 1}),
]  # fmt: skip
TEMPLATE = "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}"
FOLDER = Path(tempfile.mkdtemp())
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
IMAGES = MORE["hekaton-flux"]


def at(path):
    """Of the files of :func:`_files`."""
    return ["--training.dataset_path", str(FOLDER / path)]


STREAM = [*at("*.jsonl"), "--stream_dataset.parts_per_file", "2"]
CHAT = [
    *at("chats/*.jsonl"), "--training.packing", "best_fit", "--model.tokenizer", "hf",
    "--model.hf_assets_path", str(FOLDER / "chats/tokenizer"),
]  # fmt: skip
SOURCES = [
    {"dataset": "python_stdlib", "weight": 2.0, "later": [{"step": 2, "weight": 1.0}]},
    {"dataset": "text", "dataset_path": str(FOLDER / "texts.jsonl"), "max_epochs": 3},
]
ADAPTERS = [
    "--model.name", "llama3", "--model.flavor", "debugmodel", "--model.tokenizer", "byte", "--training.dataset",
    "python_stdlib", "--model.overrides", json.dumps(SIZES["hekaton-llama3"]), "--model.converters", "lora",
]  # fmt: skip
TASKS = [{"tasks": [str(FOLDER / "task.yaml")], "every": 1}]
TASK = f"""\
task: letters
dataset_path: json
dataset_kwargs: {{cache_dir: {FOLDER / "cache"}, data_files: {{test: letters.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_target: 0
doc_to_choice: [a, b]
metric_list: [{{metric: acc}}]
"""
OTHER_RUNS = {
    "hekaton": {
        "objective multi_token": WITH_A_SECOND_TOKEN,
        "dataset mixture": ["--mixture.sources", json.dumps(SOURCES)],
        "dataset tokens": at("ids.npy"),
        "encoder ids": [*at("ids.npy"), "--training.dataset", "tokens"],
    },
    "hekaton-eval": {"evaluation lm_eval": ["--evaluation.tasks", json.dumps(TASKS)]},
    "hekaton-float8": {"converter quantize.grouped_mm.float8": WITH_EXPERTS},
    "hekaton-wandb": {"logger wandb": ["--wandb.mode", "offline"]},
    "hekaton-mx": {"converter quantize.grouped_mm.mx": WITH_EXPERTS},
    "hekaton-hf": {
        "dataset text": at("texts.jsonl"),
        "dataset stream": STREAM,
        "encoder stream": STREAM,
        "dataset chat": CHAT,
        "encoder chat": CHAT,
        "dataset hub_stream": [*at("hub"), "--hub_stream.shuffle_buffer", "2"],
        **{f"dataset {name}": at("c4") for name in ("c4", "c4_validation")},
        "dataset c4_test": at("texts.jsonl"),
    },
    "hekaton-lora": {"checkpoint format peft": ADAPTERS},
    "hekaton-flux": {
        "checkpoint format flux_file": [
            *IMAGES,
            "--model.overrides",
            json.dumps(FLUX | {"dim": 64, "axes": [4, 14, 14]}),
        ],
        "dataset encoded_images": [*IMAGES, "--flow_matching.encoded", str(FOLDER / "encoded")],
        "dataset image_folder": [*IMAGES, *at("images")],
        **{
            f"dataset {name}": [*IMAGES, *at("shards")]
            for name in ("webdataset", "cc12m-wds", "cc12m-test", "coco-validation")
        },
    },
}
"""Distribution -> contributions that are for certain models or files, with runs that have these."""
TOLERANCE = {"hekaton-float8": {"converter quantize.linear.float8": 1e-5}}
"""Distribution -> contributions that round, and what ranks that add up in another order may differ by."""


@pytest.fixture(scope="module", autouse=True)
def _files():
    """Those of ``OTHER_RUNS``."""
    lines = [json.dumps({"text": f"line {number}, {'word ' * (number % 7)}"}) for number in range(40)]
    (FOLDER / "texts.jsonl").write_text("\n".join(lines[:25]))
    (FOLDER / "more.jsonl").write_text("\n".join(lines[25:]))
    (FOLDER / "letters.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in "vwxyz"))
    (FOLDER / "task.yaml").write_text(TASK)
    (FOLDER / "images").mkdir(exist_ok=True)
    for color in ("red", "lime", "blue"):
        Image.new("RGB", (64, 64), color).save(FOLDER / f"images/{color}.png")
        (FOLDER / f"images/{color}.txt").write_text(f"it is {color}")
    (FOLDER / "shards").mkdir(exist_ok=True)
    with tarfile.open(FOLDER / "shards/0.tar", "w") as shard:
        for path in sorted((FOLDER / "images").iterdir()):
            shard.add(path, path.name)
    encoding = [
        *IMAGES,
        *at("images"),
        "--training.dataset",
        "image_folder",
        "--out",
        str(FOLDER / "encoded"),
    ]
    assert main(["flux", "preprocess", *encoding]) == 0
    for split, texts in {"train": lines[:25], "validation": lines[25:]}.items():
        (FOLDER / "c4").mkdir(exist_ok=True)
        whole = gzip.compress("\n".join(texts).encode())
        (FOLDER / f"c4/c4-{split}.00000-of-00001.json.gz").write_bytes(whole)
    (FOLDER / "hub").mkdir(exist_ok=True)
    for shard in range(4):
        (FOLDER / f"hub/{shard}.jsonl").write_text("\n".join(lines[shard::4]))
    np.save(FOLDER / "ids.npy", np.arange(2000, dtype=np.uint16) % 250)
    turns = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]
    shutil.copytree(SHIPPED, FOLDER / "chats/tokenizer", dirs_exist_ok=True)
    config = FOLDER / "chats/tokenizer/tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    chats = [{"messages": turns * (1 + number % 3)} for number in range(40)]
    (FOLDER / "chats/chats.jsonl").write_text("\n".join(map(json.dumps, chats)))


def ask(kit, processes):
    """For every promise of every one of our distributions."""
    for distribution in OURS:
        cases = cases_of(distribution)
        sizes = SIZES.get(distribution)
        overrides = ["--model.overrides", json.dumps(sizes)] if sizes else []
        others = OTHER_RUNS.get(distribution, {})
        for name, arguments in others.items():
            only = [case.name for case in cases if case.names[1] == name]
            kit(distribution, *arguments, only=only, processes=processes)
        rest = [case.name for case in cases if case.names[1] not in others]
        kit(
            distribution, *MORE.get(distribution, []), *overrides, only=rest, processes=processes,
            tolerance=TOLERANCE.get(distribution),
        )  # fmt: skip


def test_conforms(hekaton_conformance):
    ask(hekaton_conformance, processes=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_conforms_on_two_processes(hekaton_conformance):
    ask(hekaton_conformance, processes=2)


def test_every_promise_is_on_the_page_that_it_names(repository):
    for promise in PROMISES:
        page, _, heading = promise.place.partition("#")
        text = (repository / page).read_text(encoding="utf-8")
        assert f"\n### {heading.replace('-', ' ')}\n\n{promise.says}\n" in text, promise.place


def test_a_broken_promise_names_its_line():
    (case,) = [case for case in cases_of("hekaton-llama3") if case.name == "model llama3: tables"]
    object.__setattr__(case.subject, "spec", None)
    with pytest.raises(AssertionError) as error:
        case.check()
    assert str(error.value).startswith("model llama3: tables: ")
    assert "the contract (docs/contracts/model.md#tables):\n  Plan, initial values" in str(error.value)


def test_a_name_that_is_not_there_is_an_error_with_the_nearest():
    from hekaton.errors import PluginError

    with pytest.raises(PluginError, match="there is no plugin 'hekaton-lama3'") as error:
        cases_of("hekaton-lama3")
    assert "did you mean 'hekaton-llama3'" in error.value.hint
    with pytest.raises(PluginError, match="there is no case 'model llama3: tabels'") as error:
        cases_of("hekaton-llama3", without={"model llama3: tabels": "later"})
    assert "model llama3: tables" in error.value.hint


@pytest.mark.parametrize(
    ("method", "wrong", "said"),
    [
        ("open", lambda right: Weights(config={}, tensors={}), "which open() gives for a model"),
        ("open_part", lambda right: {name: whole(one.read() + 1) for name, one in right.items()}, "read back changed"),
        ("open_part", lambda right: dict([*right.items()][1:]), "tensors are read as"),
    ],
)  # fmt: skip
def test_a_format_that_breaks_its_promise_for_a_part_is_named(method, wrong, said, monkeypatch):
    right = getattr(PeftFormat, method)
    monkeypatch.setattr(
        PeftFormat,
        method,
        lambda self, folder: wrong(right(self, folder) if method == "open_part" else None),
    )
    (case,) = cases_of("hekaton-lora", ADAPTERS, only=["checkpoint format peft"])
    with pytest.raises(AssertionError, match=re.escape(said)):
        case.check()
