"""Sources of papers with their pairs: a qaray run, or a processed output from elsewhere.

Both are read shard by shard, and each paper keeps the name of its shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from qaray.asking.templates import WordTokenizer
from qaray.config import EvaluateConfig
from qaray.corpus.doi_index import Ingested
from qaray.corpus.inputs import fingerprints, input_files, unread
from qaray.corpus.papers import Intake, ingest
from qaray.corpus.records import digest, paired_fields
from qaray.generate.answers import read_answers
from qaray.generate.merge import paper_pairs
from qaray.run.directory import Run
from qaray.run.epochs import stem_of
from qaray.run.inventory import Inventory, inventory_files, shards_of
from qaray.run.rejects import write_rejected_records
from qaray.run.stopping import StopCheck
from qaray.schema import PAIRED_SCHEMA, Paired, Parsed

ANSWER_COLUMNS = ["doi", "window", "attempt", "pairs"]  # without the text of the answers


class Key(NamedTuple):
    """Identifies a measured paper; a changed paper has another digest."""

    doi: str
    digest: str
    pairs: int  # number of pairs


def keys_of(papers: Iterable[Any]) -> list[Key]:
    """Keys of rows with ``doi``, ``digest`` and ``pairs``."""
    return [Key(paper["doi"], paper["digest"], len(paper["pairs"])) for paper in papers]


class Source(Protocol):
    """Papers to evaluate. Picklable: tasks read their shards from it."""

    @property
    def run(self) -> Run:
        """The run with the shards of the papers."""
        ...

    def shards(self) -> list[str]:
        """Names of the shards, in order."""
        ...

    def keys(self, shard: str) -> list[Key]:
        """Keys of the papers of a shard, without reading their text."""
        ...

    def read(self, shard: str) -> list[Paired]:
        """The papers of a shard with their text, in the order of ``keys``."""
        ...


@dataclass(frozen=True)
class ProcessedPapers:
    """Processed output that was ingested into the shards of ``run``, the evaluation's own folder."""

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
    """The papers of a finished generate run that have pairs. The run's files are listed only once."""

    run: Run
    files: dict[str, list[str]]  # files of answers, by shard

    @classmethod
    def of(cls, run: Run) -> GeneratedPapers:
        pinned = run.pinned()
        return cls(pinned, pinned.generation_files())

    def shards(self) -> list[str]:
        return self.run.shard_names()

    def keys(self, shard: str) -> list[Key]:
        return keys_of(self._read(shard, ["doi", "digest"]))

    def read(self, shard: str) -> list[Paired]:
        return self._read(shard, ["doi", "digest", "title", "txt"])

    def answers(self, shard: str, columns: list[str] | None = None) -> dict[str, list[Parsed]]:
        """Answers of a shard's papers by doi, including papers without pairs."""
        return read_answers(self.run.root.fs, self.files.get(stem_of(shard), []), columns)

    def _read(self, shard: str, columns: list[str]) -> list[Paired]:
        answers = self.answers(shard, ANSWER_COLUMNS)
        found = []
        for paper in (self.run.papers / f"{shard}.parquet").read_table(columns).to_pylist():
            pairs = paper_pairs(answers.get(paper["doi"], []))
            if pairs:
                found.append(
                    Paired(
                        doi=paper["doi"],
                        shard=shard,
                        digest=digest(pairs, paper["digest"]),
                        title=paper.get("title"),
                        txt=paper.get("txt") or "",
                        pairs=pairs,
                    )
                )
        return found


def open_source(
    config: EvaluateConfig,
    generated: Run,
    run: Run,
    should_stop: StopCheck,
    report: Callable[[Ingested], None],
) -> tuple[Source, Ingested]:
    """(papers to measure, counts of the ingest of a processed output). ``run``: the evaluation's folder.

    A processed output is ingested first. If one of its files has changed, or was not read completely, all of them are
    ingested again; unchanged papers keep their scores. Raises FileNotFoundError if there is no such file, RunError if
    no record is a paper with pairs.
    """
    if not config.pairs.processed_output:
        return GeneratedPapers.of(generated), Ingested()
    files = input_files(config.pairs.processed_output, run)
    recorded = Inventory.of(run).files
    if unread(files, recorded, fingerprints(files)) or len(files) != len(recorded):
        run.unfinish()
        for old in (*inventory_files(run), *shards_of(run)):
            run.view.remove(old)
    intake = Intake(
        config.pairs.processed_output, config.pairs.papers_per_shard, fields=paired_fields, schema=PAIRED_SCHEMA
    )
    ingested = ingest(intake, run, WordTokenizer().count, should_stop, report)
    write_rejected_records(run)
    return ProcessedPapers(run), ingested


def source_of(run: Run) -> Source:
    """The papers and pairs that the evaluation of a finished run measured; without an evaluation, the run's own."""
    elsewhere = run.evaluation.manifest.exists() and run.measured() is None
    return ProcessedPapers(run.evaluation) if elsewhere else GeneratedPapers.of(run)
