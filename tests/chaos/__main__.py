"""`python -m tests.chaos --runs 50`: seeded runs under faults; the table goes into docs/reliability.md."""

from __future__ import annotations

import re
import sys

from tests.chaos.runs import Chaos, as_json, folder_of, parser_of, table_of, two_nodes, verdict
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "reliability.md"


def main() -> int:
    parser = parser_of(__doc__, runs=50)
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    options = parser.parse_args()
    outcomes = []
    folder = folder_of(options, "chaos-")
    with two_nodes() as nodes:
        chaos = Chaos(folder, nodes)
        for seed in range(options.seed, options.seed + options.runs):
            outcomes.append(chaos.run(seed))
            print(as_json(outcomes[-1]), flush=True)
    if options.write:
        text = re.sub(r"\| seed \|.*\n(\|.*\n)*", lambda _: table_of(outcomes) + "\n", PAGE.read_text())
        PAGE.write_text(text)
    return verdict(outcomes, folder)


if __name__ == "__main__":
    sys.exit(main())
