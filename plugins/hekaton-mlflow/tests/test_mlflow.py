"""Runs of MLflow in files, read by MLflow's own client; and a server that is gone."""

import pytest
from mlflow.tracking import MlflowClient

from hekaton.cli import main
from hekaton.optional_logger import OptionalLogger
from hekaton_mlflow.logger import CONTINUED_BY, build
from hekaton_mlflow.section import MlflowSection


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def log(folder, *, resume, steps, value):
    logger = build(MlflowSection(), folder)
    logger.resume(resume)
    for step in steps:
        logger.log(step, {"loss": value, "seconds/data": 0.5})
    logger.close()


def runs(folder):
    """The runs of the folder, oldest first, each with the (step, loss) of its curve."""
    client = MlflowClient((folder / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("hekaton")
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])
    return [
        (run, [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")])
        for run in found
    ]


def test_resumed_runs_show_each_step_once(tmp_path):
    (tmp_path / "config.toml").write_text("[optimizer]\nlr = 0.25\n")
    log(tmp_path, resume=0, steps=[1, 2], value=3.0)
    log(tmp_path, resume=2, steps=[3, 4], value=2.0)
    ((run, curve),) = runs(tmp_path)
    assert curve == [(1, 3.0), (2, 3.0), (3, 2.0), (4, 2.0)]
    assert run.data.params == {"optimizer.lr": "0.25"}
    assert run.info.status == "FINISHED"
    log(tmp_path, resume=3, steps=[4], value=1.0)
    (first, earlier), (second, curve) = runs(tmp_path)
    assert earlier == [(1, 3.0), (2, 3.0), (3, 2.0), (4, 2.0)]
    assert curve == [(1, 3.0), (2, 3.0), (3, 2.0), (4, 1.0)]
    assert first.data.tags[CONTINUED_BY] == second.info.run_id


def test_a_server_that_is_gone_is_reported(tmp_path, caplog):
    section = MlflowSection(tracking_uri="http://127.0.0.1:9")
    logger = OptionalLogger("mlflow", lambda: build(section, tmp_path))
    logger.resume(0)
    logger.log(1, {"loss": 1.0})
    logger.close()
    (message,) = [record.getMessage() for record in caplog.records if record.name == "hekaton"]
    assert message.startswith("logger 'mlflow' failed when the run started and is left out from here on: ")


TINY = [
    "--model.tokenizer", "byte", "--model.overrides",
    '{"dim": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "vocab_size": 258}',
    "--training.steps", "1", "--training.seq_len", "16", "--training.local_batch_size", "1",
    "--activation_checkpoint.mode", "none", "--metrics.loggers", "mlflow",
]  # fmt: skip


def test_an_address_that_mlflow_has_no_store_for_is_an_error(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["config", "check", *TINY, "--mlflow.tracking_uri", "nope://x"]) == 2
    said = "error: mlflow.tracking_uri = \"nope://x\": MLflow has no store for 'nope://', but for file, http"
    assert capsys.readouterr().err.startswith(said)
    assert main(["config", "check", *TINY, "--mlflow.tracking_uri", "http://127.0.0.1:9"]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nope://x")
    assert main(["train", *TINY]) == 2
    assert "error: logger 'mlflow' cannot be opened: Unsupported" in capsys.readouterr().err
