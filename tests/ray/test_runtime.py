"""What a driver that qaray connected says of itself."""

import os
import subprocess
import sys

import pytest

from tests.commands import PATIENCE

MORE_WORKERS_THAN_CPUS = """
import pathlib, sys, time
from qaray.config import Cluster
from qaray.run.cluster import connect
connect(Cluster(local_cpus=2))
import ray

folder = pathlib.Path(sys.argv[1])

@ray.remote(num_cpus=0.05)
def one(number):
    (folder / str(number)).touch()
    while len(list(folder.iterdir())) < 12:  # twelve processes are up at once
        time.sleep(0.05)
    return 1

print(sum(ray.get([one.remote(number) for number in range(12)])))
"""


@pytest.mark.long
def test_ray_does_not_speak_into_the_results(tmp_path):
    line = [sys.executable, "-c", MORE_WORKERS_THAN_CPUS, str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, check=True, env=environment)
    assert done.stdout == "12\n"
    assert "worker processes" not in done.stderr


def test_debugging_shows_what_workers_say():
    script = "from qaray.config import Cluster\nfrom qaray.run.cluster import connect\n"
    script += "connect(Cluster(local_cpus=2))\nimport ray\n"
    script += "@ray.remote\ndef one():\n    print('a word of a worker', flush=True)\n"
    script += "ray.get(one.remote()); input(); ray.shutdown()"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"QARAY_DEBUG": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as driver:
        shown = ""
        while "a word of a worker" not in shown:
            line = driver.stdout.readline()
            assert line, shown
            shown += line
        driver.communicate("\n", timeout=PATIENCE)
    assert "Started a local Ray instance" in shown
