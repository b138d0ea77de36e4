"""What the pipeline adds where the engine's work is elsewhere, as on every GPU machine: an echo engine that waits.

    ratio pipeline_overhead_elsewhere   seconds of `qaray generate --engine echo --echo_seconds S` / number · S

Papers of real length in one block, one after the other. The command's start-up is that of the same command on one
paper of a few words, and is taken off. The median of --repeat rounds, with its spread.

    python benchmarks/overhead.py [--number 16] [--seconds 4] [--repeat 5]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from generation import corpus

TINY = {"doi": "tiny", "txt": "Water boils at 100 °C at a pressure of 1 atm.", "keywords": ["water"]}


def command(papers: list[dict], seconds: float) -> float:
    """Seconds of the command."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "papers.json"
        file.write_text(json.dumps(papers))
        line = [sys.executable, "-m", "qaray.cli", "generate", "--engine=echo", f"--file_path={file}", "--no_progress"]
        line += [f"--output_dir={folder}/out", f"--echo_seconds={seconds}"]
        begun = time.perf_counter()
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    papers, alone = corpus(None, options.number), options.number * options.seconds
    command([TINY], 0.0)  # what it reads from the disk is in memory afterwards
    found = []
    for _ in range(options.repeat):
        start = command([TINY], 0.0)
        found.append((command(papers, options.seconds) - start) / alone)
        print(f"{found[-1] * alone:.1f} s for {alone:.1f} s of waiting; start-up, taken off: {start:.1f} s", flush=True)
    print(
        f"ratio pipeline_overhead_elsewhere {median(found):.3f} (of {len(found)}, {min(found):.3f} to {max(found):.3f})"
    )


if __name__ == "__main__":
    main()
