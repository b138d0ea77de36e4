"""One paper with very many pairs and sentences: what it costs must grow with their number, not with its square.

    ratio long_paper_evaluate         seconds of the stages and the summary at twice the pairs / at the smaller number
    ratio long_paper_evaluate_memory  peak memory of the largest process, likewise, start-up taken off
    ratio long_paper_report           seconds of the report, likewise
    ratio long_paper_report_memory    peak memory of the report, likewise
    ratio long_paper_report_bytes     bytes of the report's pages, likewise

The paper has as many sentences as pairs, so its matrix of cosines has four times the values at twice the pairs.
Start-up (the same commands with one pair) is taken off. Embedder and judge are the echo ones, without a model. Seconds
and memory of each size are printed.

python benchmarks/long_paper.py [--pairs 1000]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


def long_paper(pairs: int) -> dict[str, Any]:
    """A paper with so many sentences and pairs, each different."""
    melts = [f"compound {j} melts at {300 + (7 * j) % 900} K and a pressure of {j + 1}.5 bar" for j in range(pairs)]
    return {
        "doi": "10.0/long",
        "txt": " ".join(f"We found that {each}." for each in melts),
        "Q&A": [
            {"Q": f"At what temperature does compound {j} melt?", "A": f"The {each}."} for j, each in enumerate(melts)
        ],
    }


@dataclass
class Cost:
    """Of one command."""

    seconds: float
    memory: int  # bytes of the largest process at its peak, without what it shares


def command(*args: object) -> Cost:
    begun, memory = time.perf_counter(), 0
    with subprocess.Popen([sys.executable, "-m", "qaray.cli", *map(str, args)], stdout=subprocess.DEVNULL) as running:
        driver = psutil.Process(running.pid)
        while running.poll() is None:
            memory = max(memory, *map(_own_memory, [driver, *_children(driver)]), 0)
            time.sleep(0.2)
    if running.returncode:
        raise SystemExit(f"{' '.join(map(str, args))} failed")
    return Cost(time.perf_counter() - begun, memory)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _own_memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.Error:
        return 0


def run(pairs: int) -> tuple[Cost, Cost, int]:
    """The costs of evaluation and report, and the bytes of the pages."""
    with tempfile.TemporaryDirectory() as folder:
        papers, out = Path(folder) / "papers.json", Path(folder) / "out"
        papers.write_text(json.dumps([long_paper(pairs)]))
        echo = ("--engine", "echo", "--embedding_model", "echo", "--no_progress", "true", "--report_papers", 0)
        evaluation = command("evaluate", "--processed_output", papers, "--output_dir", out, *echo)
        report = command("report", "--output_dir", out)
        size = sum(page.stat().st_size for page in (out / "report").rglob("*.html"))
    print(
        f"{pairs:,} pairs: evaluate {evaluation.seconds:.1f} s, {evaluation.memory / 2**20:.0f} MiB; "
        f"report {report.seconds:.1f} s, {report.memory / 2**20:.0f} MiB, {size / 1000:.0f} kB",
        flush=True,
    )
    return evaluation, report, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=1_000)
    pairs = parser.parse_args().pairs
    one, small, large = (run(number) for number in (1, pairs, 2 * pairs))
    for index, name in enumerate(("evaluate", "report")):
        start, few, many = one[index], small[index], large[index]
        print(f"ratio long_paper_{name} {(many.seconds - start.seconds) / (few.seconds - start.seconds):.3f}")
        print(f"ratio long_paper_{name}_memory {(many.memory - start.memory) / (few.memory - start.memory):.3f}")
    print(f"ratio long_paper_report_bytes {large[2] / small[2]:.3f}")


if __name__ == "__main__":
    main()
