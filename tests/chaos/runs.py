"""Seeded runs of qaray under faults, and what must hold after each: every paper once, nothing else.

A seed decides stage, fault and moment. The run happens on a real Ray cluster of two nodes on this machine; its command
is started again, as a user would, until it ends well, four times at most.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.dataset as pads

from tests.chaos.faults import VARIABLE, held, release
from tests.commands import PATIENCE
from tests.conftest import make_paper, python_path, read_jsonl, save_tiny_model, with_pairs, write_jsonl
from tests.train.conftest import SEED_FLAGS, losses, write_examples

PAPERS = {"generate": 240, "transformers": 16, "evaluate": 24}  # a run
ROWS = 20  # papers of a block of the echo engine
PAIRS = 3
STARTS = 4  # of a command, at most
WORD = "deadlyword"
NOT_STRUCK = "the fault did not strike"

# Faults from within (see tests.chaos.faults) and from without, by stage.
WITHIN = {
    "poison": ("generate", "evaluate"),
    "every_write": ("generate", "evaluate"),
    "full_disk": ("generate", "evaluate"),
    "read_only": ("generate", "evaluate"),
    "out_of_memory": ("transformers",),
}
WITHOUT = {
    "kill_worker": ("generate", "evaluate", "fine-tune"),
    "kill_actor": ("transformers", "evaluate"),
    "kill_node": ("generate", "evaluate", "transformers"),
    "drain_node": ("generate", "evaluate"),
    "kill_driver": ("generate", "evaluate", "fine-tune"),
    "stop_driver": ("generate", "evaluate"),
}
CASES = [(fault, stage) for faults in (WITHIN, WITHOUT) for fault, stages in faults.items() for stage in stages]


@dataclass
class Outcome:
    """One run under faults."""

    seed: int
    stage: str
    fault: str
    detail: str = ""
    starts: int = 0
    papers: int = 0  # in; of a fine-tuning: steps
    out: int = 0
    rejected: int = 0
    lost: int = 0
    duplicated: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.problems and self.lost == 0 and self.duplicated == 0


class TwoNodes:
    """A real cluster of two nodes on this machine; the second may go and come."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
        self.second: Any = None
        self.renew()

    def renew(self) -> None:
        """Both nodes are there."""
        if self.second is None:
            self.second = self.cluster.add_node(num_cpus=3)

    def kill(self) -> None:
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def drain(self) -> None:
        """As a cloud does that takes a spot machine back: a warning, a few seconds, the end."""
        line = [str(Path(sys.executable).parent / "ray"), "drain-node", "--address", self.cluster.address]
        line += ["--node-id", self.second.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        line += ["--reason-message", "spot", "--deadline-remaining-seconds", "2"]
        subprocess.run(line, capture_output=True, check=True)
        time.sleep(2)
        self.kill()

    def workers(self) -> list[psutil.Process]:
        """Processes that this cluster's nodes have started, and no other's."""
        nodes = [self.cluster.head_node, *([self.second] if self.second else [])]
        raylets = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes]
        return [process for raylet in raylets for process in raylet.children(recursive=True)]

    def end(self) -> None:
        self.cluster.shutdown()


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    nodes = TwoNodes()
    try:
        yield nodes
    finally:
        nodes.end()


