"""`qaray status OUT --repair`: finds damaged, missing and doubled files of a run, and makes it fit to be started again.

What can be made again is set aside: answers and scores are made by the next start, papers are read again from their
input files. run.json and manifest.json are restored from their copies.
"""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa

from qaray.corpus.doi import doi_key
from qaray.evaluate.tables import COVERAGE, GROUNDING, QUESTIONS, RACAR, SIMILARITY
from qaray.generate.answers import drop_answers, read_answers
from qaray.run.damage import set_aside
from qaray.run.directory import Run
from qaray.run.epochs import stem_of
from qaray.run.errors import Damaged
from qaray.run.inventory import Inventory, shard_facts, shards_of
from qaray.run.lease import lease
from qaray.run.storage import Location, in_threads

Notify = Callable[[str], None]


def repair(run: Run, notify: Notify) -> int:
    """Mends the run and its evaluation; returns the number of faults, each of which is told in a line.

    Raises RunRefused if a driver is alive.
    """
    faults: list[str] = []

    def tell(line: str) -> None:
        faults.append(line)
        notify(line)

    with lease(run, notify, relist=tell) as held:
        _restore(held.run, tell)
        papers = _papers(held.run, tell)
        answers = _answers(held.run, tell)
        if papers or answers:
            held.run.unfinish()
        held.run.clean()
    if run.evaluation.identity.exists() or run.evaluation.records.exists():
        with lease(run.evaluation, notify, relist=tell) as held:
            _restore(held.run, tell)
            own = _papers(held.run, tell)
            if _scores(held.run, tell) or own or papers or answers:
                held.run.unfinish()
            held.run.clean()
    return len(faults)


def _restore(run: Run, tell: Notify) -> None:
    for name in run.restore():
        tell(f"{run.root / name} was missing or damaged: restored from its copy")


def _papers(run: Run, tell: Notify) -> bool:
    """Sets damaged shards of the ingest aside, and removes copies of papers; whether papers are to be read again."""
    inventory = Inventory.of(run)
    if inventory.damaged:
        tell(inventory.damaged)
    faults = {str(fault.file): fault for fault in inventory.problems(run)}
    for shard, facts in zip(shards := shards_of(run), in_threads(_facts, shards), strict=True):
        known = inventory.shards.get(shard.within(run.papers))
        if isinstance(facts, Damaged):
            faults[shard.path] = facts
        elif known and known["sha256"] != facts["sha256"]:
            faults.setdefault(shard.path, Damaged(shard, "is not what was written"))
    for path, fault in faults.items():
        file = Location(run.root.fs, path)
        tell(set_aside(run, file, fault) if file.exists() else f"{path} {fault.what}: its papers are read again")
    copies = _drop_copies(run, tell)
    if faults or copies or inventory.damaged:
        for entry in inventory.files:
            entry["complete"] = entry["complete"] and not faults
        inventory.shards = {}
        inventory.add_shards(run)
        inventory.write(run)
    return bool(faults or copies)


def _facts(shard: Location) -> dict[str, object] | Damaged:
    try:
        shard.read_table()
        return shard_facts(shard)
    except Damaged as damage:
        return damage


def _drop_copies(run: Run, tell: Notify) -> int:
    """Keeps the first of each paper; returns the number of the others, which are removed."""
    seen: set[str] = set()
    copies = 0
    for shard in run.paper_shards():
        rows = shard.read_table()
        first = []
        for doi in rows["doi"].to_pylist():
            key = doi_key(doi)
            first.append(key not in seen)
            seen.add(key)
        if not all(first):
            copies += first.count(False)
            run.replace_shard(shard, rows.filter(pa.array(first, pa.bool_())))
    if copies:
        tell(f"{copies} papers of {run.papers} were stored more than once: the copies are removed")
    return copies


def _answers(run: Run, tell: Notify) -> bool:
    """Sets damaged answers aside, and removes those of papers that are not there; whether there were any."""
    found = False
    shards = {stem_of(shard.name): shard for shard in run.paper_shards()}
    for stem, paths in run.generation_files().items():
        damaged: dict[str, Damaged] = {}

        def note(file: Location, damage: Damaged, damaged: dict[str, Damaged] = damaged) -> None:
            damaged[file.path] = damage

        rows = read_answers(run.root.fs, paths, damaged=note)
        for path, damage in damaged.items():
            tell(f"{set_aside(run, Location(run.root.fs, path), damage)}: its answers are made again")
        here = set(shards[stem].read_table(["doi"])["doi"].to_pylist()) if stem in shards else set()
        if strays := rows.keys() - here:
            whole = [Location(run.root.fs, path) for path in paths if path not in damaged]
            for file in whole:
                if not here.intersection(file.read_table(["doi"])["doi"].to_pylist()):
                    tell(set_aside(run, file, Damaged(file, f"has answers of papers that are not in {stem}")))
            left = [file.path for file in whole if file.exists()]
            tell(f"{len(strays)} papers with answers are not in {run.papers}/{stem}: they are asked again")
            drop_answers(run, left, set(strays))
        found = found or bool(damaged or strays)
    return found


def _scores(run: Run, tell: Notify) -> bool:
    found = False
    for table in (COVERAGE, QUESTIONS, SIMILARITY, RACAR, GROUNDING):
        for file in run.view.counting(table.folder(run).files(".parquet", recursive=True)):
            damage = _facts(file)
            if isinstance(damage, Damaged):
                tell(f"{set_aside(run, file, damage)}: its scores are made again")
                found = True
    return found
