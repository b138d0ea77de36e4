"""Makes training examples from papers with pairs, with the prompts of generation."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from qaray.asking.grammar import write_pairs
from qaray.asking.request import INSTRUCTION, Request
from qaray.config import ConfigError, MakeSftConfig
from qaray.corpus.readers.dispatch import SUFFIXES, read_records
from qaray.corpus.records import Problem, paired_fields
from qaray.models.templates import named_request
from qaray.run.storage import Location, expand
from qaray.schema import RejectReason

SCHEMA = pa.schema([("instruction", pa.string()), ("input", pa.string()), ("output", pa.string())])


def example_of(paper: Any, request: Request) -> dict[str, str]:
    """{instruction, input, output} of a paper with pairs. The input is the text that generation prompts with."""
    text = request.render(paper["txt"], paper["keywords"], len(paper["pairs"]))
    return {"instruction": INSTRUCTION, "input": text, "output": write_pairs(paper["pairs"])}


def make_sft(config: MakeSftConfig) -> dict[str, int]:
    """Writes the examples to ``config.output``; returns the counts of examples and rejected records.

    Raises ConfigError if the output does not end in .json, .jsonl or .parquet, or if no record is a valid example.
    """
    request = named_request(config.request, config.language)
    counts = {"examples": 0, "rejected": 0}
    first_reason = ""
    target = Location.of(config.output)
    with _writer(target, config.output) as write:
        for record in _records(config.processed_output):
            try:
                if record.problem:
                    raise record.problem
                paper = paired_fields(record.value)
                pairs = [pair for pair in paper["pairs"] if pair["Q"].strip() and pair["A"].strip()]
                if len(pairs) < config.min_pairs:
                    raise Problem(RejectReason.NO_PAIRS, f"{len(pairs)} pairs, --min_pairs is {config.min_pairs}")
            except Problem as problem:
                counts["rejected"] += 1
                first_reason = first_reason or problem.detail
                continue
            write(example_of({**paper, "pairs": pairs}, request))
            counts["examples"] += 1
        if not counts["examples"]:
            raise ConfigError(
                f"no examples in {config.processed_output}: {counts['rejected']} records were rejected, the first "
                f"because {first_reason}; pass a file in the format of processed_output.json"
            )
    return counts


def _records(pattern: str) -> Iterator[Any]:
    for file in expand(pattern, SUFFIXES):
        yield from read_records(file)


@contextlib.contextmanager
def _writer(target: Location, name: str) -> Iterator[Any]:
    ending = name.rsplit(".", 1)[-1]
    if ending not in ("json", "jsonl", "parquet"):
        raise ConfigError(f"output {name} must end in .json, .jsonl or .parquet")
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
