"""Run with `ray job submit --working-dir . -- python jobs/pipeline.py …`; takes the flags of `qaray run`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the job's working directory is the checkout

from qaray.cli import main

if __name__ == "__main__":
    sys.exit(main(["run", *sys.argv[1:]]))
