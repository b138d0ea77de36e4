"""What a driver that qaray connected says of itself."""

import subprocess
import sys

MORE_WORKERS_THAN_CPUS = """
import time
from qaray.run import cluster as runtime
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


LONG_TASK = """
import time
from qaray.run import cluster as runtime
runtime.connect(local_cpus=2)
import ray
from qaray.pacing import UntilSomethingHappens

looks = []
look = UntilSomethingHappens.on_execution_step
UntilSomethingHappens.on_execution_step = lambda self, executor: (looks.append(time.monotonic()), look(self, executor))

def slow(rows):
    time.sleep(8)
    return rows

print(ray.data.range(4, override_num_blocks=1).map_batches(slow, batch_size=4).count())
print(sum(looks[-1] - 7 < each < looks[-1] - 1 for each in looks))
"""


def test_a_long_task_is_looked_at_seldom():
    done = subprocess.run([sys.executable, "-c", LONG_TASK], capture_output=True, text=True, timeout=120, check=True)
    rows, looks = map(int, done.stdout.split())
    assert rows == 4
    assert 1 <= looks <= 15, "looks in six seconds in which nothing happened; Ray Data alone takes sixty"
