"""A run whose processes have something different ends before its first step, in the same words on each."""

import json
import shutil
import socket
from pathlib import Path

import pytest

import hekaton_hf
from hekaton.testing import run_processes

pytestmark = pytest.mark.timeout(240)  # seventeen runs in one launch
TOKENIZER = Path(hekaton_hf.__file__).parent / "assets" / "python_stdlib"
ON_PROCESSES = Path(__file__).with_name("differing_on_processes.py")
RUN = """
[model]
name = "llama3"
flavor = "debugmodel"
tokenizer = "byte"
[model.overrides]
n_layers = 1
dim = 32
n_heads = 2
n_kv_heads = 2
hidden_dim = 64
[training]
seq_len = 32
local_batch_size = 1
steps = 1
dataset = "text"
mixed_precision_param = "float32"
"""
PLUGIN = """
import os

from hekaton.contributions import IdentitySubject, Ref, hookimpl


def image(section, config):
    return {"image": f"image-{os.environ['RANK']}", "seq_len": config.training.seq_len}


@hookimpl
def hekaton_identity_subjects():
    return [IdentitySubject("container", build=Ref("container_plugin:image"))]
"""

IMPORTING = """
import importlib

from hekaton.contributions import hookimpl


@hookimpl
def hekaton_run_started(config, step, control):
    importlib.import_module("helper_of_" + "importing_plugin")
"""

