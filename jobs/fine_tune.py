"""Run with `ray job submit --working-dir . -- python jobs/fine_tune.py …`; takes the flags of `qaray fine-tune`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the job's working directory is the checkout

from qaray.cli import main

if __name__ == "__main__":
    sys.exit(main(["fine-tune", *sys.argv[1:]]))
