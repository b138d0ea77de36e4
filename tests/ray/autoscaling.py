"""A real Ray cluster on this machine whose autoscaler (v2) starts and stops nodes, with logical GPUs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node import node_provider
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

from tests.commands import free_port, listens, wait_for


@contextlib.contextmanager
def autoscaling_cluster(folder: Path, worker: dict[str, Any], most: int, idle_seconds: float) -> Iterator[str]:
    """Its address. The head has two CPUs; workers have the resources and labels of ``worker``, ``most`` at most.

    Ray's own AutoscalingCluster stops every other cluster of the machine when it starts.
    """
    defaults = Path(node_provider.__file__).with_name("example.yaml")
    if not defaults.exists():  # the autoscaler reads it, Ray's wheel lacks it; the configuration below is whole
        defaults.write_text("{}\n")
    port = free_port()
    address = f"{socket.gethostbyname(socket.gethostname())}:{port}"
    config = {
        "cluster_name": "qaray-test",
        "max_workers": most,
        "upscaling_speed": 8.0,
        "idle_timeout_minutes": idle_seconds / 60,
        "auth": {},
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
            "worker": {**worker, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
        **{name: [] for name in ("cluster_synced_files", "setup_commands", "initialization_commands")},
        **{name: [] for name in ("head_setup_commands", "worker_setup_commands")},
        **{name: [] for name in ("head_start_ray_commands", "worker_start_ray_commands")},
        "file_mounts": {},
    }
    file = folder / "autoscaling.json"
    file.write_text(json.dumps(config))
    line = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    line += [f"--port={port}", "--num-cpus=2", f"--autoscaling-config={file}", "--include-dashboard=false"]
    line += [f"--ray-client-server-port={free_port()}"]
    environment = {
        **os.environ,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
        "RAY_AUTH_MODE": "disabled",  # the test itself looks at the nodes
        "HF_HUB_OFFLINE": "1",
    }
    with subprocess.Popen(
        line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as head:
        try:
            wait_for(lambda: listens(port, address.split(":")[0]))
            yield address
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(head.pid, signal.SIGKILL)
