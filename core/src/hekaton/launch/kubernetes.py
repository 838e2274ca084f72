"""What a Kubernetes cluster reads to start a run: a Kubeflow Trainer ``TrainJob``, or a plain ``JobSet``.

Both start one pod per node, in which ``python -m hekaton.launch`` starts a process per GPU. The pods of a run
that fails are all started anew, unless the error is one that another start would meet again. Pods of a run
that was asked to stop, and has saved, start again however often.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from hekaton.errors import AGAIN, ConfigError

Manifest: TypeAlias = dict[str, Any]

FILES = "/etc/hekaton"
"""Folder of the run's TOML files in a pod."""
CONTAINER = "node"
"""Name of the container and of the replicated job, which Kubeflow Trainer looks for."""
PORT = 29500
USER_ERROR = 2
_NAME = re.compile(r"[a-z]([a-z0-9-]*[a-z0-9])?")
_QUANTITY = re.compile(r"[1-9]\d*(Ki|Mi|Gi|Ti)?")
LONGEST_NAME = 40
"""Characters: what Kubernetes adds for jobs, pods and their services must fit into 63."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Where and how a run is started.

    :param name: of all objects that are made.
    :param gpus: of each node, a process for each.
    :param claim: a persistent volume claim that all nodes can write to (``ReadWriteMany``).
    :param mount: where it is mounted, and the processes' working directory.
    :param shared_memory: size of ``/dev/shm``, through which loader workers and NCCL exchange data.
    :param grace: seconds from SIGTERM to SIGKILL.
    :param restarts: of all pods together.
    """

    name: str
    namespace: str
    image: str
    nodes: int
    gpus: int
    claim: str
    mount: str = "/workspace"
    shared_memory: str = "16Gi"
    grace: int = 300
    restarts: int = 100

    def __post_init__(self) -> None:
        for what, value in (("name", self.name), ("namespace", self.namespace), ("claim", self.claim)):
            if not _NAME.fullmatch(value) or len(value) > LONGEST_NAME:
                raise ConfigError(
                    f"--{what} '{value}' is no name for Kubernetes",
                    hint=f"at most {LONGEST_NAME} small letters, digits and hyphens, a letter first",
                )
        if not _QUANTITY.fullmatch(self.shared_memory):
            raise ConfigError(f"--shared_memory '{self.shared_memory}' is no size", hint="such as 16Gi")
        if not self.mount.startswith("/"):
            raise ConfigError(f"--mount '{self.mount}' is no absolute path")


def train_job(cluster: Cluster, files: Mapping[str, str], flags: Sequence[str]) -> list[Manifest]:
    """The TOML files, a ``TrainingRuntime`` and a ``TrainJob`` of Kubeflow Trainer.

    :param files: name -> content, in the order in which they count.
    :param flags: of ``hekaton train``.
    """
    runtime = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": _metadata(cluster) | {"labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {
            "mlPolicy": {"numNodes": cluster.nodes, "torch": {}},
            "template": {"spec": _jobs(cluster, files, flags, env=(), of_kubeflow=True)},
        },
    }
    job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": _metadata(cluster),
        "spec": {
            "runtimeRef": {
                "apiGroup": "trainer.kubeflow.org",
                "kind": "TrainingRuntime",
                "name": cluster.name,
            },
            "trainer": {
                "image": cluster.image,
                "numNodes": cluster.nodes,
                "numProcPerNode": cluster.gpus,
                "resourcesPerNode": _resources(cluster),
            },
        },
    }
    return [_config_map(cluster, files), runtime, job]


def job_set(cluster: Cluster, files: Mapping[str, str], flags: Sequence[str]) -> list[Manifest]:
    """The TOML files, and a ``JobSet`` that tells torchrun what Kubeflow Trainer would.

    :param files: name -> content, in the order in which they count.
    :param flags: of ``hekaton train``.
    """
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    env: list[Manifest] = [
        {"name": "PET_NNODES", "value": str(cluster.nodes)},
        {"name": "PET_NPROC_PER_NODE", "value": str(cluster.gpus)},
        {"name": "PET_NODE_RANK", "valueFrom": index},
        {"name": "PET_MASTER_ADDR", "value": f"{cluster.name}-{CONTAINER}-0-0.{cluster.name}"},
        {"name": "PET_MASTER_PORT", "value": str(PORT)},
    ]
    return [
        _config_map(cluster, files),
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": _metadata(cluster),
            "spec": _jobs(cluster, files, flags, env=env, of_kubeflow=False),
        },
    ]


def _jobs(
    cluster: Cluster,
    files: Mapping[str, str],
    flags: Sequence[str],
    *,
    env: Sequence[Manifest],
    of_kubeflow: bool,
) -> Manifest:
    """The spec of a job set. One pod that fails ends the job, and all start anew: processes that lost one of
    them cannot go on."""
    template: Manifest = {
        "spec": {
            "parallelism": cluster.nodes,
            "completions": cluster.nodes,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "podFailurePolicy": {
                "rules": [
                    # A run that was asked to stop has saved: its pods start again, and no restart is counted.
                    {"action": "Ignore", "onExitCodes": _exit_code(AGAIN)},
                    {"action": "FailJob", "onExitCodes": _exit_code(USER_ERROR)},
                ]
            },
            "template": {"spec": _pod(cluster, files, flags, env=env)},
        }
    }
    if of_kubeflow:
        template["metadata"] = {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}}
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {
            "maxRestarts": cluster.restarts,
            "rules": [
                {
                    "name": "errors-of-the-configuration",
                    "action": "FailJobSet",
                    "onJobFailureReasons": ["PodFailurePolicy"],
                }
            ],
        },
        "replicatedJobs": [{"name": CONTAINER, "replicas": 1, "template": template}],
    }


def _exit_code(status: int) -> Manifest:
    return {"containerName": CONTAINER, "operator": "In", "values": [status]}


def _pod(
    cluster: Cluster, files: Mapping[str, str], flags: Sequence[str], *, env: Sequence[Manifest]
) -> Manifest:
    paths = [f"{FILES}/{name}" for name in files]
    container: Manifest = {
        "name": CONTAINER,
        "image": cluster.image,
        "command": ["python3", "-m", "hekaton.launch", "-m", "hekaton", "train", *paths, *flags],
        "workingDir": cluster.mount,
        "resources": _resources(cluster),
        "volumeMounts": [
            {"name": "files", "mountPath": FILES, "readOnly": True},
            {"name": "storage", "mountPath": cluster.mount},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    if env:
        container["env"] = list(env)
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": cluster.grace,
        "containers": [container],
        "volumes": [
            {"name": "files", "configMap": {"name": cluster.name}},
            {"name": "storage", "persistentVolumeClaim": {"claimName": cluster.claim}},
            {
                "name": "shared-memory",
                "emptyDir": {"medium": "Memory", "sizeLimit": cluster.shared_memory},
            },
        ],
    }


def _config_map(cluster: Cluster, files: Mapping[str, str]) -> Manifest:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata(cluster), "data": dict(files)}


def _metadata(cluster: Cluster) -> Manifest:
    return {"name": cluster.name, "namespace": cluster.namespace}


def _resources(cluster: Cluster) -> Manifest:
    return {"limits": {"nvidia.com/gpu": str(cluster.gpus)}}


def as_yaml(manifests: Sequence[Manifest]) -> str:
    """The manifests as one file for ``kubectl apply``; TOML files stay readable in it."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return yaml.dump_all(manifests, Dumper=Dumper, sort_keys=False, explicit_start=True, width=110)
