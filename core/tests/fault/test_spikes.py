"""Which losses are far above those of recent steps."""

from __future__ import annotations

import math

from hekaton.fault.spikes import Spikes


def after(*losses: float) -> Spikes:
    spikes = Spikes(factor=2.0, window=5)
    for loss in losses:
        spikes.add(loss)
    return spikes


def test_the_median_is_of_the_newest_losses_and_needs_five():
    assert not after(1.0, 1.0, 1.0, 1.0).has(math.inf)
    spikes = after(100.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    assert (spikes.usual, spikes.has(6.0), spikes.has(6.1)) == (3.0, False, True)


def test_a_loss_that_is_not_finite_is_a_spike_and_no_part_of_the_median():
    spikes = after(math.nan, 1.0, 2.0, math.inf, 3.0, 4.0, 5.0)
    assert spikes.losses() == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert spikes.has(math.nan)
    assert spikes.has(math.inf)


def test_of_a_median_that_is_not_above_zero_there_is_no_multiple():
    assert not after(-5.0, -4.0, -3.0, -2.0, -1.0).has(-2.0)
    assert not after(-5.0, -4.0, 0.0, 1.0, 2.0).has(3.0)
