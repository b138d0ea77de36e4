"""How processes of a local cluster share the cores, as the kernel tells it."""

import os
import platform
import subprocess
import sys

import pytest

from qaray.timeslices import LONGEST

IN_A_CHILD = """
import os
from qaray.timeslices import compute_in_long_slices
compute_in_long_slices()
if os.fork() == 0:
    slices = [line.split()[-1] for line in open("/proc/self/sched") if line.startswith("se.slice")]
    print(os.sched_getscheduler(0) == os.SCHED_BATCH, os.getpriority(os.PRIO_PROCESS, 0), *slices)
"""
GRANTS_SLICES = tuple(int(part) for part in platform.release().split(".")[:2]) >= (6, 12)


@pytest.mark.skipif(not os.path.exists("/proc/self/sched"), reason="Linux with scheduler statistics only")
@pytest.mark.parametrize("nicer", [0, 5])
def test_what_a_process_starts_computes_in_long_slices(nicer):
    nice = os.getpriority(os.PRIO_PROCESS, 0) + nicer
    line = ["nice", "-n", str(nicer), sys.executable, "-c", IN_A_CHILD]
    found = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    assert found[:2] == ["True", str(nice)]
    if GRANTS_SLICES and found[2:]:
        assert int(found[2]) == round(LONGEST * 1e9)
