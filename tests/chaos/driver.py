"""`qaray …` on the cluster at RAY_ADDRESS, with the faults of QARAY_FAULTS in its workers."""

from __future__ import annotations

import json
import logging
import os
import sys

from tests.chaos.faults import VARIABLE, install_in_driver


def main() -> int:
    import ray

    from qaray.cli import main as qaray
    from qaray.run.cluster import no_standard_error

    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    variables = {name: os.environ[name] for name in (VARIABLE, "PYTHONPATH", "HF_HUB_OFFLINE") if name in os.environ}
    plan = json.loads(variables.get(VARIABLE, "{}"))
    hook = {"worker_process_setup_hook": "tests.chaos.faults.install"} if plan else {}
    install_in_driver(plan)
    import psutil  # the one that Ray brings

    psutil.PROCFS_PATH = plan.get("outer_proc", "/proc")  # Ray looks for its node among the processes
    with no_standard_error():
        ray.init(
            runtime_env={"env_vars": variables, **hook},
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace="qaray",
        )
    psutil.PROCFS_PATH = "/proc"
    return qaray(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
