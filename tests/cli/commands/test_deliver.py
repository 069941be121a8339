"""A profile for a report: what would lower the peak is simulated both ways."""

from __future__ import annotations

from dnnmem.cli.commands.deliver import make_profile
from dnnmem.estimator.devices import find_device
from dnnmem.estimator.profile import Measurement
from tests.cli.commands.test_profile import small_step


def test_what_the_replay_does_not_explain_is_nobodys_saving():
    # GIVEN a step without faults, of which a run reserved a GiB more than its replay does
    measured = Measurement(reserved_bytes=2**30)
    # WHEN
    profile = make_profile(small_step("l4"), measured, find_device("l4"))
    # THEN the GiB is fragmentation, and no advice claims it
    assert profile.peak.reserved_bytes == 2**30
    assert profile.advice == ()
