"""A run as a job of SLURM on two nodes, by the script of ``hekaton launch slurm``: whatever comes between, it ends with
the losses of a run that nothing disturbed. All cases but the first are for ``HEKATON_TEST_OPERATIONS=all``."""

import os
from random import Random

import lab_hosts
import lab_slurm
import pytest
from fault_lab import Lab
from lab_faults import RESTARTS
from lab_starts import Job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(lab_slurm.why_not()), reason=lab_slurm.why_not()),
]
needs_all = pytest.mark.skipif(
    os.environ.get("HEKATON_TEST_OPERATIONS") != "all",
    reason="set HEKATON_TEST_OPERATIONS=all: half a minute each",
)
needs_hosts = pytest.mark.skipif(bool(lab_hosts.why_not()), reason=lab_hosts.why_not())


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with Lab(tmp_path_factory.mktemp("lab"), [Job.kind], hang=20.0) as lab:
        yield lab


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("preemption", 75),
        pytest.param("SIGTERM", 75, marks=needs_all),
        pytest.param("kill -9 of a node's daemon", 75, marks=[needs_all, needs_hosts]),
        pytest.param("link cut", 75, marks=[needs_all, needs_hosts]),
        pytest.param(RESTARTS, None, marks=[needs_all, needs_hosts]),
    ],
)
def test_the_job_starts_again_and_ends_complete(lab, fault, status):
    (found,) = [one for one in lab.faults(Job.kind) if one.name == fault]
    (outcome,) = lab.disturb(Job.kind, [found], Random(1), early=False)
    assert outcome.status == status