class Chaos:
    """Runs seeds; ``folder`` holds inputs and what the runs write."""

    def __init__(self, folder: Path, nodes: TwoNodes) -> None:
        self.folder, self.nodes = folder, nodes
        self._generated: Path | None = None
        self._model: str | None = None
        self._curve: list[tuple[int, float]] | None = None

    def run(self, seed: int, case: tuple[str, str] | None = None) -> Outcome:
        draw = random.Random(seed)
        fault, stage = case or CASES[seed % len(CASES)]  # every case in turn; the seed decides the moment
        outcome, begun = Outcome(seed, stage, fault), time.monotonic()
        out = self.folder / f"run-{seed}"
        self.nodes.renew()
        {"evaluate": self._evaluate, "fine-tune": self._fine_tune}.get(stage, self._generate)(outcome, draw, out)
        outcome.seconds = round(time.monotonic() - begun, 1)
        if outcome.good:
            shutil.rmtree(out, ignore_errors=True)
        return outcome

    # Stages

    def _generate(self, outcome: Outcome, draw: random.Random, out: Path) -> None:
        papers = [make_paper(i) for i in range(PAPERS[outcome.stage])]
        poisoned = self._poison(outcome, draw, papers, ["generate", "generate", "tokens"])
        file = write_jsonl(self.folder / f"papers-{outcome.seed}.jsonl", papers)
        args = ["generate", "--file_path", file, "--output_dir", out, "--num_qas", PAIRS, "--papers_per_shard", 100]
        if outcome.stage == "transformers":
            args += ["--base_model", self.model, "--context_size", 4096, "--max_gen_len", 64, "--dtype", "float32"]
            args += [
                "--threads_per_actor",
                1,
                "--max_attempts",
                1,
                "--engine",
                "transformers",
                "--max_batch",
                4,
            ]
        else:
            args += ["--engine", "echo"]
        held_back = outcome.stage, draw.randint(1, 6)
        self._until_done(outcome, draw, out, args, held_back)
        if outcome.good:
            expected = dict.fromkeys(poisoned, "process_killed")
            check_generated(outcome, out, {paper["doi"] for paper in papers}, expected)

    def _evaluate(self, outcome: Outcome, draw: random.Random, out: Path) -> None:
        papers = [with_pairs(i, PAIRS) for i in range(PAPERS["evaluate"])]
        poisoned = self._poison(outcome, draw, papers, ["embed", "judge"])
        file = write_jsonl(self.folder / f"pairs-{outcome.seed}.jsonl", papers)
        args = [
            "evaluate",
            "--processed_output",
            file,
            "--output_dir",
            out,
            "--engine",
            "echo",
            "--papers_per_shard",
            4,
        ]
        args += ["--embedding_model", "echo"]
        held_back = draw.choice(["embed", "judge"]), draw.randint(1, 2)
        if outcome.fault == "kill_actor":
            held_back = "embed", 0
        self._until_done(outcome, draw, out, args, held_back)
        if outcome.good:
            check_evaluated(outcome, out, {paper["doi"] for paper in papers}, poisoned)

    def _fine_tune(self, outcome: Outcome, draw: random.Random, out: Path) -> None:
        if self._curve is None:
            reference = Outcome(-1, "fine-tune", "none")
            args = self._tuning(self.folder / "tuned", 1)
            self._until_done(reference, draw, self.folder / "tuned", args, ("train", 0))
            self._curve = losses(self.folder / "tuned")
        step = draw.randint(2, 7)
        outcome.detail = f"at step {step}"
        one_a_node = 2 if outcome.fault == "kill_node" else 1
        self._until_done(outcome, draw, out, self._tuning(out, one_a_node), ("train", step))
        if outcome.good:
            check_leftovers(outcome, out)
            curve = losses(out)
            outcome.papers, outcome.out = len(self._curve), len({step for step, _ in curve})
            outcome.lost = len({step for step, _ in self._curve} - {step for step, _ in curve})
            outcome.duplicated = len(curve) - outcome.out
            worst = max(abs(a[1] - b[1]) for a, b in zip(curve, self._curve, strict=False))
            if worst > 2e-3:
                outcome.problems.append(f"the loss differs by {worst:.4f} from that of an undisturbed run")

    def _tuning(self, out: Path, cpus: int) -> list[Any]:
        """The command; ``cpus``: of each of the two training processes."""
        data = self.folder / "examples.json"
        if not data.exists():
            write_examples(data, 16)
        args = ["fine-tune", "--model_name_or_path", self.model, "--data_path", data, "--output_dir", out]
        args += ["--model_max_length", 768, *SEED_FLAGS, "--num_workers", 2, "--gradient_accumulation_steps", 2]
        args += ["--learning_rate", "1e-2", "--warmup_steps", 2, "--num_train_epochs", 3, "--save_steps", 3]
        return [*args, "--deepspeed", "ds_configs/stage3.json", "--max_failures", 3, "--cpus_per_worker", cpus]

    @property
    def model(self) -> str:
        if self._model is None:
            self._model = save_tiny_model(self.folder / "model")
        return self._model

    # Faults

    def _poison(self, outcome: Outcome, draw: random.Random, papers: list[Any], stages: list[str]) -> dict[str, str]:
        """Marks some papers, whose dois come back with the stage that they are deadly in."""
        if outcome.fault != "poison":
            return {}
        stage = draw.choice(stages)
        chosen = draw.sample(papers, draw.randint(1, 3))
        for paper in chosen:
            paper["txt"] = f"The {WORD} of this paper is {draw.randint(1, 99)} K. {paper['txt']}"
        outcome.detail = f"{len(chosen)} in {stage}"
        return {paper["doi"]: stage for paper in chosen}

    def _plan(self, outcome: Outcome, draw: random.Random, held_back: tuple[str, int]) -> dict[str, Any]:
        if outcome.fault in WITHOUT:  # the work waits for the fault: however fast the machine is, there is some left
            folder = self.folder / f"held-{outcome.seed}"
            folder.mkdir()
            return {"rows": ROWS, "hold": dict([held_back]), "folder": str(folder)}
        if outcome.fault == "poison":
            return {"rows": ROWS, "poison": {outcome.detail.split()[-1]: WORD}}
        mark = {"mark": str(self._mark(outcome)), "rows": ROWS}
        if outcome.fault == "every_write":
            return {**mark, "every_write": 3}
        if outcome.fault == "full_disk":
            return {**mark, "full_after": draw.randint(1, 6)}
        if outcome.fault == "read_only":
            return {**mark, "read_only": True}
        if outcome.fault == "out_of_memory":
            return {**mark, "out_of_memory": draw.randint(2, 40)}
        return {}

    def _mark(self, outcome: Outcome) -> Path:
        """Made by a fault from within when it strikes."""
        return self.folder / f"struck-{outcome.seed}"

    def _until_done(
        self, outcome: Outcome, draw: random.Random, out: Path, args: list[Any], held_back: tuple[str, int]
    ) -> None:
        """Starts the command until it ends well. A fault from without strikes once: when of ``held_back``'s stage so
        many calls have gone through, or a training is at that step."""
        plan = self._plan(outcome, draw, held_back)
        log = self.folder / f"log-{outcome.seed}.txt"
        while outcome.starts < STARTS:
            outcome.starts += 1
            with log.open("a") as stream:
                driver = self._start(args, plan, stream)
                if outcome.starts == 1 and outcome.fault in WITHOUT:
                    self._strike(outcome, draw, driver, Path(plan["folder"]), *held_back)
                try:
                    code = driver.wait(2 * PATIENCE)
                except subprocess.TimeoutExpired:
                    os.killpg(driver.pid, signal.SIGKILL)
                    outcome.problems.append("the command hung")
                    return
            if code == 0:
                if outcome.fault in WITHIN and outcome.fault != "poison" and not self._mark(outcome).exists():
                    outcome.problems.append(NOT_STRUCK)
                return
            if code == 2:
                break
            if outcome.fault in ("full_disk", "read_only"):
                plan.pop("full_after", None)
                plan.pop("read_only", None)  # the user mended it
            self.nodes.renew()
        outcome.problems.append(f"the command failed {outcome.starts} times: {log.read_text().splitlines()[-1:]}")

    def _start(self, args: list[Any], plan: dict[str, Any], log: Any) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "RAY_ADDRESS": self.nodes.cluster.address, VARIABLE: json.dumps(plan)}
        environment |= {"PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1"}
        line = [sys.executable, "-m", "tests.chaos.driver", *map(str, args)]
        return subprocess.Popen(line, env=environment, stdout=log, stderr=log, start_new_session=True)

    def _strike(
        self,
        outcome: Outcome,
        draw: random.Random,
        driver: subprocess.Popen[bytes],
        folder: Path,
        stage: str,
        free: int,
    ) -> None:
        """The fault from without, while calls of the stage are held."""
        calls = 1 if stage == "train" else free + 1
        end = time.monotonic() + PATIENCE
        while held(folder, stage) < calls and driver.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        if driver.poll() is not None or held(folder, stage) < calls:
            outcome.problems.append(NOT_STRUCK)
            release(folder, stage)
            return
        if outcome.fault in ("kill_driver", "stop_driver"):
            hard = outcome.fault == "kill_driver"
            (os.killpg if hard else os.kill)(driver.pid, signal.SIGKILL if hard else signal.SIGTERM)
            while not hard and driver.poll() is None and not list(self.folder.glob(f"run-{outcome.seed}/**/stop")):
                time.sleep(0.05)
        elif outcome.fault == "kill_node":
            self.nodes.kill()
            if outcome.stage == "fine-tune":
                self.nodes.renew()  # as an autoscaler does: one node has no room for both training processes
        elif outcome.fault == "drain_node":
            self.nodes.drain()
        else:
            self._kill_process(outcome, draw)
        release(folder, stage)
        outcome.detail = f"{outcome.detail} after {free} calls of {stage}".strip()

    def _kill_process(self, outcome: Outcome, draw: random.Random) -> None:
        """SIGKILL of a process that works for the run."""
        kind = {"kill_actor": "ray::MapWorker", "fine-tune": "RayTrainWorker"}
        wanted = kind.get(outcome.fault) or kind.get(outcome.stage) or "ray::Map"
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            found = [process for process in self.nodes.workers() if wanted in title_of(process)]
            if found:
                draw.choice(sorted(found, key=lambda process: process.pid)).kill()
                return
            time.sleep(0.02)
        outcome.problems.append(NOT_STRUCK)


