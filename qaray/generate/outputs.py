"""The last step of a run: accounting, JSON exports, rejected.jsonl."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from qaray.asking.grammar import no_pairs
from qaray.asking.prompts import PromptBuilder
from qaray.config import GenerateConfig
from qaray.corpus.doi_index import Ingested
from qaray.generate.answers import best_answers, read_answers
from qaray.generate.ledger import Ledger
from qaray.generate.merge import paper_outcome, processed_record
from qaray.generate.rounds import MakeBuilder
from qaray.run.cluster import in_order
from qaray.run.damage import set_aside
from qaray.run.directory import Run
from qaray.run.epochs import stem_of
from qaray.run.errors import RunError, RunRefused
from qaray.run.rejects import rejected_file
from qaray.run.storage import Location
from qaray.schema import Pair, Paper, Parsed, ParseStatus, Rejected

EXPORT_LIMIT = 50_000  # maximum number of papers for which JSON exports are written by default


@dataclass
class Totals:
    """Sums over papers. Addable."""

    papers: int = 0
    with_pairs: int = 0
    pairs: int = 0
    prompts: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    truncated_papers: int = 0
    truncated_tokens: int = 0
    answer_seconds: float = 0.0  # seconds spent in a batch, summed over answers
    status: Counter[str] = field(default_factory=Counter)  # papers by ParseStatus
    finish: Counter[str] = field(default_factory=Counter)  # answers by FinishReason
    without_pairs: Counter[str] = field(default_factory=Counter)  # answers by NoPairs
    rejected: Counter[str] = field(default_factory=Counter)  # records and papers by RejectReason
    ledger: Ledger = field(default_factory=Ledger)

    def add(self, other: Totals) -> None:
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            elif isinstance(value, Ledger):
                self.ledger.add(value)
            else:
                setattr(self, name, getattr(self, name) + value)


@dataclass
class Settled:
    """What one shard contributes to each output file."""

    totals: Totals
    rejected: list[Rejected]
    processed: bytes = b""  # JSON objects, separated by ",\n"
    original: bytes = b""


def settle_shard(run: Run, shard: str, files: list[str], make_builder: MakeBuilder | None, split: bool) -> Settled:
    """Accounts for one shard. ``make_builder``: None to skip the JSON exports. ``split``: papers are in windows.

    Raises RunError if a paper has no answer, if an answer has no paper, or if answers are damaged, which are set aside.
    """
    columns = None if make_builder else ["doi", "file", "position"]
    papers = (run.papers / f"{shard}.parquet").read_table(columns).to_pylist()
    damaged: list[str] = []
    answers = read_answers(run.root.fs, files, None, lambda file, why: damaged.append(set_aside(run, file, why)))
    if damaged:
        raise RunError(f"{damaged[0]}; rerun the command to make its answers again")
    if strays := sorted(answers.keys() - {paper["doi"] for paper in papers}):
        raise RunRefused(
            f"{len(strays)} papers with answers in {run.generations}/{stem_of(shard)} are not in {run.papers}/{shard} "
            f"({', '.join(strays[:5])}): `qaray status {run.root} --repair` asks them again"
        )
    ledger = Ledger.of(row for own in answers.values() for row in own)
    settled = Settled(Totals(papers=len(papers), ledger=ledger), [])
    builder = make_builder() if make_builder else None
    processed: list[bytes] = []
    original: list[bytes] = []
    for paper in papers:
        own = answers.get(paper["doi"], [])
        if not own:
            raise RunError(f"{paper['doi']} of {shard} has no answer; papers would be lost")
        pairs, status, rejected = paper_outcome(paper, own)
        _count(settled.totals, own, pairs, status, rejected)
        if rejected:
            settled.rejected.append(rejected)
        if builder is None:
            continue
        if pairs:
            processed.append(_json(processed_record(paper, pairs)))
        original.extend(_json(record) for record in _original(builder, paper, best_answers(own), split))
    settled.processed, settled.original = b",\n".join(processed), b",\n".join(original)
    return settled


def _count(
    totals: Totals, answers: list[Parsed], pairs: list[Pair], status: ParseStatus, rejected: Rejected | None
) -> None:
    lost = max((answer["truncated_tokens"] for answer in answers), default=0)
    totals.add(
        Totals(
            with_pairs=bool(pairs),
            pairs=len(pairs),
            prompts=len(answers),
            prompt_tokens=sum(a["prompt_tokens"] for a in answers if a["reason"] is None),
            output_tokens=sum(a["output_tokens"] for a in answers),
            truncated_papers=lost > 0,
            truncated_tokens=lost,
            answer_seconds=sum(a["seconds"] for a in answers),
            status=Counter([str(status)]) if pairs else Counter(),
            finish=Counter(a["finish_reason"] for a in answers if a["finish_reason"]),
            without_pairs=Counter(
                str(no_pairs(a["output"]))
                for a in answers
                if a["reason"] is None and a["status"] == ParseStatus.MALFORMED
            ),
            rejected=Counter([rejected["reason"]]) if rejected else Counter(),
        )
    )


def _original(builder: PromptBuilder, paper: Paper, best: list[Parsed], split: bool) -> Iterator[dict[str, Any]]:
    for answer in best:
        if answer["reason"] is None:
            text = builder.text(paper, answer["start"], answer["end"], answer["num_qas"])
            record = {"doi": paper["doi"], "input": text, "output": answer["output"]}
            yield {**record, "window": answer["window"]} if split else record


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def write_outputs(
    run: Run,
    config: GenerateConfig,
    make_builder: MakeBuilder,
    ingested: Ingested,
    check: Callable[[], None] = lambda: None,
) -> Totals:
    """Writes the JSON exports and rejected.jsonl; returns the totals.

    ``check`` raises Superseded once another driver has taken over: it is called before the files appear. Raises
    RunError unless papers in = papers with pairs + rejected papers.
    """
    export = config.export_json == "always" or (config.export_json == "auto" and ingested.papers <= EXPORT_LIMIT)
    files = run.generation_files()
    split = config.asking.overlength == "split"
    totals = Totals()
    with contextlib.ExitStack() as stack:
        reject = stack.enter_context(rejected_file(run.root))
        processed = JsonList(stack, run.root / "processed_output.json") if export else None
        original = JsonList(stack, run.root / "original_output.json") if export else None

        count = 0
        for row in run.rejected_records():
            reject(row)
            totals.rejected[row["reason"]] += 1
            count += 1
        builder = make_builder if export else None
        shards = ((name, files.get(stem_of(name), []), builder, split) for name in run.shard_names())
        for settled in in_order(settle_shard, run, shards, ahead=5):
            totals.add(settled.totals)
            for row in settled.rejected:
                reject(row)
            if processed and original:
                processed.add(settled.processed)
                original.add(settled.original)
        rejected_papers = sum(totals.rejected.values()) - count
        _refuse_strays(run, files)
        if (count, totals.papers, totals.with_pairs + rejected_papers) != (
            ingested.rejected,
            ingested.papers,
            ingested.papers,
        ):
            raise RunError(
                f"the counts do not add up: {ingested.papers} papers and {ingested.rejected} rejected records in, "
                f"{totals.with_pairs} papers with pairs, {rejected_papers} without and {count} rejected records out: "
                f"`qaray status {run.root} --repair` names and mends what is wrong"
            )
        for each in (processed, original):
            if each:
                each.end()
        check()
    check()
    if not export:
        for name in ("processed_output.json", "original_output.json"):
            (run.root / name).remove()
    return totals


def _refuse_strays(run: Run, files: dict[str, list[str]]) -> None:
    """Raises RunRefused if there are answers to a shard of papers that is not there."""
    if strays := sorted(files.keys() - {stem_of(name) for name in run.shard_names()}):
        raise RunRefused(
            f"{run.generations}/{strays[0]} has answers, and {run.papers}/{strays[0]} is not there: `qaray status "
            f"{run.root} --repair` removes them"
        )


class JsonList:
    """A JSON list, written incrementally."""

    def __init__(self, stack: contextlib.ExitStack, file: Location) -> None:
        self.stream: IO[bytes] = stack.enter_context(file.write())
        self.stream.write(b"[")
        self.empty = True

    def add(self, pieces: bytes) -> None:
        """Appends JSON objects, separated by ",\\n"."""
        if pieces:
            self.stream.write((b"\n" if self.empty else b",\n") + pieces)
            self.empty = False

    def end(self) -> None:
        self.stream.write(b"\n]\n")
