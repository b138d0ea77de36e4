"""`python -m tests.fuzz --inputs 1000000`: no input crashes the parser or the reader, or keeps it for long.

benchmarks/lengths.py has the time of the worst shapes against their length.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.fuzz.inputs import check_paper, random_case

LIMIT = 5.0  # seconds of computing for one input of some hundred characters


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        failures = fuzz(options.inputs, options.seed, Path(folder))
    return 1 if failures else 0


def fuzz(inputs: int, seed: int, folder: Path) -> int:
    """Runs the inputs; prints and counts those that fail."""
    draw = random.Random(seed)
    check_paper("5 mg")  # loads the table of units, once
    begun, failures, slowest = time.monotonic(), 0, 0.0
    signal.signal(signal.SIGPROF, _too_long)
    for number in range(inputs):
        check, given = random_case(draw, folder)
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        start = time.process_time()
        try:
            check()
        except Exception as error:
            failures += 1
            print(f"input {number}: {type(error).__name__}: {error}\n  {given!r}", flush=True)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        slowest = max(slowest, time.process_time() - start)
        if (number + 1) % 100_000 == 0:
            print(f"{number + 1:,} inputs, {failures} failed", flush=True)
    seconds = time.monotonic() - begun
    print(f"{inputs:,} inputs (seed {seed}), {failures} failed, in {seconds:.0f} s; the slowest took {slowest:.3f} s")
    return failures


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {LIMIT:g} s")


if __name__ == "__main__":
    sys.exit(main())
