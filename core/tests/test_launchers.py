"""What srun and the launchers of MPI say, and what is made of it."""

from __future__ import annotations

import os
import socket

import pytest

from hekaton import launchers
from hekaton.errors import ConfigError
from hekaton.launchers import PORTS, adopt_launcher, expanded_counts, first_host, idle_devices, share_cores

OURS = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Variables of the second process on the second of two machines with two each. As srun 22.05, Open MPI 4.1 and
# the Hydra of MPICH 4 set them.
SRUN = {
    "SLURM_JOB_ID": "42", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_JOB_NODELIST": "gpu[01-08]",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "1234", "PMIX_RANK": "3",
}  # fmt: skip
HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}


@pytest.fixture
def environment(monkeypatch):
    """Sets variables, and takes all of them back, those too that the code under test set."""
    kept = dict(os.environ)
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, port: [name])
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "PMI", "MPI_")) or name in OURS:
            del os.environ[name]
    yield lambda variables: os.environ.update(variables)
    os.environ.clear()
    os.environ.update(kept)


def place() -> dict[str, str]:
    return {name: os.environ[name] for name in OURS if name in os.environ}


@pytest.mark.parametrize(
    ("variables", "name", "address"),
    [
        (SRUN, "srun", "gpu07"),
        (OPEN_MPI | {"MASTER_ADDR": "a"}, "Open MPI", "a"),
        (HYDRA | {"MASTER_ADDR": "a"}, "MPICH or Intel MPI", "a"),
        # mpirun in an allocation of SLURM starts its own processes with srun, one a machine.
        (SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"} | OPEN_MPI, "Open MPI", "gpu01"),
    ],
)  # fmt: skip
def test_the_place_of_a_process_on_two_machines(environment, variables, name, address):
    environment(variables)
    assert adopt_launcher() == name
    port = os.environ.pop("MASTER_PORT")
    assert int(port) in PORTS
    assert place() == {
        "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": address,
    }  # fmt: skip


@pytest.mark.parametrize("variables", [SRUN, OPEN_MPI | {"MASTER_ADDR": "a"}, HYDRA | {"MASTER_ADDR": "a"}])
def test_all_processes_of_a_job_take_one_port(environment, variables):
    environment(variables)
    adopt_launcher()
    port = os.environ["MASTER_PORT"]
    for name in OURS:
        os.environ.pop(name, None)
    of_the_first = {"SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"}
    environment(variables | {name: "0" for name in variables if name in of_the_first})
    adopt_launcher()
    assert os.environ["MASTER_PORT"] == port


@pytest.mark.parametrize(
    "variables", [OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, HYDRA | {"MPI_LOCALNRANKS": "4"}]
)
def test_on_one_machine_no_address_is_needed(environment, variables):
    environment(variables)
    adopt_launcher()
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(
    "variables",
    [
        {},
        SRUN | {"RANK": "0", "WORLD_SIZE": "1"},  # torchrun in a step
        {name: value for name, value in SRUN.items() if not name.startswith("SLURM_STEP")},  # a batch script
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
        OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"},
    ],
)
def test_one_process_stays_one(environment, variables):
    environment(variables)
    before = place()
    assert adopt_launcher() == ""
    assert place() == before


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (OPEN_MPI, "Open MPI started 4 processes on several machines, and does not say which has rank 0"),
        (HYDRA, "MPICH or Intel MPI started 4 processes on several machines"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "says PMI_RANK = 1 of 2, but not MPI_LOCALRANKID"),
        ({"PMIX_RANK": "1"}, "one of several (PMIX_RANK = 1), and does not say how many there are"),
        (SRUN | {"SLURM_PROCID": "x"}, "SLURM_PROCID must be a number"),
        (
            SRUN | {"SLURM_STEP_NODELIST": "[1-2]"},
            "the environment's list of nodes '[1-2]' has no first host",
        ),
    ],
)
def test_processes_that_cannot_be_made_one_run_are_refused(environment, variables, message):
    environment(variables)
    with pytest.raises(ConfigError) as caught:
        adopt_launcher()
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("error", "refused"),
    [(socket.EAI_NONAME, True), (socket.EAI_NODATA, True), (socket.EAI_AGAIN, False)],
)
def test_a_first_node_without_an_address_is_refused_at_once(environment, monkeypatch, error, refused):
    """Not where the name server alone does not answer: the processes try for some minutes to meet."""

    def unknown(name, port):
        raise socket.gaierror(error, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    environment(SRUN)
    if not refused:
        adopt_launcher()
        assert os.environ["MASTER_ADDR"] == "gpu07"
        return
    with pytest.raises(
        ConfigError, match="rank 0 is on the node 'gpu07', and this machine knows no address"
    ) as caught:
        adopt_launcher()
    assert "set MASTER_ADDR to an address of that node" in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu[007-009,12],other", "gpu007"),
        ("a-b-3[5]", "a-b-35"),
        ("rack1n[2,4]-ib", "rack1n2-ib"),
    ],
)
def test_the_first_host_of_a_list(nodes, first):
    assert first_host(nodes) == first


def test_the_tasks_of_each_node():
    assert expanded_counts("2(x3),1") == [2, 2, 2, 1]
    assert expanded_counts("4") == [4]
    assert expanded_counts("") == []


def test_more_devices_than_processes_are_reported_in_one_line():
    assert idle_devices(8, {"LOCAL_WORLD_SIZE": "8"}) == ""
    assert idle_devices(1, {}) == ""
    line = idle_devices(8, {})
    assert line.startswith("1 process of this run sees 8 GPUs on this machine, and 7 will be idle: NGPU=8 ")
    assert "\n" not in line
    assert idle_devices(8, {"LOCAL_WORLD_SIZE": "6"}).startswith("6 processes of this run see 8 GPUs")


@pytest.mark.parametrize(
    ("variables", "bound_to", "threads"),
    [
        ({"LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "0"}, 26, 6),
        ({"LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "0", "SLURM_CPUS_ON_NODE": "8"}, 8, 2),
        ({"LOCAL_WORLD_SIZE": "4", "SLURM_CPUS_ON_NODE": "26"}, 6, 0),  # each has cores of its own
        ({"LOCAL_WORLD_SIZE": "1"}, 26, 0),
        ({"LOCAL_WORLD_SIZE": "4", "OMP_NUM_THREADS": "3"}, 26, 0),
    ],
)
def test_cores_of_a_machine_are_shared_out(environment, monkeypatch, capsys, variables, bound_to, threads):
    os.environ.pop("OMP_NUM_THREADS", None)
    environment(variables)
    monkeypatch.setattr(os, "cpu_count", lambda: 26)
    monkeypatch.setattr(launchers, "cores", lambda: bound_to)
    assert share_cores() == threads
    assert os.environ.get("OMP_NUM_THREADS") == (
        str(threads) if threads else variables.get("OMP_NUM_THREADS")
    )
    said = f"OMP_NUM_THREADS = {threads}: {bound_to} cores, 4 processes\n" if threads else ""
    assert capsys.readouterr().err == said