BUILT_BY_RANK = """
import os
from dataclasses import replace

import torch
from hekaton.contributions import Model, Ref, hookimpl
from hekaton_llama3.spec import train_spec as llama3

RANK = int(os.environ["RANK"])


class Larger(llama3.model):
    def __init__(self, config):
        super().__init__(config)
        self.norm.weight = torch.nn.Parameter(torch.empty(config.dim + RANK))


def otherwise_cut(config):
    plan = llama3.plan(config)
    ends = [*plan.stages.first, *plan.stages.last]
    at = len(plan.stages.first) + RANK
    return replace(plan, stages=replace(plan.stages, first=ends[:at], last=ends[at:]))


larger = replace(llama3, model=Larger)
cut = replace(llama3, plan=otherwise_cut)


@hookimpl
def hekaton_models():
    return [Model(name, spec=Ref(f"built_by_rank:{name}")) for name in ("larger", "cut")]
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[int, str]]]:
    """The status and the console of every case, on each rank."""
    folder = tmp_path_factory.mktemp("differing")
    (folder / "run.toml").write_text(RUN)
    for name, word in (("data", "the same"), ("other", "a different")):
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text("Every word of this file is the same but " + word)
        (folder / name / "b.txt").write_text("All words of this file are the same.")
        shutil.copytree(TOKENIZER, folder / f"{name} tokenizer")
    (folder / "other" / "c.txt").write_text("This file is on one machine alone.")
    changed = folder / "other tokenizer" / "tokenizer.json"
    content = json.loads(changed.read_text())
    content["added_tokens"][-1]["normalized"] = not content["added_tokens"][-1]["normalized"]
    changed.write_text(json.dumps(content))
    shutil.copytree(folder / "data tokenizer", folder / "template tokenizer")
    for name, template in (("data", "{{ messages }}"), ("template", "{{ messages[0] }}")):
        (folder / f"{name} tokenizer" / "chat_template.jinja").write_text(template)
    chat = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    (folder / "chats.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for _ in range(8)))
    (folder / "container_plugin.py").write_text(PLUGIN)
    (folder / "importing_plugin.py").write_text(IMPORTING)
    (folder / "built_by_rank.py").write_text(BUILT_BY_RANK)
    for rank in range(2):
        (folder / f"modules{rank}").mkdir()
        (folder / f"modules{rank}" / "helper_of_importing_plugin.py").write_text(f"A = {rank}")
    data = ["--training.dataset_path", str(folder / "data")]
    plugin = [*data, "--plugins.load", str(folder / "container_plugin.py")]
    by_rank = [*data, "--plugins.load", str(folder / "built_by_rank.py"), "--model.name"]
    two = ["--model.overrides.n_layers", "2", "--training.local_batch_size", "2"]
    pipeline = ["--parallelism.pipeline_parallel_degree", "2", *two]
    cases = {
        "plan": [[*by_rank, "larger"]] * 2,
        "stages": [[*by_rank, "cut", *pipeline]] * 2,
        "lengths": [[*data], [*data, "--training.steps", "3", "--model.overrides.n_layers", "2"]],
        "data": [[*data], ["--training.dataset_path", str(folder / "other")]],
        "tokenizer": [
            [
                *data,
                "--model.tokenizer",
                "hf",
                "--model.overrides.vocab_size",
                "2048",
                "--model.hf_assets_path",
                str(folder / f"{name} tokenizer"),
            ]
            for name in ("data", "other")
        ],
        "template": [
            [
                *data,
                *["--model.tokenizer", "hf", "--model.overrides.vocab_size", "2048"],
                *["--model.hf_assets_path", str(folder / f"{name} tokenizer")],
                *["--validation.enable", "--validation.dataset", "chat", "--validation.seq_len", "32"],
                *["--validation.dataset_path", str(folder / "chats.jsonl")],
            ]
            for name in ("data", "template")
        ],
        "fewer devices": [[*data], [*data]],
        "settings": [[*data], [*data]],
        "no such model": [[*data], [*data, "--model.name", "lama3"]],
        "no such model on the first": [[*data, "--model.name", "lama3"], [*data]],
        "no data": [[*data], ["--training.dataset_path", str(folder / "nothing")]],
        "subject of a plugin": [plugin, plugin],
        "module": [[*data, "--plugins.load", str(folder / "importing_plugin.py")]] * 2,
        "wrong on all": [[*data, "--parallelism.tensor_parallel_degree", "3"]] * 2,
        "nothing": [[*data, "--checkpoint.enable"]] * 2,
        "resumed with other data": [
            ["--training.dataset_path", str(folder / "other"), "--checkpoint.enable", "--training.steps", "2"]
        ]
        * 2,
    }
    common = ["--job.dump_folder", str(folder / "outputs")]
    cases = {name: [[*common, *flags] for flags in of_ranks] for name, of_ranks in cases.items()}
    ports = free_ports(len(cases))
    run_processes(ON_PROCESSES, "run", processes=2, timeout=200, folder=str(folder), cases=cases, ports=ports)
    return [json.loads((folder / f"said-{rank}.json").read_text()) for rank in range(2)]


def free_ports(number: int) -> list[int]:
    with_sockets = [socket.socket() for _ in range(number)]
    try:
        for one in with_sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in with_sockets]
    finally:
        for one in with_sockets:
            one.close()


def error_of(said: list[dict[str, tuple[int, str]]], case: str) -> str:
    """What both ranks end with: the same words and status 2."""
    errors = []
    for of_rank in said:
        status, console = of_rank[case]
        assert status == 2, console
        assert "Traceback" not in console
        errors.append(console[console.index("error: ") :].strip())
    assert errors[0] == errors[1]
    return errors[0]


HOST = socket.gethostname()


def test_lengths_at_which_ranks_would_wait_for_each_other_forever(said):
    error = error_of(said, "lengths")
    assert f"\n  training.steps: 1 on rank 0 ({HOST}), 3 on rank 1 ({HOST})\n" in error
    assert f"\n  model.overrides.n_layers: 1 on rank 0 ({HOST}), 2 on rank 1 ({HOST})\n" in error
    assert error.endswith("start all processes with the same files and flags")


def test_a_difference_in_a_data_file_is_reported(said):
    error = error_of(said, "data")
    start = "error: the processes of this run differ:\n  training data: a.txt: 48 bytes, "
    assert error.startswith(start)
    assert f" on rank 0 ({HOST}), 51 bytes, " in error
    assert f"\n  training data: c.txt: not there on rank 0 ({HOST}), 34 bytes, " in error
    assert "b.txt" not in error, "that file is the same"
    assert "\n  give all machines the same files: training.dataset_path" in error


def test_other_settings_of_torch_are_reported(said):
    error = error_of(said, "settings")
    setting = "torch.backends.cuda.flash_sdp_enabled()"
    assert f"\n  {setting}: true on rank 0 ({HOST}), false on rank 1 ({HOST})\n" in error
    assert f"\n  denormal numbers are: kept on rank 0 ({HOST}), zero on rank 1 ({HOST})\n" in error
    assert "default_dtype" not in error, "that is the same"


def test_a_different_tokenizer_file_is_reported(said):
    error = error_of(said, "tokenizer")
    assert "\n  tokenizer: tokenizer.json: " in error
    assert "token: " not in error, "its marks are the same"


def test_another_chat_template_of_what_is_validated_on_is_reported(said):
    error = error_of(said, "template")
    assert "\n  encoding of the validation data: " in error
    assert "tokenizer: " not in error, "that is the same"


def test_too_few_devices_on_one_machine_are_reported(said):
    messages = [of_rank["fewer devices"][1] for of_rank in said]
    assert "error: process 2 of this machine finds 1 CUDA device(s)\n" in messages[1]
    assert f"error: rank 1 on {HOST} failed before the first step (start): process 2 of " in messages[0]
    assert [of_rank["fewer devices"][0] for of_rank in said] == [2, 2]


def test_a_name_unknown_on_one_machine_is_reported(said):
    messages = [of_rank["no such model"][1] for of_rank in said]
    assert "error: unknown model 'lama3'" in messages[1]
    assert (
        f"error: rank 1 on {HOST} failed before the first step (start): unknown model 'lama3'" in messages[0]
    )
    assert [of_rank["no such model"][0] for of_rank in said] == [2, 2]


@pytest.mark.parametrize(("case", "failed"), [("no such model", 1), ("no such model on the first", 0)])
def test_a_process_that_comes_late_is_told_why_another_one_failed_before(said, case, failed):
    own, other = (said[rank][case][1] for rank in (failed, 1 - failed))
    waits = (
        f"rank {failed}: waits up to 300 s for processes that are late, to tell them why this one failed: "
    )
    assert f"{waits}unknown model 'lama3'" in own
    assert f"error: rank {failed} on {HOST} failed before the first step (start): unknown model " in other
    assert [of_rank[case][0] for of_rank in said] == [2, 2]


def test_files_missing_on_one_machine_are_reported(said):
    error = error_of(said, "no data")
    assert f"error: on rank 1 ({HOST}): " in error
    assert "nothing" in error


def test_identity_subjects_of_plugins_are_compared(said):
    error = error_of(said, "subject of a plugin")
    assert f"\n  container.image: image-0 on rank 0 ({HOST}), image-1 on rank 1 ({HOST})" in error
    assert "container.seq_len" not in error
    assert error.endswith(
        "\n  make them the same on all machines: environment variables in what starts the run"
    )


def test_another_shape_of_a_tensor_is_reported(said):
    (line,) = [line for line in error_of(said, "plan").splitlines() if line.startswith("  plan of ")]
    assert line.startswith("  plan of norm.weight: [32] float32 ")
    assert ", [33] float32 " in line


def test_other_stages_are_reported(said):
    error = error_of(said, "stages")
    assert "\n  modules of stage 0: " in error
    assert "\n  modules of stage 1: " in error


def test_a_module_that_a_plugin_imports_last_of_all_is_reported(said):
    error = error_of(said, "module")
    assert "\n  source of helper_of_importing_plugin.py: " in error
    assert error.endswith("\n  bring the code of all machines to the same state")
    assert "step 1" not in error


def test_an_error_of_all_processes_is_reported_once(said):
    assert error_of(said, "wrong on all").startswith("error: 2 processes cannot be divided by 3 ")


def test_data_that_all_have_otherwise_than_the_checkpoint_is_no_failure_of_one_rank(said):
    error = error_of(said, "resumed with other data")
    message = "error: the run cannot continue with the data of the checkpoint: the documents differ\n"
    assert error.startswith(f"{message}  changed: a.txt\n  new: c.txt\n")


def test_processes_that_have_everything_in_common_train(said):
    assert [of_rank["nothing"][0] for of_rank in said] == [0, 0]
