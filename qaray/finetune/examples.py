"""Training examples: {instruction, input, output} records → tokens, with labels on the answer → Arrow shards.

    files → records → template, tokens, truncation (Ray Data, in parallel) → OUT/examples/*.arrow, OUT/rejected.jsonl

Training processes memory-map the shards, so that a machine holds one copy however many processes it runs.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from qaray.asking.request import Request
from qaray.config import ConfigError, FineTuneConfig
from qaray.corpus.explain import is_null
from qaray.corpus.readers.dispatch import data_files, read_records
from qaray.corpus.records import Problem, has_visible, required_text, with_keys
from qaray.finetune.encoding import FIELDS, EncoderFactory
from qaray.models.templates import named_request
from qaray.run.cluster import LIGHT
from qaray.run.rejects import rejection_summary
from qaray.run.storage import Location
from qaray.schema import EXAMPLE_SCHEMA, REJECTED_SCHEMA, Example, Rejected, RejectReason, table

REQUIRED = ("instruction", "output")
ROWS = 32  # examples that are tokenized and written together
COMPARED = 20  # number of records that are compared with the request
IGNORED = -100  # label of tokens without loss


def example_fields(value: Any) -> dict[str, str]:
    """{instruction, input, output} of a record; ``input`` is optional. Raises Problem with the reason."""
    value = with_keys(value, REQUIRED, FIELDS)
    fields = {
        name: "" if name not in REQUIRED and is_null(value.get(name)) else required_text(value, name) for name in FIELDS
    }
    for name in REQUIRED:
        if not has_visible(fields[name]):
            empty = "has no visible characters" if fields[name].strip() else "is empty"
            raise Problem(RejectReason.EMPTY_TEXT, f"{name} {empty}")
    return fields


def request_of(config: FineTuneConfig) -> Request | None:
    """The request that the examples were made with; None if they were not made with a request of qaray.

    The first COMPARED records are checked. Raises ConfigError if they differ from the request that a flag names.
    """
    request = named_request(config.request, config.language)
    records = (record for file in data_files(config.data_path) for record in read_records(file, FIELDS))
    for record in islice(records, COMPARED):
        try:
            text = example_fields(record.value)["input"] if record.problem is None else None
        except Problem:
            continue
        if text is not None and not request.matches(text):
            if config.request or config.language:
                raise ConfigError(
                    f"{request.name} does not match the examples of {config.data_path}: "
                    f"record {record.position} differs"
                )
            return None
    return request


@dataclass(frozen=True)
class Prepared:
    """The prepared examples of one path."""

    folder: Location
    counts: dict[str, Any]  # examples, rejected, by_reject_reason, tokens, answer_tokens, truncated, truncated_tokens


def identity_of(pattern: str) -> str:
    """Hash of the files behind a path: names, sizes and modification times."""
    facts = [(file.name, file.info().size, file.info().mtime_ns) for file in data_files(pattern)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def prepare(pattern: str, folder: Location, make_encoder: EncoderFactory, fingerprint: str) -> Prepared:
    """Tokenizes the examples of ``pattern`` into ``folder``, unless it has those of the same ``fingerprint``."""
    done = (folder / "done.json").read_json()
    if done and done["fingerprint"] == fingerprint:
        return Prepared(folder, done["counts"])
    folder.remove_folder()
    folder.make_folder()
    counts = _count(_write(pattern, folder, make_encoder), folder)
    (folder / "done.json").write_json({"fingerprint": fingerprint, "counts": counts})
    return Prepared(folder, counts)


def require_examples(pattern: str, prepared: Prepared) -> None:
    """Raises ConfigError, with the reason of the first rejected record, if there is no example."""
    if not prepared.counts["examples"]:
        first = next((row["detail"] for row in rejected(prepared.folder)), "")
        why = rejection_summary(prepared.counts["rejected"], first)
        raise ConfigError(f"no usable example in {pattern}: {why}")


def _write(pattern: str, folder: Location, make_encoder: EncoderFactory) -> Iterator[dict[str, Any]]:
    import ray

    files = [{"order": i, "file": file} for i, file in enumerate(data_files(pattern))]
    records = ray.data.from_items(files, override_num_blocks=len(files)).flat_map(_read, num_cpus=LIGHT)
    records = records.repartition(target_num_rows_per_block=ROWS, strict=True)
    written = records.map_batches(
        _Shards(folder, make_encoder), batch_size=ROWS, batch_format="pyarrow", num_cpus=LIGHT
    )
    for batch in written.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from batch.to_pylist()


def _read(item: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The records of a file as rows; an invalid record has a reason instead of a value."""
    for record in read_records(item["file"], FIELDS):
        value, problem = None, None
        try:
            value = example_fields(record.content())
        except Problem as found:
            problem = found
        yield {
            "order": item["order"],
            "file": item["file"].path,
            "position": record.position,
            "value": value,
            "reason": str(problem.reason) if problem else None,
            "detail": problem.detail if problem else None,
        }


