"""Clusters that change under a run: nodes that come and go, that are waited for, and that never come."""

import pyarrow.dataset as pads
import pytest

from tests.chaos.faults import release
from tests.commands import PATIENCE, check_complete, qaray, start, wait_for
from tests.conftest import make_paper, with_pairs, write_jsonl
from tests.ray.autoscaling import autoscaling_cluster

SMALL = ("--context_size", "4096", "--max_gen_len", "128", "--num_qas", "2", "--dtype", "float32", "--seq_len", "2048")


class Nodes:
    """Counts living nodes with a GPU. Public ways need the dashboard, which this cluster is without."""

    def __init__(self, address):
        self.address = address

    def now(self):
        from ray._raylet import GcsClient

        nodes = GcsClient(address=self.address).get_all_node_info().values()
        return sum(node.state == 0 and node.resources_total.get("GPU", 0) > 0 for node in nodes)


@pytest.mark.long
def test_pools_grow_from_nothing_and_shrink_to_nothing(tmp_path, tiny_model):
    """0 → 2 → 0 nodes for generate, then for evaluate, and for a generation that goes on with new papers."""
    file, out = write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(40)]), tmp_path / "out"
    generate = ("generate", "--file_path", file, "--output_dir", out, "--base_model", tiny_model, *SMALL)
    generate += ("--engine", "transformers", "--gpus_per_actor", "1", "--max_attempts", "1")
    generate += ("--threads_per_actor", "1", "--max_batch", "4")
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [with_pairs(i) for i in range(20)])
    evaluate = ("evaluate", "--processed_output", pairs, "--output_dir", tmp_path / "scores")
    evaluate += ("--judge_model", tiny_model, "--engine", "transformers")
    evaluate += ("--metrics", "racar", "--judge_actors", "2:2", "--gpus_per_actor", "1", "--threads_per_actor", "1")
    evaluate += ("--context_size", "4096", "--seq_len", "1024", "--dtype", "float32")
    worker = {"resources": {"CPU": 1, "GPU": 1}, "labels": {"kind": "spot"}}
    with autoscaling_cluster(tmp_path, worker, most=2, idle_seconds=4) as address:
        nodes = Nodes(address)

        def run(*args):
            """Runs a command that is held until two nodes are there; none is left of it."""
            assert nodes.now() == 0
            folder = tmp_path / f"faults-{len(list(tmp_path.glob('faults-*')))}"
            folder.mkdir()
            faults = {"hold": {"transformers": 4, "scorer": 0}, "folder": folder}  # a pool grows after its first blocks
            driver = start(*args, local=True, faults=faults, RAY_ADDRESS=address, RAY_AUTH_MODE="disabled")
            wait_for(lambda: nodes.now() == 2, driver)
            for stage in faults["hold"]:
                release(folder, stage)
            output, _ = driver.communicate(timeout=PATIENCE)
            assert driver.returncode == 0, output
            wait_for(lambda: nodes.now() == 0)

        run(*generate, "--actors", "1:2", "--node_labels", "kind=spot")
        check_complete(out, {make_paper(i)["doi"] for i in range(40)})
        run(*evaluate)
        assert pads.dataset(str(tmp_path / "scores" / "evaluation" / "racar.parquet")).count_rows() == 60
        write_jsonl(tmp_path / "p.jsonl", [make_paper(i) for i in range(60)])
        run(*generate, "--actors", "2:2")
        check_complete(out, {make_paper(i)["doi"] for i in range(60)})


def test_a_node_that_never_comes_is_told_after_the_stated_wait(tmp_path, tiny_model):
    file = write_jsonl(tmp_path / "p.jsonl", [make_paper(0)])
    args = ("generate", "--file_path", file, "--output_dir", tmp_path / "out", "--base_model", tiny_model, *SMALL)
    done = qaray(*args, "--engine", "transformers", "--gpus_per_actor", "1", "--wait_hours", "0.0001")
    assert done.returncode == 1
    assert "no node with 1 GPU joined the cluster within 0.0001 hours" in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("qaray: ")]) == 1
    assert "Traceback" not in done.stderr
    more = ("--cpus_per_actor", "1000", "--node_labels", "kind=none")
    done = qaray(*args, "--engine", "transformers", *more, "--wait_hours", "0.0001")
    assert "no node with 1000 free CPUs and the labels kind=none joined" in done.stderr
    done = qaray(*args, "--engine", "transformers", *more[2:], "--wait_hours", "0.0001")
    assert "no node with a free CPU and the labels kind=none joined" in done.stderr


def test_a_run_that_waits_for_its_node_can_be_stopped(tmp_path, tiny_model):
    file, out = write_jsonl(tmp_path / "p.jsonl", [make_paper(0)]), tmp_path / "out"
    args = ("generate", "--file_path", file, "--output_dir", out, "--base_model", tiny_model, *SMALL)
    args += ("--engine", "transformers", "--gpus_per_actor", "1")
    waiting = start(*args, faults={"first_notice": 0.5})
    assert "waiting for a node with 1 GPU" in waiting.stdout.readline()
    waiting.terminate()
    output, _ = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 143, output
    assert "stopped before work began" in output
    assert not (out / "lease.json").exists()


@pytest.mark.parametrize("bad", ["spot", "=x", "a="])
def test_labels_that_are_none(tmp_path, bad):
    done = qaray("generate", "--file_path", "x", "--output_dir", tmp_path, "--engine", "echo", "--node_labels", bad)
    assert done.returncode == 2
    assert "node_labels must be KEY=VALUE" in done.stderr
