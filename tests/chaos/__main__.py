"""`python -m tests.chaos --runs 50`: seeded runs under faults; the table goes into docs/reliability.md."""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from pathlib import Path

from tests.chaos.runs import Chaos, as_json, table_of, two_nodes
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "reliability.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="the first; the others follow")
    parser.add_argument("--folder", type=Path, help="keeps what failed; default: a temporary one")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    options = parser.parse_args()
    outcomes = []
    folder = options.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    with two_nodes() as nodes:
        chaos = Chaos(folder, nodes)
        for seed in range(options.seed, options.seed + options.runs):
            outcomes.append(chaos.run(seed))
            print(as_json(outcomes[-1]), flush=True)
    if options.write:
        text = re.sub(r"\| seed \|.*\n(\|.*\n)*", lambda _: table_of(outcomes) + "\n", PAGE.read_text())
        PAGE.write_text(text)
    bad = [outcome for outcome in outcomes if not outcome.good]
    lost, twice = sum(o.lost for o in outcomes), sum(o.duplicated for o in outcomes)
    print(f"{len(outcomes)} runs: {len(bad)} bad, {lost} papers lost, {twice} duplicated; what failed is in {folder}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