def title_of(process: psutil.Process) -> str:
    """What a process is called, '' if it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


# What must hold


def count(outcome: Outcome, found: Counter[str], dois: set[str]) -> None:
    """Each doi exactly once."""
    outcome.papers = len(dois)
    outcome.lost += len(dois - set(found))
    outcome.duplicated += sum(number - 1 for number in found.values())
    if strange := set(found) - dois:
        outcome.problems.append(f"{len(strange)} rows of no paper")


def check_generated(outcome: Outcome, out: Path, dois: set[str], expected: dict[str, str]) -> None:
    """``expected``: the reason by doi of what is rejected."""
    processed = Counter(row["doi"] for row in json.loads((out / "processed_output.json").read_text()))
    reasons = {row["doi"]: row["reason"] for row in read_jsonl(out / "rejected.jsonl")}
    rejected = Counter(row["doi"] for row in read_jsonl(out / "rejected.jsonl"))
    outcome.out, outcome.rejected = len(processed), len(rejected)
    count(outcome, processed + rejected, dois)
    if outcome.stage != "transformers" and reasons != expected:
        outcome.problems.append(f"rejected: {Counter(reasons.values())}, expected: {Counter(expected.values())}")
    if outcome.stage == "transformers" and set(reasons.values()) != {"no_pairs"}:  # what a random model writes
        outcome.problems.append(f"rejected: {Counter(reasons.values())}")
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    if counts["records"] != len(dois) or counts["papers_with_pairs"] != len(processed):
        outcome.problems.append(f"the manifest counts {counts}")
    rows = pads.dataset(str(out / "generations"), format="parquet").to_table(columns=["doi", "window", "attempt"])
    if rows.num_rows != len({tuple(row.values()) for row in rows.to_pylist()}):
        outcome.problems.append("an answer is there twice")
    check_leftovers(outcome, out)


def check_evaluated(outcome: Outcome, out: Path, dois: set[str], poisoned: dict[str, str]) -> None:
    for name, by_pair in (("coverage", 1), ("similarity", 1), ("racar", PAIRS), ("grounding", PAIRS)):
        rows = pads.dataset(str(out / "evaluation" / f"{name}.parquet"), format="parquet").to_table().to_pylist()
        found = Counter((row["doi"], row.get("qa", 0)) for row in rows)
        count(outcome, Counter(doi for doi, qa in found if qa == by_pair - 1), dois)
        outcome.duplicated += sum(number - 1 for number in found.values())
        killed = {row["doi"] for row in rows if row.get("reason") == "process_killed"}
        table = {"embed": ("coverage",), "judge": ("racar",)}
        if killed != {doi for doi, stage in poisoned.items() if name in table[stage]}:
            outcome.problems.append(f"{name}: {len(killed)} papers given up, poisoned: {len(poisoned)}")
    summary = json.loads((out / "evaluation" / "summary.json").read_text())
    outcome.out = summary["papers"]
    outcome.rejected = len(poisoned)
    check_leftovers(outcome, out)


def check_leftovers(outcome: Outcome, out: Path) -> None:
    left = [f.name for f in out.rglob("*") if f.name.startswith(".tmp-") or f.name in ("lease.json", "stop", "tries")]
    if left:
        outcome.problems.append(f"left behind: {left[:3]}")


# The table


def table_of(outcomes: list[Outcome]) -> str:
    lines = ["| seed | stage | fault | | starts | in | out | rejected | lost | duplicated | s |", "|--" * 11 + "|"]
    lines += [
        f"| {o.seed} | {o.stage} | {o.fault} | {o.detail} | {o.starts} | {o.papers} | {o.out} | {o.rejected} "
        f"| {o.lost} | {o.duplicated} | {o.seconds:.0f} |{' BAD: ' * bool(o.problems)}{'; '.join(o.problems)}"
        for o in outcomes
    ]
    return "\n".join(lines)


def parser_of(description: str | None, runs: int) -> argparse.ArgumentParser:
    """The flags of a command that draws runs by seed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--seed", type=int, default=0, help="the first; the others follow")
    parser.add_argument("--folder", type=Path, help="keeps what failed; default: a temporary one")
    return parser


def folder_of(options: argparse.Namespace, prefix: str) -> Path:
    folder = Path(options.folder or tempfile.mkdtemp(prefix=prefix))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def verdict(outcomes: list[Outcome], folder: Path) -> int:
    """Prints how the runs ended; returns the exit code."""
    bad = [outcome for outcome in outcomes if not outcome.good]
    lost, twice = sum(o.lost for o in outcomes), sum(o.duplicated for o in outcomes)
    print(f"{len(outcomes)} runs: {len(bad)} bad, {lost} papers lost, {twice} duplicated; what failed is in {folder}")
    return 1 if bad else 0


def as_json(outcome: Outcome) -> str:
    return json.dumps(asdict(outcome))
