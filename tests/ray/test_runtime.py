"""What a driver that qaray connected says of itself."""

import subprocess
import sys

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
