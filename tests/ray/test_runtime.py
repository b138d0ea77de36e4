"""What a driver that qaray connected says of itself, and how its processes share the cores."""

import os
import platform
import subprocess
import sys

import pytest

from qaray.timeslices import LONGEST

MORE_WORKERS_THAN_CPUS = """
import time
from qaray import runtime
runtime.connect(local_cpus=2)
import ray

@ray.remote(num_cpus=0.05)
def one():
    time.sleep(8)
    return 1

print(sum(ray.get([one.remote() for _ in range(24)])))
"""


def test_ray_does_not_speak_into_the_results():
    done = subprocess.run(
        [sys.executable, "-c", MORE_WORKERS_THAN_CPUS], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "24\n"
    assert "worker processes" not in done.stderr


HOW_IT_IS_SCHEDULED = """
import os
from qaray.timeslices import compute_in_long_slices
compute_in_long_slices()
if os.fork() == 0:
    slices = [line.split()[-1] for line in open("/proc/self/sched") if line.startswith("se.slice")]
    print(os.sched_getscheduler(0) == os.SCHED_BATCH, os.getpriority(os.PRIO_PROCESS, 0), *slices)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/sched"), reason="Linux with scheduler statistics only")
@pytest.mark.parametrize("nice", [0, 5])
def test_what_a_process_starts_computes_in_long_slices(nice):
    line = ["nice", "-n", str(nice), sys.executable, "-c", HOW_IT_IS_SCHEDULED]
    found = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    assert found[:2] == ["True", str(nice)]
    if tuple(int(part) for part in platform.release().split(".")[:2]) >= (6, 12):
        assert int(found[2]) == round(LONGEST * 1e9)
