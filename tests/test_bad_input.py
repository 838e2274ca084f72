"""What a user gets wrong, through the command itself: one clear message, status 2, no traceback."""

import json
import os
import shutil
import textwrap
from pathlib import Path

import pytest

from hekaton.cli import main
from hekaton.testing import run_command

TINY = [
    "--model.tokenizer", "byte",
    "--model.overrides", '{"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}',
    "--training.steps", "2", "--training.seq_len", "16", "--training.local_batch_size", "2",
    "--training.mixed_precision_param", "float32", "--activation_checkpoint.mode", "none",
    "--lr_scheduler.warmup_steps", "0",
]  # fmt: skip


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Train with these words in an empty folder, and return the message of the refusal."""
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()

    def run(*words: str) -> str:
        assert main(["train", *words]) == 2
        message = capsys.readouterr().err
        assert "error: " in message
        assert "Traceback" not in message
        return message

    return run


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nowhere.toml"], ["there is no file 'nowhere.toml'"]),
        (["--trainig.steps", "1"], ["unknown flag --trainig.steps", "did you mean --training.steps"]),
        (["--training.stepz", "1"], ["unknown flag --training.stepz", "did you mean --training.steps?"]),
        (["--training.steps", "many"], ["training.steps must be an integer", "from: --training.steps"]),
        (["--training.steps", "0"], ["training.steps must be greater than 0, not 0"]),
        (["--model.name", "lama3"], ["unknown model 'lama3'", "did you mean 'llama3'?"]),
        (
            ["--model.flavor", "8b"],
            ["unknown flavor '8b' of model 'llama3'", "did you mean '8B'?", "debugmodel"],
        ),
        (["--training.dataset", "python"], ["unknown dataset 'python'", "python_stdlib"]),
        (["--optimizer.name", "AdamV"], ["unknown optimizer 'AdamV'", "Adam, AdamW"]),
        (["--model.converters", "float9"], ["unknown converter 'float9'"]),
        (
            ["--parallelism.data_parallel_shard_degree", "3"],
            ["multiply to 3", "this run has 1 process", "from: --parallelism.data_parallel_shard_degree"],
        ),
        (
            ["--training.dataset", "text", "--training.dataset_path", "none/*.jsonl"],
            ["no files match 'none/*.jsonl'"],
        ),
        (["--model.tokenizer", "hf", "--model.hf_assets_path", "none"], ["no tokenizer at 'none'"]),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, list) and len(value) < 5 else None,
)
def test_wrong_arguments_are_refused(refused, words, parts):
    files = words[:1] if words[0].endswith(".toml") else []
    message = refused(*files, *TINY, *words[len(files) :])
    for part in parts:
        assert part in message


def test_a_file_is_quoted_with_its_line(refused, tmp_path):
    Path("broken.toml").write_text("[training]\nsteps = 1\nseq_len = = 3\n")
    message = refused("broken.toml")
    assert "broken.toml, line 3" in message
    assert "seq_len = = 3" in message


def test_every_mistake_of_a_file_is_reported_with_its_line(refused):
    Path("wrong.toml").write_text('[trainer]\nsteps = 1\n\n[training]\nsteps = "1"\nseq_length = 8\n')
    message = refused("wrong.toml")
    for part in ("[trainer]", "wrong.toml, line 2", "line 5", "seq_length", "line 6", "seq_len"):
        assert part in message
    assert message.count("error: ") == 3


def test_an_empty_dataset_is_refused(refused):
    Path("empty.jsonl").write_text("")
    assert "empty.jsonl" in refused(
        *TINY, "--training.dataset", "text", "--training.dataset_path", "empty.jsonl"
    )


def test_a_broken_row_is_found_before_the_first_step(refused):
    lines = [json.dumps({"text": f"document {number} " * 50}) for number in range(100)]
    Path("rows.jsonl").write_text("\n".join([*lines, '{"text": ']))
    message = refused(*TINY, "--training.dataset", "text", "--training.dataset_path", "rows.jsonl")
    assert "1 row of the data cannot be read" in message
    assert "rows.jsonl', line 101: not JSON" in message
    assert "step: " not in message


@pytest.mark.parametrize("change", ["lines are swapped", "an edit of the same size", "nothing"])
def test_data_that_changed_is_noticed_when_a_run_resumes(tmp_path, monkeypatch, capsys, change):
    monkeypatch.chdir(tmp_path)
    lines = [json.dumps({"text": f"document {number:02} " * 20}) + "\n" for number in range(20)]
    data = Path("rows.jsonl")
    data.write_text("".join(lines))
    times = (data.stat().st_atime_ns, data.stat().st_mtime_ns)
    flags = [
        *TINY,
        "--checkpoint.enable",
        "--training.dataset",
        "text",
        "--training.dataset_path",
        "rows.jsonl",
    ]
    assert main(["train", *flags]) == 0
    if change == "lines are swapped":
        lines[3], lines[4] = lines[4], lines[3]
    elif change == "an edit of the same size":
        lines[7] = lines[7].replace("document", "Document")
    data.write_text("".join(lines))
    os.utime(data, ns=times)
    capsys.readouterr()
    status = main(["train", *flags, "--training.steps", "3"])
    message = capsys.readouterr().err
    assert status == (0 if change == "nothing" else 2)
    said = "changed: rows.jsonl\n  set training.dataset and training.dataset_path back, to the same files\n"
    assert ("the documents differ" in message) == (said in message) == (change != "nothing")


def test_a_tokenizer_that_cannot_be_read_is_refused(refused):
    Path("tokenizer.json").write_text("{")
    message = refused(*TINY, "--model.tokenizer", "hf", "--model.hf_assets_path", "tokenizer.json")
    assert "cannot read the tokenizer 'tokenizer.json'" in message


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(refused):
    message = refused(*TINY, "--model.overrides", '{"vocab_size": 100}')
    assert "258 ids" in message
    assert "vocab_size 100" in message


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run with a checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    assert main(["train", *TINY, "--checkpoint.enable", "--job.dump_folder", str(folder)]) == 0
    return folder


@pytest.fixture
def resumed(trained, tmp_path, refused):
    folder = tmp_path / "again"
    shutil.copytree(trained, folder)
    flags = [*TINY, "--checkpoint.enable", "--job.dump_folder", str(folder)]
    return folder / "checkpoint" / "step-2", lambda *words: refused(*flags, *words)


def test_a_checkpoint_of_another_model_is_refused(resumed):
    _, refused = resumed
    message = refused("--model.overrides", '{"dim": 16, "n_layers": 3, "n_heads": 2, "n_kv_heads": 1}')
    assert "layers.2.attention" in message
    message = refused("--model.overrides", '{"dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1}')
    assert "layers.0.attention.wk.weight" in message


def test_a_truncated_checkpoint_is_refused(resumed):
    step, refused = resumed
    shard = next(step.glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-100])
    message = refused()
    assert "none of the checkpoints" in message
    assert shard.name in message


def test_a_checkpoint_of_another_batch_size_is_refused(resumed):
    _, refused = resumed
    assert "set training.global_batch_size = 2" in refused("--training.local_batch_size", "4")


def test_the_process_itself_ends_with_status_2():
    done = run_command("train", "--model.name", "lama3")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown model 'lama3'")
    assert "Traceback" not in done.stderr


def test_overrides_are_checked_too(refused):
    message = refused(*TINY, "--model.overrides", json.dumps({"dims": 8}))
    assert "'dims'" in message
    assert "dim" in message


@pytest.mark.parametrize("model", ["llama3", "qwen3", "deepseek_v3", "llama4", "gpt_oss"])
def test_a_number_of_layers_that_would_fill_the_memory_is_refused(capsys, model):
    status, message = checked(capsys, "--model.name", model, "--model.overrides", '{"n_layers": 1000000000}')
    assert status == 2
    assert "model.overrides.n_layers" in message
    assert "less than or equal to 4096" in message


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "abc"}, "the environment's WORLD_SIZE must be a number"),
        ({"RANK": "5"}, "RANK = 5, but there are ranks 0 to 0"),
        ({"WORLD_SIZE": "4"}, "WORLD_SIZE = 4, but not RANK, MASTER_ADDR, MASTER_PORT"),
        ({"LOCAL_RANK": "x", "RANK": "y"}, "the environment's RANK must be a number"),
    ],
)
def test_contradicting_launcher_variables_are_refused(refused, monkeypatch, variables, message):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert message in refused(*TINY)


def test_processes_that_do_not_connect_are_reported(refused, monkeypatch):
    for name, value in {
        "RANK": "1", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    message = refused(*TINY, "--comm.init_timeout_seconds", "2")
    assert "cannot reach the other processes at 127.0.0.1:1 (MASTER_ADDR, MASTER_PORT) within 2 s" in message


def checked(capsys, *words: str) -> tuple[int, str]:
    status = main(["config", "check", *TINY, *words])
    return status, capsys.readouterr().err


def test_the_check_reads_the_tokenizer(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, message = checked(capsys, "--model.tokenizer", "hf", "--model.hf_assets_path", "assets")
    assert status == 2
    assert "no tokenizer at 'assets'" in message
    assert "from: --model.hf_assets_path" in message
    status, message = checked(capsys, "--model.overrides.vocab_size", "100")
    assert status == 2
    assert "tokenizer 'byte' has 258 ids, llama3 debugmodel has vocab_size 100" in message
    # A dry run reads no tokenizer.
    assert checked(
        capsys, "--model.tokenizer=hf", "--model.hf_assets_path=assets", "--comm.mode=fake_backend"
    ) == (0, "")


def test_train_without_arguments_prints_a_quick_start(refused, capsys):
    assert main(["train"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: hekaton train FILE [FILE...] [flags]\n")
    lines = said.split("save this as run.toml:\n")[1].split("\nand start it")[0]
    Path("run.toml").write_text(textwrap.dedent(lines))
    assert main(["config", "check", "run.toml", "--world_size", "1"]) == 0
    assert capsys.readouterr().out == "OK: llama3 debugmodel, 1 process\n"
    assert not Path("outputs").exists()
    assert main(["train", "run.toml", *TINY, "--job.dump_folder", "out"]) == 0
