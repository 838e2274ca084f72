"""What a cluster is given: valid by the published models, and what the run needs of it."""

from __future__ import annotations

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models

from hekaton.cli import main
from hekaton.errors import ConfigError
from hekaton.launch.kubernetes import Cluster

FILE = """\
[model]
name = "llama3"  # a comment that stays
tokenizer = "byte"

[training]
steps = 5
"""
NEEDED = ["--nodes", "2", "--gpus", "8", "--image", "registry/hekaton:1", "--claim", "shared"]


@pytest.fixture
def launch(tmp_path, capsys):
    path = tmp_path / "my_run.toml"
    path.write_text(FILE)

    def launch(*words: str, needed: list[str] = NEEDED) -> list[dict]:
        capsys.readouterr()
        assert main(["launch", "kubernetes", str(path), *needed, *words]) == 0
        return list(yaml.safe_load_all(capsys.readouterr().out))

    return launch


def checked(model: type, manifest: dict) -> None:
    """The published model takes it, and nothing in it is left out as unknown."""
    assert model.from_dict(manifest).to_dict() == manifest


def as_job(job_set_spec: dict, manifest: dict) -> dict:
    """The job that the controller makes of a job set's template; a schema of Kubernetes itself."""
    (replicated,) = job_set_spec["replicatedJobs"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": manifest["metadata"],
        **replicated["template"],
    }


def test_a_train_job_is_valid(launch):
    config, runtime, job = launch()
    kubernetes_validate.validate(config, "1.33", strict=True)
    checked(models.TrainerV1alpha1TrainingRuntime, runtime)
    checked(models.TrainerV1alpha1TrainJob, job)
    spec = runtime["spec"]["template"]["spec"]
    checked(models.JobsetV1alpha2JobSetSpec, spec)
    kubernetes_validate.validate(as_job(spec, runtime), "1.33", strict=True)
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"] == "my-run"
    assert job["spec"]["trainer"]["numNodes"] == 2
    assert job["spec"]["trainer"]["numProcPerNode"] == 8
    # Kubeflow Trainer finds what it fills in by these names.
    (replicated,) = spec["replicatedJobs"]
    assert replicated["template"]["metadata"]["labels"] == {
        "trainer.kubeflow.org/trainjob-ancestor-step": "trainer"
    }
    assert container(spec)["name"] == "node"


def test_a_run_file_in_the_home_folder(launch, tmp_path, capsys, monkeypatch):
    here = launch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["launch", "kubernetes", "~/my_run.toml", *NEEDED]) == 0
    assert list(yaml.safe_load_all(capsys.readouterr().out)) == here


def test_a_job_set_is_valid_and_tells_torchrun_what_kubeflow_would(launch):
    config, job_set = launch("--kind", "jobset", "--name", "seven")
    kubernetes_validate.validate(config, "1.33", strict=True)
    checked(models.JobsetV1alpha2JobSet, job_set)
    kubernetes_validate.validate(as_job(job_set["spec"], job_set), "1.33", strict=True)
    values = {one["name"]: one.get("value") for one in container(job_set["spec"])["env"]}
    assert values == {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "8",
        "PET_NODE_RANK": None,
        # JobSet names a pod's host NAME-REPLICATED_JOB-INDEX_OF_JOB-INDEX_OF_POD, below its service.
        "PET_MASTER_ADDR": "seven-node-0-0.seven",
        "PET_MASTER_PORT": "29500",
    }


def container(spec: dict) -> dict:
    (one,) = pod(spec)["containers"]
    return one


def pod(spec: dict) -> dict:
    (replicated,) = spec["replicatedJobs"]
    return replicated["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("kind", ["trainjob", "jobset"])
def test_a_pod_has_what_a_run_needs(launch, kind):
    config, *_, last = manifests = launch(
        "--kind", kind, "--grace", "900", "--shared_memory", "64Gi", "--training.seq_len", "64"
    )
    spec = last["spec"] if kind == "jobset" else manifests[1]["spec"]["template"]["spec"]
    assert config["data"] == {"my_run.toml": FILE}
    assert container(spec)["command"] == [
        "python3", "-m", "hekaton.launch", "-m", "hekaton", "train", "/etc/hekaton/my_run.toml",
        "--training.seq_len", "64",
    ]  # fmt: skip
    mounts = {one["mountPath"]: one["name"] for one in container(spec)["volumeMounts"]}
    volumes = {one["name"]: one for one in pod(spec)["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    assert volumes[mounts["/workspace"]]["persistentVolumeClaim"] == {"claimName": "shared"}
    assert volumes[mounts["/etc/hekaton"]]["configMap"] == {"name": config["metadata"]["name"]}
    assert container(spec)["workingDir"] == "/workspace"
    assert container(spec)["resources"] == {"limits": {"nvidia.com/gpu": "8"}}
    assert pod(spec)["terminationGracePeriodSeconds"] == 900


@pytest.mark.parametrize("kind", ["trainjob", "jobset"])
def test_all_pods_start_anew_but_not_for_an_error_of_the_configuration(launch, kind):
    manifests = launch("--kind", kind, "--restarts", "7")
    spec = manifests[-1]["spec"] if kind == "jobset" else manifests[1]["spec"]["template"]["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"]
    assert job["backoffLimit"] == 0
    assert spec["failurePolicy"]["maxRestarts"] == 7
    rules = [(rule["action"], rule["onExitCodes"]["values"]) for rule in job["podFailurePolicy"]["rules"]]
    assert rules == [("Ignore", [75]), ("FailJob", [ConfigError("").exit_code])]
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def refused(capsys, *words: str) -> str:
    assert main(["launch", *words]) == 2
    return capsys.readouterr().err


def test_a_run_that_kubernetes_cannot_start_is_refused(tmp_path, capsys):
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    file = str(path)
    assert "needs --claim\n" in refused(capsys, "kubernetes", file, *NEEDED[:-2])
    assert "needs --nodes, --gpus, --image, --claim" in refused(capsys, "kubernetes", file)
    assert "did you mean 'kubernetes'?" in refused(capsys, "kubernets", file)
    assert "unknown --kind 'pod'" in refused(capsys, "kubernetes", file, *NEEDED, "--kind", "pod")
    assert "needs a FILE" in refused(capsys, "kubernetes", *NEEDED)
    assert "--name 'My run' is no name" in refused(capsys, "kubernetes", file, *NEEDED, "--name", "My run")
    assert "--shared_memory 'much' is no size" in refused(
        capsys, "kubernetes", file, *NEEDED, "--shared_memory", "much"
    )
    assert "--image needs a value" in refused(capsys, "kubernetes", file, "--image")
    # The check of the configuration knows how many processes there will be.
    degrees = ["--parallelism.tensor_parallel_degree", "5"]
    assert "16 processes cannot be divided by 5" in refused(capsys, "kubernetes", file, *NEEDED, *degrees)
    assert "unknown" in refused(capsys, "kubernetes", file, *NEEDED, "--training.stepz", "5")


def test_names_that_kubernetes_does_not_take_are_refused():
    with pytest.raises(ConfigError, match="--namespace"):
        Cluster(name="a", namespace="A", image="i", nodes=1, gpus=1, claim="c")
    with pytest.raises(ConfigError, match="--name"):
        Cluster(name="a" * 41, namespace="a", image="i", nodes=1, gpus=1, claim="c")
