"""Synthetic papers through the echo engine: the driver's memory and the time per paper must not grow with their number.

ratio scale_seconds_per_paper   seconds per paper at the larger number / at the smaller, start-up taken off
ratio scale_driver_memory       peak memory of the driver at the larger number / at the smaller

python benchmarks/scale.py [--papers 10000 100000]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


def write_papers(path: Path, number: int) -> None:
    """About 150 words a paper, each different."""
    with path.open("w") as stream:
        for i in range(number):
            text = " ".join(
                f"The melting point of compound {i}-{j} is {300 + (7 * j + i) % 900} K at a pressure of {j + 1}.5 bar."
                for j in range(10)
            )
            stream.write(json.dumps({"doi": f"10.0/scale.{i}", "txt": text, "keywords": ["melting point"]}) + "\n")


def run(number: int) -> tuple[float, int]:
    """(seconds, bytes of the driver at its peak) of the whole command."""
    with tempfile.TemporaryDirectory() as folder:
        papers, out = Path(folder) / "p.jsonl", Path(folder) / "out"
        write_papers(papers, number)
        line = [
            sys.executable,
            "-m",
            "qaray.cli",
            "generate",
            "--engine",
            "echo",
            "--num_qas",
            "5",
            "--no_progress",
            "true",
        ]
        begun, peak = time.perf_counter(), 0
        with subprocess.Popen([*line, "--file_path", papers, "--output_dir", out, "--export_json", "never"]) as driver:
            process = psutil.Process(driver.pid)
            while driver.poll() is None:
                try:
                    peak = max(peak, process.memory_info().rss)
                except psutil.NoSuchProcess:
                    break
                time.sleep(0.05)
        seconds = time.perf_counter() - begun
        counts = json.loads((out / "manifest.json").read_text())["counts"]
        assert counts["papers_with_pairs"] == number, counts
        return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=int, nargs=2, default=[10_000, 100_000])
    small, large = parser.parse_args().papers
    start, _ = run(1)
    print(f"start-up {start:.1f} s", flush=True)
    found = {}
    for number in (small, large):
        seconds, peak = run(number)
        found[number] = ((seconds - start) / number, peak)
        each = 1000 * found[number][0]
        print(f"{number} papers: {seconds:.1f} s, {each:.3f} ms a paper, driver {peak / 2**20:.0f} MiB", flush=True)
    print(f"ratio scale_seconds_per_paper {found[large][0] / found[small][0]:.3f}")
    print(f"ratio scale_driver_memory {found[large][1] / found[small][1]:.3f}")


if __name__ == "__main__":
    main()