@dataclass(frozen=True)
class _Shards:
    """Rows → a shard of examples and a file of rejected rows; returns one summary row per block."""

    folder: Location
    make_encoder: EncoderFactory

    def __call__(self, records: pa.Table) -> pa.Table:
        encode = self.make_encoder()
        examples: list[Example] = []
        rejects: list[Rejected] = []
        rows = records.to_pylist()
        for row in rows:
            try:
                if row["reason"]:
                    raise Problem(RejectReason(row["reason"]), row["detail"])
                examples.append(encode(row["value"], f"{row['file'].rsplit('/', 1)[-1]}:{row['position']}"))
            except Problem as problem:
                rejects.append(_rejected(row, problem))
        name = f"{rows[0]['order']:04d}-{rows[0]['position']:09d}" if rows else "none"
        if examples:
            _write_arrow(self.folder / f"{name}.arrow", table(examples, EXAMPLE_SCHEMA))
        if rejects:
            (self.folder / f"{name}.rejected.parquet").write_table(table(rejects, REJECTED_SCHEMA))
        return pa.Table.from_pylist(
            [
                {
                    "examples": len(examples),
                    "tokens": sum(len(e["input_ids"]) for e in examples),
                    "answer_tokens": sum(len(e["input_ids"]) - e["prompt_tokens"] for e in examples),
                    "truncated": sum(e["truncated_tokens"] > 0 for e in examples),
                    "truncated_tokens": sum(e["truncated_tokens"] for e in examples),
                }
            ]
        )


def _rejected(row: dict[str, Any], problem: Problem) -> Rejected:
    return Rejected(
        doi=None,
        file=row["file"],
        position=row["position"],
        stage="examples",
        reason=str(problem.reason),
        detail=problem.detail,
    )


def _write_arrow(place: Location, examples: pa.Table) -> None:
    with place.write() as stream, pa.ipc.new_file(stream, examples.schema) as writer:
        writer.write_table(examples)


def _count(summaries: Iterator[dict[str, Any]], folder: Location) -> dict[str, Any]:
    sums: Counter[str] = Counter(examples=0, tokens=0, answer_tokens=0, truncated=0, truncated_tokens=0)
    for row in summaries:
        sums.update(row)
    reasons = Counter(row["reason"] for row in rejected(folder))
    return {**sums, "rejected": sum(reasons.values()), "by_reject_reason": dict(reasons)}


def rejected(folder: Location) -> Iterator[dict[str, Any]]:
    """The rejected records of a folder, in order."""
    for file in folder.files(".rejected.parquet"):
        yield from file.read_table().to_pylist()


class Examples:
    """The examples of a folder as a torch dataset, ordered by file and position. Local files are memory-mapped."""

    def __init__(self, folder: Location) -> None:
        tables = []
        for file in folder.files(".arrow"):
            source = (
                pa.memory_map(file.path)
                if file.is_local
                else pa.BufferReader(file.fs.open_input_file(file.path).read())
            )
            tables.append(pa.ipc.open_file(source).read_all())
        self._rows = pa.concat_tables(tables) if tables else EXAMPLE_SCHEMA.empty_table()
        self.lengths: list[int] = pc.list_value_length(self._rows["input_ids"]).to_pylist()

    def __len__(self) -> int:
        return self._rows.num_rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows.slice(index, 1)
        ids = row["input_ids"].combine_chunks().flatten().to_numpy()
        return {"index": index, "input_ids": ids, "prompt_tokens": row["prompt_tokens"][0].as_py()}

    def id(self, index: int) -> str:
        """``file:position`` of an example."""
        return str(self._rows["id"][index].as_py())


@dataclass(frozen=True)
class Collator:
    """Collates examples into a batch, right-padded to the longest; logits are computed only where they are needed.

    ``logits_to_keep`` [N]: positions that precede an answer token in any sequence of the batch. ``shift_labels``
    [B, N]: the token after each of these positions, −100 where it carries no loss.
    """

    pad_id: int
    all_logits: bool = False  # True: logits and labels at every position

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import torch

        longest = max(len(e["input_ids"]) for e in examples)
        ids = torch.full((len(examples), longest), self.pad_id)
        mask = torch.zeros((len(examples), longest), dtype=torch.long)
        labels = torch.full((len(examples), longest), IGNORED)
        for row, example in enumerate(examples):
            length, start = len(example["input_ids"]), example["prompt_tokens"]
            ids[row, :length] = torch.tensor(example["input_ids"], dtype=torch.long)
            mask[row, :length] = 1
            labels[row, start:length] = ids[row, start:length]
        batch = {"input_ids": ids, "attention_mask": mask, "index": torch.tensor([e["index"] for e in examples])}
        if self.all_logits:
            return {**batch, "labels": labels}
        following = labels[:, 1:]
        kept = (following != IGNORED).any(dim=0).nonzero()[:, 0]
        # ``labels`` makes the model compute a loss; given ``shift_labels``, the loss depends on these alone.
        return {**batch, "labels": labels, "shift_labels": following[:, kept].contiguous(), "logits_to_keep": kept}
