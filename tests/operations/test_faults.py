"""Random faults of a single process: nothing is lost beyond the last checkpoint, and losses are those of a run that
nothing disturbed. ``benchmarks/faults.py`` takes more, and other ways to start a run."""

from random import Random

import pytest
from fault_lab import Lab
from lab_starts import INTERVAL, Single

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SEED, RUNS = 15, 2


def test_a_run_that_is_disturbed_ends_as_one_that_is_not(tmp_path):
    random = Random(SEED)
    with Lab(tmp_path, [Single.kind], hang=60.0) as lab:
        faults = [one for one in lab.faults(Single.kind) if one.ends is not None]  # a stop would be a minute
        to_come = [one for _ in range(RUNS) for one in random.sample(faults, len(faults))]
        outcomes = []
        while len(outcomes) < len(to_come):  # a run may be done before its last fault
            outcomes += lab.disturb(Single.kind, to_come[len(outcomes) :][: len(faults)], random)
        accounts = [account for _, account in lab.accounts]
    assert [one.fault for one in outcomes] == [one.name for one in to_come]
    assert max(one.lost for one in outcomes) <= INTERVAL
    for account in accounts:
        assert sum(account.seconds.values()) >= 0.99 * account.total
