"""Makes training examples from papers with pairs, with the prompts of generation."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qaray.asking.grammar import write_pairs
from qaray.asking.request import INSTRUCTION, Request
from qaray.config import ConfigError, MakeSftConfig
from qaray.corpus.readers.dispatch import data_files, read_records
from qaray.corpus.records import Problem, Record, doi_of, has_visible, paired_fields
from qaray.models.templates import named_request
from qaray.run.rejects import rejected_file, rejection_summary
from qaray.run.storage import Location
from qaray.schema import Pair, RejectReason

ENDINGS = ("json", "jsonl", "parquet")
REASONS_SHOWN = 5  # records and pairs left out whose reason is returned

SCHEMA = pa.schema([("instruction", pa.string()), ("input", pa.string()), ("output", pa.string())])


def example_of(paper: Any, request: Request) -> dict[str, str]:
    """{instruction, input, output} of a paper with pairs. The input is the text that generation prompts with."""
    text = request.render(paper["txt"], paper["keywords"], len(paper["pairs"]))
    return {"instruction": INSTRUCTION, "input": text, "output": write_pairs(paper["pairs"])}


def make_sft(config: MakeSftConfig) -> dict[str, Any]:
    """Writes the examples to ``config.output``, and what was left out to _NAME.rejected.jsonl beside it.

    The underscore keeps a fine-tuning on the folder from reading the latter. Returns the counts of examples, rejected
    records and single pairs left out, and sentences on the first of these (``why``). Raises ConfigError if the output
    does not end in .json, .jsonl or .parquet, or if no record is a valid example.
    """
    if config.output.rsplit(".", 1)[-1] not in ENDINGS:
        raise ConfigError(f"output {config.output} must end in .json, .jsonl or .parquet")
    files = data_files(config.processed_output)
    request = named_request(config.request, config.language)
    target = Location.of(config.output)
    folder = Location(target.fs, target.path.rsplit("/", 1)[0])
    rejects = f"_{target.name.rsplit('.', 1)[0]}.rejected.jsonl"
    counts = Counter(examples=0, rejected=0, pairs_left_out=0)
    why: list[str] = []
    with rejected_file(folder, rejects) as reject:

        def leave_out(what: str, file: Location, record: Record, problem: Problem) -> None:
            doi, reason, detail = doi_of(record.value), str(problem.reason), problem.detail
            place = {"file": file.path, "position": record.position, "stage": "make-sft"}
            reject({"doi": doi, **place, "reason": reason, "detail": detail})
            counts[what] += 1
            if len(why) < REASONS_SHOWN:
                why.append(f"{doi or f'record {record.position} of {file.name}'}: {detail}")

        papers = _papers(files, config.min_pairs, leave_out)
        first = next(papers, None)
        if first is not None:
            with _writer(target) as write:
                for paper in itertools.chain([first], papers):
                    write(example_of(paper, request))
                    counts["examples"] += 1
    if first is None:
        reasons = rejection_summary(counts["rejected"], why[0] if why else "")
        raise ConfigError(f"no examples in {config.processed_output}: {reasons}")
    if not why:
        (folder / rejects).remove()
    return {**counts, "why": why}


def _papers(files: list[Location], min_pairs: int, leave_out: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """Papers with their complete pairs; calls leave_out(what is counted, file, record, problem) for everything else."""
    for file in files:
        for record in read_records(file):
            try:
                paper = paired_fields(record.content())
                empty = [_empty(pair, number) for number, pair in enumerate(paper["pairs"]) if not _complete(pair)]
                pairs = [pair for pair in paper["pairs"] if _complete(pair)]
                if len(pairs) < min_pairs:
                    found = f"{len(pairs)} complete pairs, --min_pairs is {min_pairs}"
                    raise Problem(RejectReason.NO_PAIRS, "; ".join([found, *empty[:REASONS_SHOWN]]))
            except Problem as problem:
                leave_out("rejected", file, record, problem)
                continue
            for detail in empty:
                leave_out("pairs_left_out", file, record, Problem(RejectReason.EMPTY_TEXT, detail))
            yield {**paper, "pairs": pairs}


def _complete(pair: Pair) -> bool:
    return has_visible(pair["Q"]) and has_visible(pair["A"])


def _empty(pair: Pair, number: int) -> str:
    return f"pair {number} has an empty {'answer' if has_visible(pair['Q']) else 'question'}"


@contextlib.contextmanager
def _writer(target: Location) -> Iterator[Any]:
    ending = target.name.rsplit(".", 1)[-1]
    with target.write() as stream:
        if ending == "parquet":
            with pq.ParquetWriter(stream, SCHEMA, compression="zstd") as parquet:
                yield lambda row: parquet.write_table(pa.Table.from_pylist([row], schema=SCHEMA))
            return
        first = True

        def write(row: dict[str, str]) -> None:
            nonlocal first
            start = "" if ending == "jsonl" else "[\n" if first else ",\n"
            stream.write((start + json.dumps(row, ensure_ascii=False) + ("\n" if ending == "jsonl" else "")).encode())
            first = False

        yield write
        if ending == "json":
            stream.write(b"\n]\n")
