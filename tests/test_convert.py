"""hekaton convert: what it refuses, what it leaves behind when it is cut short, what it holds in memory."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from hekaton.checkpoint.disk.manifest import FileRecord, Manifest
from hekaton.cli import main
from hekaton.testing import start_function
from hekaton_llama3.model import Llama3Config
from hekaton_llama3.spec import flavors

PROGRAMS = Path(__file__).with_name("other_programs.py")
TINY = Llama3Config(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, hidden_dim=48, vocab_size=64)
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def _flavors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(flavors, "tiny", TINY)
    monkeypatch.setitem(flavors, "deeper", replace(TINY, n_layers=3, rope_theta=1e4))


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    """What transformers saves of the flavor ``tiny``."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=48, vocab_size=64, rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.fixture
def step(hf: Path, tmp_path: Path) -> Path:
    """The same, imported."""
    assert main(["convert", "from-hf", str(hf), str(tmp_path / "step")]) == 0
    return tmp_path / "step"


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The error of ``hekaton convert WORDS OUT``, which leaves no OUT."""

    def run(*words: str | Path) -> str:
        way, source, *options = map(str, words)
        out = tmp_path / "refused"
        assert main(["convert", way, source, str(out), *options]) == 2
        assert not list(tmp_path.glob("refused*"))
        return capsys.readouterr().err

    return run


def edit(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps(content))


def test_the_flavor_is_found_and_reported(
    hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "from-hf", str(hf), str(tmp_path / "out")]) == 0
    assert f"{hf}: its config.json is that of llama3 tiny\n" in capsys.readouterr().out
    manifest = Manifest.from_json((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest.describe["model"], manifest.describe["flavor"]) == ("llama3", "tiny")


def test_another_flavor_is_refused_with_what_differs(hf: Path, step: Path, refused: Run) -> None:
    lines = ["  n_layers is 2 there, 3 here", "  rope_theta is 500000.0 there, 10000.0 here"]
    assert refused("from-hf", hf, "--model_flavor", "deeper").splitlines() == [
        f"error: {hf} is not llama3 deeper", *lines,
    ]  # fmt: skip
    assert refused("to-hf", step, "--model_flavor", "deeper").splitlines() == [
        f"error: {step} is llama3 tiny, not deeper", *lines,
    ]  # fmt: skip


def test_a_config_that_is_no_flavor_is_refused_with_the_nearest(hf: Path, refused: Run) -> None:
    edit(hf / "config.json", intermediate_size=40)
    assert refused("from-hf", hf).splitlines() == [
        f"error: {hf} is none of the flavors of llama3; the nearest is tiny:",
        "  hidden_dim is 40 there, 48 here",
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention_bias": True}, "attention_bias = True: the model llama3 knows only False"),
        ({"head_dim": 16}, "head_dim = 16: the model llama3 knows only hidden_size"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1.0}}, "rope_type = 'yarn'"),
        ({"num_hidden_layers": None}, "num_hidden_layers = None: a whole number above 0 was expected"),
        ({"num_attention_heads": 0}, "num_attention_heads = 0: a whole number above 0 was expected"),
        ({"rope_parameters": 3}, "rope_parameters = 3: a JSON object was expected"),
        ({"architectures": ["MistralForCausalLM"]}, "its architectures are MistralForCausalLM"),
        ({"quantization_config": {"quant_method": "gptq"}}, "is quantized as 'gptq': that is not known here"),
    ],
)
def test_a_config_of_another_architecture_is_refused(
    changes: dict[str, Any], said: str, hf: Path, refused: Run
) -> None:
    edit(hf / "config.json", **changes)
    assert said in refused("from-hf", hf)


def test_an_architecture_other_than_the_named_model_is_refused(hf: Path, refused: Run) -> None:
    edit(hf / "config.json", architectures=["MistralForCausalLM"])
    error = refused("from-hf", hf, "--model_name", "llama3")
    assert f"{hf} is a MistralForCausalLM, not a llama3\n  llama3 reads LlamaForCausalLM" in error


def test_fields_that_are_replaced_may_differ_from_the_flavor(hf: Path, tmp_path: Path, refused: Run) -> None:
    edit(hf / "config.json", rms_norm_eps=1e-6)
    assert "norm_eps is 1e-06 there, 1e-05 here" in refused("from-hf", hf)
    out, eps = str(tmp_path / "out"), ["--overrides", '{"norm_eps": 1e-6}']
    assert main(["convert", "from-hf", str(hf), out, *eps]) == 0
    assert main(["convert", "to-hf", out, f"{out}-back"]) == 0
    assert json.loads((tmp_path / "out-back" / "config.json").read_text())["rms_norm_eps"] == 1e-6


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            '{"norm_epz": 1e-6}',
            "model.overrides.norm_epz of llama3: no such field\n  did you mean 'norm_eps'?",
        ),
        ('{"n_layers": 3}', "hf does not hold the tensors of this model\n  9 "),
        ("[1]", "[1] is not a table such as"),
        ("[" * 100_000, "is not a table such as"),
    ],
)
def test_overrides_that_do_not_fit_are_errors(overrides: str, said: str, hf: Path, refused: Run) -> None:
    assert said in refused("from-hf", hf, "--overrides", overrides)


def test_unknown_names_and_missing_paths_are_errors(
    hf: Path, step: Path, tmp_path: Path, refused: Run
) -> None:
    assert "unknown flavor '8b' of model 'llama3'\n  did you mean '8B'?" in refused(
        "from-hf", hf, "--model_flavor", "8b"
    )
    assert "unknown model 'lama3'\n  did you mean 'llama3'?" in refused(
        "to-hf", step, "--model_name", "lama3"
    )
    assert f"'{tmp_path}/no' does not exist" in refused("from-hf", tmp_path / "no")
    assert f"'{hf}/config.json' is not a folder" in refused("to-hf", hf / "config.json")
    assert f"'{hf}' is not a checkpoint" in refused("to-hf", hf)
    assert f"'{step}/config.json' is missing" in refused("from-hf", step)
    assert "there is no folder '/nowhere'" in refused("to-hf", step, "--hf_assets_path", "/nowhere")
    assert "'5 apples' is not a size" in refused("to-hf", step, "--max_shard_size", "5 apples")
    assert "--export_dtype: invalid choice: 'int8'" in refused("to-hf", step, "--export_dtype", "int8")
    assert "unrecognized arguments: --flavor" in refused("to-hf", step, "--flavor", "tiny")
    assert "unknown checkpoint format 'gguf'" in refused("from-gguf", hf)
    assert "unknown verb 'convert into'" in refused("into", hf)


def test_a_folder_that_is_not_empty_is_left_alone(
    hf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert main(["convert", "from-hf", str(hf), str(tmp_path / "out")]) == 2
    assert f"'{tmp_path}/out' is not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_folder_inside_of_the_source_is_refused(hf: Path, tmp_path: Path, refused: Run) -> None:
    (tmp_path / "link").symlink_to(hf)
    assert main(["convert", "from-hf", str(hf), str(tmp_path / "link" / "step")]) == 2
    assert not (hf / "step").exists()


def test_tensors_that_are_missing_or_unknown_are_listed(hf: Path, refused: Run) -> None:
    tensors = load_file(hf / WEIGHTS)
    del tensors["model.norm.weight"]
    for i in range(2):
        tensors[f"model.layers.{i}.self_attn.q_norm.weight"] = torch.ones(8)
    save_file(tensors, hf / WEIGHTS)
    assert refused("from-hf", hf).splitlines() == [
        f"error: {hf} does not hold the tensors of this model",
        "  1 missing: model.norm.weight",
        "  2 unknown: model.layers.*.self_attn.q_norm.weight (2)",
    ]


def test_tensors_of_another_shape_are_listed(hf: Path, refused: Run) -> None:
    tensors = load_file(hf / WEIGHTS)
    save_file(tensors | {"model.norm.weight": torch.ones(31)}, hf / WEIGHTS)
    assert "norm.weight is (31,) there, (32,) in llama3 tiny" in refused("from-hf", hf)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-5], "cannot read '.*model.safetensors'"),
        (lambda data: data[:20], "cannot read '.*model.safetensors'"),
        (lambda data: (1 << 60).to_bytes(8, "little") + data[8:], "cannot read '.*model.safetensors'"),
        (lambda data: data[:8] + b"[" + data[9:], "cannot read '.*model.safetensors'"),
        (lambda data: b"", "cannot read '.*model.safetensors'"),
    ],
)
def test_a_damaged_safetensors_file_is_an_error(
    damage: Callable[[bytes], bytes], said: str, hf: Path, refused: Run
) -> None:
    data = (hf / WEIGHTS).read_bytes()
    (hf / WEIGHTS).write_bytes(damage(data))
    assert re.search(said, refused("from-hf", hf))


class Payload:
    """Unpickled without care, it runs a command that leaves a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.proof}",)


