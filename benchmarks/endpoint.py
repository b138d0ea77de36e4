"""The HTTP engine against an endpoint at a model's speed: its places must never wait for prompts.

    ratio http_busy_share   time that the endpoint's places are taken / time that they are there, from the first request
                            to the last answer

The papers are synthetic, of 60 to 6,000 words. The endpoint has no model: a request keeps its place for as long as
reading and writing would take.

    python benchmarks/endpoint.py [--papers 10000] [--slots 64] [--at_once 128] [--decode_rate 80]
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

MODEL = "bundled:smollm2-135m"
LENGTHS = (4, 400)  # sentences of a paper, as many short as long ones


def write_papers(path: Path, number: int) -> None:
    numbers = random.Random(0)
    with path.open("w") as stream:
        for i in range(number):
            sentences = int(LENGTHS[0] * (LENGTHS[1] / LENGTHS[0]) ** numbers.random())
            text = " ".join(
                f"The melting point of compound {i}-{j} is {300 + (7 * j + i) % 900} K at a pressure of {j + 1}.5 bar."
                for j in range(sentences)
            )
            stream.write(json.dumps({"doi": f"10.0/http.{i}", "txt": text, "keywords": ["melting point"]}) + "\n")


def ask(url: str) -> dict:
    with urllib.request.urlopen(url) as response:
        return json.load(response)


def wait_for(url: str) -> None:
    for _ in range(240):
        try:
            ask(url)
            return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"{url} does not answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=int, default=10_000)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--at_once", type=int, default=128)
    parser.add_argument("--decode_rate", type=float, default=80.0, help="tokens/s of one place")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = [sys.executable, "-m", "qaray.engines.echo_server", "--port", str(port), "--slots", str(options.slots)]
    server += ["--base_model", MODEL, "--decode_rate", str(options.decode_rate)]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(server) as process:
        try:
            wait_for(f"http://127.0.0.1:{port}/stats")
            write_papers(Path(folder) / "papers.jsonl", options.papers)
            line = [sys.executable, "-m", "qaray.cli", "generate", "--engine", "http", "--base_model", MODEL]
            line += ["--base_url", f"http://127.0.0.1:{port}/v1", "--requests_at_once", str(options.at_once)]
            line += ["--file_path", f"{folder}/papers.jsonl", "--output_dir", f"{folder}/out", "--num_qas", "5"]
            line += ["--max_attempts", "1", "--export_json", "never", "--no_progress"]
            begun = time.perf_counter()
            subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - begun
            found = ask(f"http://127.0.0.1:{port}/stats")
            counts = json.loads(Path(folder, "out", "manifest.json").read_text())["counts"]
        finally:
            process.kill()
    print(
        f"{found['served']} prompts of {options.papers} papers: {found['seconds']:.1f} s of {seconds:.1f} s, "
        f"{counts['papers_with_pairs']} papers with pairs"
    )
    print(f"ratio http_busy_share {found['busy_share']:.3f}")


if __name__ == "__main__":
    main()
