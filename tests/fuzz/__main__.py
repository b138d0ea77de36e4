"""`python -m tests.fuzz --inputs 1000000`: no input crashes the parser or the reader, or keeps it for long.

Then the time of the worst shapes against their length: what is linear takes twice as long for twice the length.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.inputs import check_answer, check_file, check_paper, random_case

LIMIT = 5.0  # seconds of computing for one input of some hundred characters
LENGTHS = (20_000, 40_000, 80_000, 160_000, 320_000)
MEASURABLE = 100.0  # milliseconds: below, the clock and the machine's other work decide
NO_LONGER_LINEAR = 9.0  # times as long for four times the length: linear is 4, the square is 16

# Shapes that would be slow for a parser that looks ahead or back too often.
TEXTS: dict[str, Callable[[int], str]] = {
    "question marks": lambda n: "Q1: " + "? " * (n // 2),
    "markers on one line": lambda n: "Q1: a? A1: b. " * (n // 14),
    "markers, a line each": lambda n: "Q1: a?\nA1: b.\n" * (n // 14),
    "unclosed thoughts": lambda n: "<think>" * (n // 7),
    "decoration": lambda n: "*" * (n // 2) + " " * (n // 2),
    "numbers": lambda n: "1. " * (n // 3),
    "numbered lines": lambda n: "1. a\n" * (n // 5),
    "blank lines": lambda n: "Q1: a?\nA1: b." + "\n" * n + "x",
    "JSON that is not closed": lambda n: '[{"Q": "' * (n // 8),
    "backslashes": lambda n: '[{"Q": "' + "\\" * n,
    "one JSON string": lambda n: '{"Q": "' + "a" * n + '", "A": "b"}',
    "fences": lambda n: "```json " * (n // 8),
}
PAPERS: dict[str, Callable[[int], str]] = {
    "numbers and blanks": lambda n: "1 " * (n // 2),
    "dashes": lambda n: "1-" * (n // 2),
    "units": lambda n: "5 mg kg" * (n // 7),
    "brackets": lambda n: "(5 ± " * (n // 5),
    "full stops": lambda n: ". A" * (n // 3),
    "headings": lambda n: "Results\n" * (n // 8),
}
FILES: dict[str, Callable[[int], bytes]] = {
    "brackets": lambda n: b"[" * n,
    "broken objects": lambda n: b"[" + b'{"a": ,}' * (n // 8) + b"]",
    "one long string": lambda n: b'[{"doi": "' + b"a" * n,
    "quotes": lambda n: b"[" + b'"' * n,
    "commas": lambda n: b"[" + b"," * n,
    "digits": lambda n: b"[" + b"9" * n + b"]",
    "backslashes": lambda n: b'["' + b"\\" * n,
    "no UTF-8": lambda n: b"[" + b"\xff" * n,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        failures = fuzz(options.inputs, options.seed, Path(folder))
        failures += growth(Path(folder))
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


def growth(folder: Path) -> int:
    """Prints milliseconds of each shape by length, and how they grow from the last but one length to the last.

    Returns how many shapes grow like the square: four times the length takes more than NO_LONGER_LINEAR times as long.
    """
    slow = 0
    print(json.dumps({"characters": LENGTHS}))
    cases: list[tuple[str, Callable[[int], None]]] = [
        *((f"answer: {name}", lambda n, make=make: check_answer(make(n))) for name, make in TEXTS.items()),
        *((f"paper: {name}", lambda n, make=make: check_paper(make(n))) for name, make in PAPERS.items()),
        *(
            (f"file: {name}", lambda n, make=make: check_file(folder / "g.json", make(n)))
            for name, make in FILES.items()
        ),
        *(
            (f"lines: {name}", lambda n, make=make: check_file(folder / "g.jsonl", make(n)))
            for name, make in FILES.items()
        ),
    ]
    for name, check in cases:
        times = []
        for length in LENGTHS:
            start = time.process_time()  # of this process: other work on the machine does not count
            check(length)
            times.append(1000 * (time.process_time() - start))
        square = times[-1] > MEASURABLE and times[-1] / times[-3] > NO_LONGER_LINEAR
        slow += square
        shown = f"{' '.join(f'{ms:9.1f}' for ms in times)} ms   ×{times[-1] / max(times[-2], 1e-3):.1f}"
        print(f"{name:40} {shown}{'   NOT LINEAR' if square else ''}")
    print(f"{len(cases)} shapes, {slow} that are not linear")
    return slow


if __name__ == "__main__":
    sys.exit(main())
