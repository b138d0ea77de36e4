"""Synthetic papers through the echo engine and the cheap metrics: what a paper costs must not grow with their number.

ratio scale_seconds_per_paper   seconds a paper of generate at the larger number / at the smaller, start-up taken off
ratio scale_driver_memory       peak memory of generate's driver at the larger number / at the smaller
ratio scale_evaluate_seconds_per_paper, scale_evaluate_driver_memory   the same for coverage and grounding

Also printed, with no plain way to compare: the driver's own core time, the object store at its peak, files and bytes
that are left, and the time of a start that finds 99 % done. `--parts generate` leaves evaluation and resume out.

python benchmarks/scale.py [--papers 10000 100000] [--parts generate,resume,evaluate] [--words 150]
       [--embed_block 64]
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

import psutil

STORE = Path("/dev/shm")  # where Ray's object store lies
LATER = 100  # every so many-th file of answers is taken away before the resume


def write_papers(path: Path, number: int, words: int) -> None:
    """About so many words a paper, each paper different."""
    with path.open("w") as stream:
        for i in range(number):
            text = " ".join(
                f"The melting point of compound {i}-{j} is {300 + (7 * j + i) % 900} K at a pressure of {j + 1}.5 bar."
                for j in range(words // 14)
            )
            stream.write(json.dumps({"doi": f"10.0/scale.{i}", "txt": text, "keywords": ["melting point"]}) + "\n")


@dataclass
class Cost:
    """Of one command."""

    seconds: float
    driver: int  # bytes at its peak
    store: int  # bytes of the object store at its peak
    driver_cpu: float  # seconds of a core: what does not get faster with more machines


def command(*args: object) -> Cost:
    line = [sys.executable, "-m", "qaray.cli", *map(str, args), "--engine", "echo"]
    line += ["--no_progress", "true", "--report_papers", "0"]  # a page costs the same in any run
    begun, driver, store, cpu = time.perf_counter(), 0, 0, 0.0
    before = psutil.disk_usage(str(STORE)).used if STORE.exists() else 0
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as running:
        process = psutil.Process(running.pid)
        while running.poll() is None:
            try:
                driver = max(driver, process.memory_info().rss)
                cpu = sum(process.cpu_times()[:2])
            except psutil.NoSuchProcess:
                break
            if STORE.exists():
                store = max(store, psutil.disk_usage(str(STORE)).used - before)
            time.sleep(0.05)
    if running.returncode:
        raise SystemExit(f"{' '.join(line)} failed")
    return Cost(time.perf_counter() - begun, driver, store, cpu)


def run(number: int, parts: list[str], words: int, embed_block: int) -> dict[str, Cost]:
    """The costs of the parts for so many papers."""
    costs = {}
    with tempfile.TemporaryDirectory() as folder:
        papers, out = Path(folder) / "p.jsonl", Path(folder) / "out"
        write_papers(papers, number, words)
        generate = ("generate", "--file_path", papers, "--output_dir", out, "--num_qas", 5, "--export_json", "never")
        costs["generate"] = command(*generate)
        counts = json.loads((out / "manifest.json").read_text())["counts"]
        assert counts["papers_with_pairs"] == number, counts
        sizes = [file.stat().st_size for file in out.rglob("*") if file.is_file()]
        print(f"  {len(sizes)} files, {sum(sizes) / number:.0f} bytes a paper", flush=True)
        if "resume" in parts:
            answers = sorted((out / "generations").glob("*.parquet"))
            for file in answers[::LATER]:
                file.unlink()
            costs["resume"] = command(*generate)
            counts = json.loads((out / "manifest.json").read_text())["counts"]
            assert counts["papers_with_pairs"] == number, counts
            done = len(answers) - len(answers[::LATER])
            print(
                f"  resume with {done} of {len(answers)} files of answers: {costs['resume'].seconds:.1f} s", flush=True
            )
        if "evaluate" in parts:
            evaluate = ("evaluate", "--output_dir", out, "--metrics", "coverage,grounding")
            costs["evaluate"] = command(*evaluate, "--embed_block", embed_block)
            measured = json.loads((out / "evaluation/manifest.json").read_text())["counts"]["papers"]
            assert measured == number, measured
    return costs


def times(cost: Cost) -> tuple[float, float]:
    return cost.seconds, cost.driver_cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=int, nargs=2, default=[10_000, 100_000])
    parser.add_argument("--parts", default="generate")
    parser.add_argument("--words", type=int, default=150, help="of a paper; a real one has 3,000 to 5,000")
    parser.add_argument("--embed_block", type=int, default=64, help="papers a block of coverage has: 64 as on GPUs")
    options = parser.parse_args()
    small, large = options.papers
    parts = options.parts.split(",")
    found = {}
    for number in (1, small, large):
        print(f"{number:,} papers", flush=True)
        found[number] = run(number, parts, options.words, options.embed_block)
        for part, cost in found[number].items():
            start = found[1][part]
            if number > 1:
                each = [1000 * (a - b) / number for a, b in zip(times(cost), times(start), strict=True)]
                print(f"  {part}: {each[0]:.3f} ms a paper, of them {each[1]:.3f} ms of the driver's core", flush=True)
            print(
                f"  {part}: {cost.seconds:.1f} s, driver {cost.driver / 2**20:.0f} MiB, object store "
                f"{cost.store / 2**20:.0f} MiB",
                flush=True,
            )
    for part, name in (("generate", "scale"), ("evaluate", "scale_evaluate")):
        if part in parts or part == "generate":
            start, few, many = (found[number][part] for number in (1, small, large))
            each = [(cost.seconds - start.seconds) / number for cost, number in ((few, small), (many, large))]
            print(f"ratio {name}_seconds_per_paper {each[1] / each[0]:.3f}")
            print(f"ratio {name}_driver_memory {many.driver / few.driver:.3f}")


if __name__ == "__main__":
    main()
