"""Papers with their pairs, wherever they come from: a run of qaray's, or a processed output made anywhere.

Both are read shard by shard, and the shard's name goes with the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from qaray.asking.templates import WordTokenizer
from qaray.config import EvaluateConfig
from qaray.corpus.doi_index import Ingested
from qaray.corpus.papers import Intake, ingest, input_files, unread
from qaray.corpus.records import digest, paired_fields
from qaray.generate.answers import read_answers
from qaray.generate.merge import paper_outcome
from qaray.run.directory import Run
from qaray.run.rejects import rejected_file
from qaray.run.stopping import StopCheck
from qaray.schema import PAIRED_SCHEMA, Paired, Parsed

ANSWER_COLUMNS = ["doi", "window", "windows", "attempt", "num_qas", "finish_reason", "reason", "detail", "pairs"]


class Key(NamedTuple):
    """What tells whether a paper was measured."""

    doi: str
    digest: str
    pairs: int  # number of pairs


def keys_of(papers: Iterable[Any]) -> list[Key]:
    """The keys of rows that have ``doi``, ``digest`` and ``pairs``."""
    return [Key(paper["doi"], paper["digest"], len(paper["pairs"])) for paper in papers]


class Source(Protocol):
    """Picklable: tasks read their shards by it."""

    @property
    def run(self) -> Run:
        """Where the shards of its papers lie."""
        ...

    def shards(self) -> list[str]:
        """Names of the shards, in order."""
        ...

    def keys(self, shard: str) -> list[Key]:
        """The papers of a shard that are to be measured. Their text is not read."""
        ...

    def read(self, shard: str) -> list[Paired]:
        """The same papers in the same order, whole."""
        ...


@dataclass(frozen=True)
class ProcessedPapers:
    """Processed output that was taken into the shards of ``run``, the evaluation's own folder."""

    run: Run

    def shards(self) -> list[str]:
        return self.run.shard_names()

    def keys(self, shard: str) -> list[Key]:
        return keys_of((self.run.papers / f"{shard}.parquet").read_table(["doi", "digest", "pairs"]).to_pylist())

    def read(self, shard: str) -> list[Paired]:
        columns = ["doi", "digest", "title", "txt", "pairs"]
        rows = (self.run.papers / f"{shard}.parquet").read_table(columns).to_pylist()
        return [
            Paired(
                doi=row["doi"],
                shard=shard,
                digest=row["digest"],
                title=row["title"],
                txt=row["txt"],
                pairs=row["pairs"],
            )
            for row in rows
        ]


@dataclass(frozen=True)
class GeneratedPapers:
    """The papers of a generate run that have pairs. Made once it is finished: its files are listed once for all."""

    run: Run
    files: dict[str, list[str]]  # of answers, by shard

    @classmethod
    def of(cls, run: Run) -> GeneratedPapers:
        return cls(run, run.generation_files())

    def shards(self) -> list[str]:
        return self.run.shard_names()

    def keys(self, shard: str) -> list[Key]:
        return keys_of(self._read(shard, ["doi"]))

    def read(self, shard: str) -> list[Paired]:
        return self._read(shard, ["doi", "title", "txt"])

    def answers(self, shard: str, columns: list[str] | None = None) -> dict[str, list[Parsed]]:
        """The answers of a shard's papers by doi, those of papers without pairs too."""
        return read_answers(self.run.root.fs, self.files.get(shard, []), columns)

    def _read(self, shard: str, columns: list[str]) -> list[Paired]:
        answers = self.answers(shard, ANSWER_COLUMNS)
        wanted = [*columns, "file", "position"]
        found = []
        for paper in (self.run.papers / f"{shard}.parquet").read_table(wanted).to_pylist():
            pairs, _, _ = paper_outcome(paper, answers.get(paper["doi"], []))
            if pairs:
                found.append(
                    Paired(
                        doi=paper["doi"],
                        shard=shard,
                        digest=digest(pairs),
                        title=paper.get("title"),
                        txt=paper.get("txt") or "",
                        pairs=pairs,
                    )
                )
        return found


def open_source(
    config: EvaluateConfig, generated: Run, should_stop: StopCheck, report: Callable[[Ingested], None]
) -> tuple[Source, int]:
    """What is to be measured, and how many records of a processed output were rejected.

    A processed output is taken in first; if one of its files changed, or was not taken in to its end, all of them anew:
    papers that stayed the same keep their scores. Raises FileNotFoundError, or RunError if no record is a paper
    with pairs.
    """
    if not config.pairs.processed_output:
        return GeneratedPapers.of(generated), 0
    run = generated.evaluation
    files = input_files(config.pairs.processed_output, run)
    known = (run.sources.read_json() or {"files": []})["files"]
    if unread(files, known) or len(files) != len(known):
        for old in (*run.paper_shards(), *run.rejected_papers.files(".parquet"), run.sources):
            old.remove()
    intake = Intake(
        config.pairs.processed_output, config.pairs.papers_per_shard, fields=paired_fields, schema=PAIRED_SCHEMA
    )
    ingested = ingest(intake, run, WordTokenizer().count, should_stop, report)
    with rejected_file(run.root) as reject:
        for row in run.rejected_records():
            reject(row)
    return ProcessedPapers(run), ingested.rejected


def source_of(run: Run) -> Source:
    """What a finished run is shown with: the pairs that its evaluation is of, else its own."""
    elsewhere = run.evaluation.manifest.exists() and run.measured() is None
    return ProcessedPapers(run.evaluation) if elsewhere else GeneratedPapers.of(run)
