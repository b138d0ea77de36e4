"""The shipped cluster files against Ray's own schema and validation, KubeRay's fields, and our rules of security."""

import copy
import json
import re
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

import qaray
from tests.conftest import ROOT

CLUSTER = ROOT / "cluster"
LAUNCHER = ("local", "aws", "gcp")
KUBERAY = ("kuberay-cluster", "kuberay-job")
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
# Ray's own CRDs are a megabyte each: this holds the fields of their Go types, closed, without Kubernetes' own.
KUBERAY_SCHEMA = yaml.safe_load((ROOT / "tests/data/kuberay.schema.yaml").read_text())


def load(name):
    return yaml.safe_load((CLUSTER / f"{name}.yaml").read_text())


def resources(name):
    return list(yaml.safe_load_all((CLUSTER / f"{name}.yaml").read_text()))


def cluster_spec(resource):
    return resource["spec"] if resource["kind"] == "RayCluster" else resource["spec"]["rayClusterSpec"]


@pytest.mark.parametrize("name", LAUNCHER)
def test_ray_takes_the_launcher_files(name):
    config = load(name)
    jsonschema.validate(config, SCHEMA)
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**config, "max_worker": 3}, SCHEMA)


@pytest.mark.parametrize("name", ["aws", "gcp"])
def test_spot_machines_generate_and_lasting_ones_train(name):
    kinds = load(name)["available_node_types"]
    assert set(kinds) == {"head", "gpu_spot", "gpu_train"}
    assert all(kind.get("min_workers", 0) == 0 for kind in kinds.values())
    assert {name: kind["labels"]["ray.io/market-type"] for name, kind in kinds.items()} == {
        "head": "on-demand", "gpu_spot": "spot", "gpu_train": "on-demand",
    }  # fmt: skip
    assert "GPU" not in kinds["head"]["resources"]
    spot = json.dumps(kinds["gpu_spot"]["node_config"]).lower()
    assert '"spot"' in spot
    assert '"spot"' not in json.dumps(kinds["gpu_train"]["node_config"]).lower()


@pytest.mark.parametrize("name", LAUNCHER)
def test_a_token_is_wanted_and_nothing_is_public(name):
    config = load(name)
    starts = [line for line in config["head_start_ray_commands"] if "--head" in line]
    workers = [line for line in config["worker_start_ray_commands"] if "--address" in line]
    assert len(starts) == len(workers) == 1
    for line in (*starts, *workers):
        assert "RAY_AUTH_MODE=token" in line
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert "0.0.0.0" not in (CLUSTER / f"{name}.yaml").read_text()
    assert "IpPermissions" not in json.dumps(config)


@pytest.mark.parametrize("name", KUBERAY)
def test_kuberay_and_rays_autoscaler_take_the_manifests(name):
    jsonschema.Draft7Validator.check_schema(KUBERAY_SCHEMA)
    *others, resource = resources(name)
    jsonschema.validate(resource, KUBERAY_SCHEMA)
    assert [other["kind"] for other in others] == ["PriorityClass", "NetworkPolicy"]
    spec = cluster_spec(resource)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    derived = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "qaray", "namespace": "default"}, "spec": spec}
    )
    kinds = derived["available_node_types"]
    assert kinds["gpu-spot"]["resources"]["GPU"] == 1
    assert kinds["gpu-train"]["resources"]["GPU"] == 8
    assert kinds["gpu-spot"]["min_workers"] == kinds["gpu-train"]["min_workers"] == 0
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert groups["gpu-spot"]["template"]["spec"]["priorityClassName"] == others[0]["metadata"]["name"]
    assert "priorityClassName" not in groups["gpu-train"]["template"]["spec"]
    broken = copy.deepcopy(resource)
    cluster_spec(broken)["workerGroupSpecs"][0]["maxReplica"] = 3
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, KUBERAY_SCHEMA)


def test_both_manifests_have_the_same_cluster():
    (*first, cluster), (*second, job) = resources("kuberay-cluster"), resources("kuberay-job")
    assert first == second
    assert cluster_spec(cluster) == cluster_spec(job)


def test_versions_are_those_that_were_tested():
    constraints = (ROOT / "constraints.txt").read_text()
    tested = re.search(r"^ray(?:\[\w+\])?==([\d.]+)", constraints, re.M)[1]
    for name in KUBERAY:
        assert cluster_spec(resources(name)[-1])["rayVersion"] == tested
    assert f"rayproject/ray:{tested}-" in (ROOT / "docker/Dockerfile").read_text()
    for file in CLUSTER.glob("*.yaml"):
        for image in re.findall(r"/qaray:([\d.]+)", file.read_text()):
            assert image == qaray.__version__


def test_what_the_image_copies_is_there():
    for line in (ROOT / "docker/Dockerfile").read_text().splitlines():
        if line.startswith("COPY"):
            for source in line.split()[2:-1]:
                assert (ROOT / source).exists(), source


def test_no_secret_is_in_a_shipped_file():
    for file in [*CLUSTER.glob("*"), *(ROOT / "docker").glob("*"), *(ROOT / "jobs").glob("*.py")]:
        text = file.read_text()
        assert not re.search(r"RAY_AUTH_TOKEN=[0-9a-f]{8}|AKIA[0-9A-Z]{16}|hf_[A-Za-z]{20}", text), file


def test_the_dashboard_draws_every_metric_and_no_other():
    from qaray.observe.meter import GAUGES
    from qaray.run.telemetry import ENGINE

    text = (CLUSTER / "grafana.json").read_text()
    assert json.loads(text)["panels"]
    assert {name.removeprefix("ray_") for name in re.findall(r"ray_qaray_\w+", text)} == {*GAUGES, *ENGINE}
