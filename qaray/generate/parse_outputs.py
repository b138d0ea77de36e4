"""`qaray parse`: builds a processed output from papers and raw outputs made anywhere. Needs no cluster."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from qaray.asking.grammar import no_pairs, parse_answer
from qaray.config import ParseConfig
from qaray.corpus.doi import doi_key
from qaray.corpus.explain import got, is_null
from qaray.corpus.readers.dispatch import data_files, read_records
from qaray.corpus.records import Problem, doi_of, paper_fields, required_text, with_keys
from qaray.generate.merge import merged_pairs, no_pairs_detail, processed_record
from qaray.generate.outputs import JsonList
from qaray.run.errors import RunError, RunRefused
from qaray.run.rejects import rejected_file, rejection_summary
from qaray.run.storage import Location
from qaray.schema import Rejected, RejectReason, identified

MARK = "parse.json"  # what was parsed: by it a folder is known to hold the results of `qaray parse`
OUTPUT_KEYS = ("doi", "output")


class Output(NamedTuple):
    """An output of a paper's window."""

    window: int
    text: str
    doi: str  # as it is spelled with this output


def parse_outputs(config: ParseConfig) -> dict[str, Any]:
    """Writes processed_output.json (papers in input order) and rejected.jsonl; returns the counts.

    Every paper and every output ends up in one of the two files. ``short`` counts papers with fewer than ``num_qas``
    pairs, ``without_pairs`` outputs by NoPairs, ``left_out`` papers by what was wrong with an optional field. Raises
    FileNotFoundError for a missing file, ConfigError for one of another format, RunError if no output or no paper
    could be read, after writing rejected.jsonl.
    """
    output_files, paper_files = data_files(config.original_output), data_files(config.file_path)
    rejected: list[Rejected] = []
    folder = Location.of(config.output_dir)
    _refuse_foreign(folder)
    try:
        outputs = _read_outputs(output_files, rejected)
        if not outputs:
            raise RunError(_nothing("output", config.original_output, rejected))
        counts = _parse(paper_files, folder, outputs, rejected, config.num_qas or 1)
        if not counts["read"]:
            raise RunError(_nothing("paper", config.file_path, [row for row in rejected if row["stage"] == "ingest"]))
        for left in (output for own in outputs.values() for output in own):
            where = (config.original_output, None)
            rejected.append(_rejected(left.doi, where, "parse", RejectReason.NO_PAPER, "no paper has this doi"))
        return {**counts, "rejected": len(rejected)}
    finally:
        (folder / MARK).write_json({"original_output": config.original_output, "file_path": config.file_path})
        with rejected_file(folder) as reject:
            for row in rejected:
                reject(row)


def _refuse_foreign(folder: Location) -> None:
    """Raises RunRefused if the folder is a run's, or has files of these names that no `qaray parse` has written."""
    if (folder / "run.json").exists() or (folder / "epochs").exists():
        raise RunRefused(f"{folder} is a run, whose results these would replace: use another --output_dir")
    there = [name for name in ("processed_output.json", "rejected.jsonl") if (folder / name).exists()]
    if there and not (folder / MARK).exists():
        raise RunRefused(f"{folder} has a {there[0]} that qaray parse has not written: use another --output_dir")


def _parse(
    files: list[Location], folder: Location, outputs: dict[str, list[Output]], rejected: list[Rejected], num_qas: int
) -> dict[str, Any]:
    """Writes processed_output.json and returns the counts. Papers without pairs are added to ``rejected``.

    The outputs of papers that were read are removed from ``outputs``, whose keys are those of doi_key.
    """
    papers = pairs_in_all = short = 0
    without_pairs: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    done: set[str] = set()
    with contextlib.ExitStack() as stack:
        processed = JsonList(stack, folder / "processed_output.json")
        for fields, where in _papers(files, rejected):
            doi, key = fields["doi"], doi_key(fields["doi"])
            if key in done:
                rejected.append(_rejected(doi, where, "ingest", RejectReason.DUPLICATE_DOI, "the doi appeared before"))
                continue
            done.add(key)
            left_out.update(flaw["what"] for flaw in fields["left_out"])
            if key not in outputs:
                rejected.append(_rejected(doi, where, "parse", RejectReason.NO_OUTPUT, "no output has this doi"))
                continue
            own = sorted(outputs.pop(key))
            parsed = [parse_answer(output.text, num_qas) for output in own]
            without_pairs.update(
                str(no_pairs(output.text)) for output, found in zip(own, parsed, strict=True) if not found.pairs
            )
            pairs = merged_pairs(
                [identified(found.pairs, doi, output.window) for output, found in zip(own, parsed, strict=True)]
            )
            if not pairs:
                detail = no_pairs_detail([output.text for output in own])
                rejected.append(_rejected(doi, where, "parse", RejectReason.NO_PAIRS, detail))
                continue
            processed.add(json.dumps(processed_record(fields, pairs), ensure_ascii=False).encode())
            papers += 1
            short += len(pairs) < num_qas
            pairs_in_all += len(pairs)
        processed.end()
    return {
        "papers": papers,
        "pairs": pairs_in_all,
        "short": short,
        "read": len(done),
        "without_pairs": without_pairs,
        "left_out": left_out,
    }


def _nothing(what: str, pattern: str, rejected: list[Rejected]) -> str:
    first = rejected[0]["detail"] if rejected else ""
    return f"no {what} could be read from {pattern}: {rejection_summary(len(rejected), first)}"


def _papers(files: list[Location], rejected: list[Rejected]) -> Iterator[tuple[dict[str, Any], tuple[str, int]]]:
    for file in files:
        for record in read_records(file):
            where = (file.path, record.position)
            try:
                yield paper_fields(record.content()), where
            except Problem as problem:
                doi = doi_of(record.value)
                rejected.append(_rejected(doi, where, "ingest", problem.reason, problem.detail))


def _read_outputs(files: list[Location], rejected: list[Rejected]) -> dict[str, list[Output]]:
    """Outputs by doi_key. Invalid records are added to ``rejected``."""
    outputs: dict[str, list[Output]] = {}
    for file in files:
        for record in read_records(file, (*OUTPUT_KEYS, "window")):
            where = (file.path, record.position)
            try:
                output = _output_of(record.content())
                own = outputs.setdefault(doi_key(output.doi), [])
                if any(output.window == other.window for other in own):
                    raise Problem(RejectReason.DUPLICATE_DOI, "an output with this doi appeared before")
                own.append(output)
            except Problem as problem:
                rejected.append(_rejected(doi_of(record.value), where, "parse", problem.reason, problem.detail))
    return outputs


def _output_of(value: Any) -> Output:
    value = with_keys(value, OUTPUT_KEYS, (*OUTPUT_KEYS, "input", "window"))
    doi, text = (required_text(value, key) for key in OUTPUT_KEYS)
    window = 0 if is_null(value.get("window")) else value["window"]
    if not isinstance(window, int):
        raise Problem(RejectReason.WRONG_TYPE, f"window must be an integer, {got(window)}")
    return Output(window, text, doi)


def _rejected(
    doi: str | None, where: tuple[str, int | None], stage: str, reason: RejectReason, detail: str
) -> Rejected:
    return Rejected(doi=doi, file=where[0], position=where[1], stage=stage, reason=str(reason), detail=detail)