def test_pickled_weights_are_not_read(hf: Path, tmp_path: Path, refused: Run) -> None:
    (hf / WEIGHTS).unlink()
    (hf / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "proof")))
    assert "only safetensors are read: pickled weights could run code" in refused("from-hf", hf)
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("target", ["../secret.safetensors", "/etc/hostname", "missing.safetensors"])
def test_an_index_that_points_outside_the_folder_is_refused(target: str, hf: Path, refused: Run) -> None:
    (hf / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": target}}))
    assert "which is not a file of the folder" in (error := refused("from-hf", hf)) or "is missing" in error


def test_an_index_that_contradicts_its_files_is_refused(hf: Path, refused: Run) -> None:
    names = dict.fromkeys(load_file(hf / WEIGHTS), WEIGHTS)
    del names["lm_head.weight"]
    (hf / INDEX).write_text(json.dumps({"weight_map": names | {"ghost": WEIGHTS}}))
    error = refused("from-hf", hf)
    assert "not in the file: ghost" in error
    assert "not in the index: lm_head.weight" in error


def resigned(step: Path) -> None:
    """Let the manifest agree with the files, as a forger would, and leave it to them where a tensor is."""
    manifest = Manifest.from_json((step / "manifest.json").read_text())
    files = {}
    for name in manifest.files:
        data = (step / name).read_bytes()
        files[name] = FileRecord(len(data), f"sha256:{hashlib.sha256(data).hexdigest()}")
    (step / "manifest.json").write_text(replace(manifest, files=files, tensors=None).to_json())


@pytest.mark.parametrize("way", ["to-hf", "to-torch"])
def test_a_payload_in_a_checkpoint_does_not_run(way: str, step: Path, tmp_path: Path, refused: Run) -> None:
    proof = tmp_path / "proof"
    honest = (step / ".metadata").read_bytes()
    (step / ".metadata").write_bytes(pickle.dumps(Payload(proof)))
    resigned(step)
    assert "asks for posix.system, which no tensor needs: refused" in refused(way, step)

    metadata = pickle.loads(honest)
    item = tmp_path / "item"
    torch.save({"payload": Payload(proof)}, item)
    (step / "__0_0.distcp").write_bytes(item.read_bytes())
    for stored in metadata.storage_data.values():
        stored.offset, stored.length = 0, item.stat().st_size
    (step / ".metadata").write_bytes(pickle.dumps(metadata))
    resigned(step)
    assert "asks for posix.system, which no tensor needs: refused" in refused(way, step)
    assert not proof.exists()


@pytest.mark.parametrize("way", ["to-hf", "to-torch"])
def test_a_flipped_bit_in_a_checkpoint_is_an_error(way: str, step: Path, refused: Run) -> None:
    data = bytearray((step / "__0_0.distcp").read_bytes())
    data[len(data) // 2] ^= 1
    (step / "__0_0.distcp").write_bytes(data)
    assert "is damaged: __0_0.distcp was changed or damaged" in refused(way, step)


def test_a_full_disk_is_reported(step: Path, hf: Path, refused: Run) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        errors = [refused("from-hf", hf), refused("to-hf", step), refused("to-torch", step)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert all("File too large" in error for error in errors)


@pytest.mark.parametrize("way", ["from-hf", "to-hf", "to-torch"])
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_conversion_leaves_nothing_that_looks_whole(
    way: str, by: signal.Signals, hf: Path, step: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = [way, str(hf if way == "from-hf" else step), str(out)]
    with start_function(PROGRAMS, "convert_slowly", words=words) as process:
        process.wait_for("reading\n", times=5)
        process.send_signal(by)
        assert process.wait(60) == (130 if by == signal.SIGINT else -by)
    assert not out.exists()
    if by == signal.SIGINT:
        assert not list(tmp_path.glob("out*"))
    assert main(["convert", *words]) == 0
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]


@pytest.mark.filterwarnings("ignore:.*weights_only")
def test_torchs_own_converter_and_ours_read_what_was_imported(step: Path, hf: Path, tmp_path: Path) -> None:
    dcp_to_torch_save(step, tmp_path / "theirs.pt")
    assert main(["convert", "to-torch", str(step), str(tmp_path / "ours.pt")]) == 0
    ours, theirs = (torch.load(tmp_path / f"{who}.pt", weights_only=True) for who in ("ours", "theirs"))
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    embedding = load_file(hf / WEIGHTS)["model.embed_tokens.weight"]
    assert torch.equal(ours["tok_embeddings.weight"], embedding)


def test_precision_and_tokenizer_of_an_export(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hekaton_hf.tokenizer import SHIPPED

    monkeypatch.setitem(flavors, "shipped", replace(TINY, vocab_size=2048))
    tensors = load_file(hf / WEIGHTS)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name].repeat(32, 1)
    save_file(tensors, hf / WEIGHTS)
    edit(hf / "config.json", vocab_size=2048)
    step, out = tmp_path / "step", tmp_path / "out"
    assert main(["convert", "from-hf", str(hf), str(step)]) == 0
    words = ["--export_dtype", "bfloat16", "--hf_assets_path", str(SHIPPED)]
    assert main(["convert", "to-hf", str(step), str(out), *words]) == 0
    written, original = load_file(out / WEIGHTS), load_file(hf / WEIGHTS)
    assert all(torch.equal(written[name], tensor.bfloat16()) for name, tensor in original.items())
    model = LlamaForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.decode(tokenizer.encode("def f(x):", add_special_tokens=False)) == "def f(x):"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id is not None
    assert main(["convert", "to-hf", str(step), str(tmp_path / "half"), "--export_dtype", "float16"]) == 0
    written = load_file(tmp_path / "half" / WEIGHTS)
    assert all(torch.equal(written[name], tensor.half()) for name, tensor in original.items())


def test_an_external_dcp_checkpoint_is_exported(step: Path, hf: Path, tmp_path: Path) -> None:
    (step / "manifest.json").unlink()
    words = ["--model_name", "llama3", "--model_flavor", "tiny"]
    assert main(["convert", "to-hf", str(step), str(tmp_path / "out"), *words]) == 0
    written, original = load_file(tmp_path / "out" / WEIGHTS), load_file(hf / WEIGHTS)
    assert all(torch.equal(written[name], tensor) for name, tensor in original.items())


# Each with its largest tensor in MB: an embedding; the experts of a layer, transposed and two in one there; and
# the same as a file's tensors each.
BIG_MODELS = {
    "llama3": (
        34,
        """
from hekaton_llama3.model import Llama3Config
flavors["big"] = Llama3Config(
    dim=1024, n_layers=11, n_heads=8, n_kv_heads=8, hidden_dim=2048, vocab_size=8192
)
""",
    ),
    "llama4": (
        67,
        """
from dataclasses import replace
flavors["big"] = replace(
    flavors["debugmodel"], dim=512, n_layers=4, interleave_moe_layer_step=1,
    moe=replace(flavors["debugmodel"].moe, n_experts=16, hidden_dim=1024),
)
""",
    ),
    "qwen3": (
        34,
        """
from dataclasses import replace
flavors["big"] = replace(
    flavors["debugmodel_moe"], dim=512, n_layers=5,
    moe=replace(flavors["debugmodel_moe"].moe, n_experts=16, hidden_dim=1024),
)
""",
    ),
}
BIG = """
import sys
from hekaton_MODEL.spec import flavors
SETTINGS
if sys.argv[1] == "make":
    import torch
    from pathlib import Path
    from hekaton.weights import LazyTensor
    from hekaton.weights.format import Weights, WriteOptions
    from hekaton_hf.checkpoint import HFFormat
    from hekaton_MODEL.hugging_face import table, write_config
    from hekaton_MODEL.spec import train_spec
    config = flavors["big"]
    with torch.device("meta"):
        model = train_spec.model(config)
    zeros = lambda region: torch.zeros([part.stop - part.start for part in region])
    ours = {n: LazyTensor(tuple(p.shape), p.dtype, zeros) for n, p in model.state_dict().items()}
    content = {"architectures": ["LlamaForCausalLM"], **write_config(config)}
    HFFormat().write(Path(sys.argv[2]), Weights(config=content, tensors=table(config).to_hf(ours, what="")),
                     WriteOptions())
else:
    from hekaton.cli import main
    status = main(["convert", *sys.argv[1:]])
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
    sys.exit(status)
"""


def seconds_of_children() -> float:
    """Processor time, which other load changes little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("model", BIG_MODELS)
def test_memory_does_not_grow_with_the_model(model: str, tmp_path: Path) -> None:
    largest, settings = BIG_MODELS[model]
    program = BIG.replace("MODEL", model).replace("SETTINGS", settings)

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=100
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    hf, out, back = (tmp_path / name for name in ("hf", "out", "back"))
    hf.mkdir()
    run("make", str(hf))
    size = (hf / WEIGHTS).stat().st_size / 1e6
    assert size > 430  # twice what is allowed besides the process itself
    began = seconds_of_children()
    for words in (["from-hf", str(hf), str(out)], ["to-hf", str(out), str(back)]):
        match = re.search(r"VmHWM:\s+(\d+) kB", run(*words))
        assert match is not None
        # The process itself takes about 350 MB; the limit that is promised, 1 GB and more, would prove nothing.
        assert int(match[1]) / 1e3 < 350 + 3 * largest, words
    assert seconds_of_children() - began < 90
