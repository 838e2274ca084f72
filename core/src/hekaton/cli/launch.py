"""``hekaton launch kubernetes | slurm``: what a cluster reads to start a run."""

from __future__ import annotations

from pathlib import Path

from hekaton.cli import launch_slurm
from hekaton.cli.arguments import take_number, take_texts
from hekaton.errors import ConfigError, choices_hint
from hekaton.paths import expanded

USAGE = """\
usage: hekaton launch kubernetes FILE [FILE...] --nodes N --gpus N --image IMAGE --claim CLAIM [flags]

Write what 'kubectl apply -f -' starts a run from, after the check of 'hekaton config check' for that many
processes. FILE and the flags of a run are those of 'hekaton train'.

  --nodes N             pods, each with a node's GPUs
  --gpus N              GPUs of each, and processes
  --image IMAGE         the container image, with hekaton and the plugins that the run names
  --claim CLAIM         a persistent volume claim that all nodes can write to; the run's paths are in it
  --kind KIND           trainjob (Kubeflow Trainer, the default) or jobset
  --name NAME           of the objects; by default that of FILE
  --namespace NAME      default
  --mount PATH          where the claim is mounted, and the working directory; /workspace
  --shared_memory SIZE  of /dev/shm; 16Gi
  --grace N             seconds that a pod has to end; 300
  --restarts N          starts of all pods after a failure, at most; 100

On one machine, './run_train.sh' or 'python -m hekaton.launch --standalone --nproc_per_node N -m hekaton train
FILE' starts a process per GPU."""
_TEXTS = {"image": "", "claim": "", "kind": "trainjob", "name": "", "namespace": "default",
          "mount": "/workspace", "shared_memory": "16Gi"}  # fmt: skip
_NUMBERS = {"nodes": 0, "gpus": 0, "grace": 300, "restarts": 100}
KINDS = ("trainjob", "jobset")
PLACES = ("kubernetes", "slurm")


def run(arguments: list[str]) -> int:
    """Run ``hekaton launch ARGUMENTS``."""
    if not arguments or set(arguments) & {"-h", "--help"}:
        print(f"{USAGE}\n\n{launch_slurm.USAGE}")
        return 0
    target, *rest = arguments
    if target == "slurm":
        return launch_slurm.run(rest)
    if target not in PLACES:
        raise ConfigError(f"unknown target '{target}' of hekaton launch", hint=choices_hint(target, PLACES))
    texts, rest = take_texts(rest, _TEXTS)
    numbers = {}
    for name, default in _NUMBERS.items():
        found, rest = take_number(rest, f"--{name}", at_least=0 if name == "restarts" else 1)
        numbers[name] = default if found is None else found
    missing = [f"--{name}" for name in ("nodes", "gpus") if not numbers[name]]
    missing += [f"--{name}" for name in ("image", "claim") if not texts[name]]
    if missing:
        raise ConfigError(f"hekaton launch kubernetes needs {', '.join(missing)}", hint=USAGE.splitlines()[0])
    if texts["kind"] not in KINDS:
        raise ConfigError(f"unknown --kind '{texts['kind']}'", hint=choices_hint(texts["kind"], KINDS))
    print(_manifests(texts, numbers, rest), end="")
    return 0


def _manifests(texts: dict[str, str], numbers: dict[str, int], arguments: list[str]) -> str:
    from hekaton.config import load
    from hekaton.config.flags import split_files
    from hekaton.launch.kubernetes import Cluster, as_yaml, job_set, train_job
    from hekaton.rules import check

    files, flags = split_files(arguments)
    if not files:
        raise ConfigError("hekaton launch kubernetes needs a FILE", hint=USAGE.splitlines()[0])
    loaded = load(files, flags)
    cluster = Cluster(
        name=texts["name"] or Path(files[0]).stem.replace("_", "-").lower(),
        namespace=texts["namespace"],
        image=texts["image"],
        nodes=numbers["nodes"],
        gpus=numbers["gpus"],
        claim=texts["claim"],
        mount=texts["mount"],
        shared_memory=texts["shared_memory"],
        grace=numbers["grace"],
        restarts=numbers["restarts"],
    )
    check(loaded, world_size=cluster.nodes * cluster.gpus, device_type="cuda", here=False)
    make = train_job if texts["kind"] == "trainjob" else job_set
    return as_yaml(make(cluster, _contents(files), flags))


def _contents(files: list[str]) -> dict[str, str]:
    """Name -> content of the files: names that differ, for they are all in one folder of a pod."""
    contents: dict[str, str] = {}
    for number, path in enumerate(files, start=1):
        name = Path(path).name
        name = name if name not in contents else f"{number}-{name}"
        contents[name] = Path(expanded(path)).read_text(encoding="utf-8")
    return contents
