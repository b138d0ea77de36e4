"""`qaray parse`: builds a processed output from papers and raw outputs made anywhere. Needs no cluster."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

from qaray.asking.grammar import parse_answer
from qaray.config import ParseConfig
from qaray.corpus.readers.dispatch import SUFFIXES, read_records
from qaray.corpus.records import Problem, doi_of, encodable, paper_fields
from qaray.generate.merge import merged_pairs, processed_record
from qaray.generate.outputs import JsonList
from qaray.run.directory import RunError
from qaray.run.rejects import rejected_file
from qaray.run.storage import Location, expand
from qaray.schema import Rejected, RejectReason, identified

Output = tuple[int, str]  # (window, text)


def parse_outputs(config: ParseConfig) -> dict[str, int]:
    """Writes processed_output.json (papers in input order) and rejected.jsonl; returns the counts.

    Every paper and every output ends up in one of the two files. Raises FileNotFoundError for a missing file, RunError
    if no output could be read.
    """
    rejected: list[Rejected] = []
    outputs = _read_outputs(config.original_output, rejected)
    if not outputs:
        raise RunError(f"no output could be read from {config.original_output}: {len(rejected)} records were rejected")
    folder = Location.of(config.output_dir)
    counts = {"papers": 0, "pairs": 0}
    done: set[str] = set()
    with contextlib.ExitStack() as stack:
        processed = JsonList(stack, folder / "processed_output.json")
        for fields, where in _papers(config.file_path, rejected):
            doi = fields["doi"]
            if doi in done:
                rejected.append(_rejected(doi, where, "ingest", RejectReason.DUPLICATE_DOI, "the doi appeared before"))
                continue
            done.add(doi)
            if doi not in outputs:
                rejected.append(_rejected(doi, where, "parse", RejectReason.NO_OUTPUT, "no output has this doi"))
                continue
            answers = [
                identified(parse_answer(text, num_qas=1).pairs, doi, window)
                for window, text in sorted(outputs.pop(doi))
            ]
            pairs = merged_pairs(answers)
            if not pairs:
                rejected.append(_rejected(doi, where, "parse", RejectReason.NO_PAIRS, "no question-answer pair"))
                continue
            processed.add(json.dumps(processed_record(fields, pairs), ensure_ascii=False).encode())
            counts["papers"] += 1
            counts["pairs"] += len(pairs)
        processed.end()
    for doi in outputs:
        if doi not in done:
            rejected.append(
                _rejected(doi, (config.original_output, None), "parse", RejectReason.NO_PAPER, "no paper has this doi")
            )
    with rejected_file(folder) as reject:
        for row in rejected:
            reject(row)
    return {**counts, "rejected": len(rejected)}


def _papers(pattern: str, rejected: list[Rejected]) -> Iterator[tuple[dict[str, Any], tuple[str, int]]]:
    for file in expand(pattern, SUFFIXES):
        for record in read_records(file):
            where = (file.path, record.position)
            try:
                if record.problem:
                    raise record.problem
                yield paper_fields(record.value), where
            except Problem as problem:
                doi = record.value.get("doi") if isinstance(record.value, dict) else None
                rejected.append(_rejected(doi, where, "ingest", problem.reason, problem.detail))


def _read_outputs(pattern: str, rejected: list[Rejected]) -> dict[str, list[Output]]:
    """Outputs by doi. Invalid records are added to ``rejected``."""
    outputs: dict[str, list[Output]] = {}
    for file in expand(pattern, SUFFIXES):
        for record in read_records(file):
            where = (file.path, record.position)
            try:
                if record.problem:
                    raise record.problem
                doi, window, text = _output_fields(record.value)
                if any(window == other for other, _ in outputs.get(doi, [])):
                    raise Problem(RejectReason.DUPLICATE_DOI, "an output with this doi appeared before")
                outputs.setdefault(doi, []).append((window, text))
            except Problem as problem:
                bad = record.value.get("doi") if isinstance(record.value, dict) else None
                rejected.append(_rejected(bad, where, "parse", problem.reason, problem.detail))
    return outputs


def _output_fields(value: Any) -> tuple[str, int, str]:
    if not isinstance(value, dict):
        raise Problem(RejectReason.WRONG_TYPE, f"a record must be an object, got {type(value).__name__}")
    for key in ("doi", "output"):
        if value.get(key) is None:
            raise Problem(RejectReason.MISSING_KEY, f"{key} is missing")
        if not isinstance(value[key], str):
            raise Problem(RejectReason.WRONG_TYPE, f"{key} must be a string, got {type(value[key]).__name__}")
        if not encodable(value[key]):
            raise Problem(RejectReason.UNDECODABLE, f"{key} is not valid Unicode")
    window = value.get("window") or 0
    if not isinstance(window, int):
        raise Problem(RejectReason.WRONG_TYPE, f"window must be an integer, got {type(window).__name__}")
    return value["doi"], window, value["output"]


def _rejected(doi: Any, where: tuple[str, int | None], stage: str, reason: RejectReason, detail: str) -> Rejected:
    return Rejected(
        doi=doi_of({"doi": doi}),
        file=where[0],
        position=where[1],
        stage=stage,
        reason=str(reason),
        detail=detail,
    )
