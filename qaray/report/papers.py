"""What the report shows of each paper. Holds one shard in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qaray.evaluate.sources import GeneratedPapers, Source
from qaray.evaluate.summary import PAPER_SCORES
from qaray.evaluate.tables import COVERAGE, GROUNDING, RACAR, SIMILARITY
from qaray.generate.answers import best_answers
from qaray.generate.merge import paper_outcome
from qaray.report.limits import cut_paper, first
from qaray.run.directory import Run
from qaray.schema import DIMENSIONS, failure_of

# Columns of the index after title and status: heading and score. None: shown even without an evaluation.
COLUMNS: list[tuple[str, str | None]] = [
    ("Pairs", None),
    ("Tokens", None),
    ("Coverage", "coverage_overall"),
    ("Lift", "coverage_lift"),
    ("Similarity", "similarity_judge"),
    ("Accuracy", "racar_accuracy"),
    ("Passes", "racar_passes"),
    ("Numbers found", "numbers_found"),
]
CARDS = [
    ("overall coverage", "coverage_overall"), ("random coverage", "coverage_null"), ("lift", "coverage_lift"),
    ("individual coverage", "coverage_individual"), ("question similarity", "similarity_judge"),
    ("question cosine", "similarity_cosine"), ("pairs passing RACAR", "racar_passes"),
    ("numbers found", "numbers_found"), ("swap rate", "swap_rate"),
]  # fmt: skip


MAX_SPANS = 25  # of a shard: each of them reads the shard's files
NUMBERS_SHOWN = 20  # of a pair's numbers that are not found in the paper


@dataclass(frozen=True)
class Span:
    """A range of consecutive papers of a shard."""

    shard: str
    first: int  # position in the shard
    papers: int  # number of papers
    before: int  # papers of the run before this span


def spans(source: Source, most: int, size: int) -> Iterator[Span]:
    """The first ``most`` papers of a run, in spans of ``size`` papers, or more if a shard has more than MAX_SPANS."""
    before = 0
    for shard in source.shards():
        rows = min((source.run.papers / f"{shard}.parquet").count_rows(), most - before) if before < most else 0
        step = max(size, -(-rows // MAX_SPANS))
        for start in range(0, rows, step):
            yield Span(shard, start, min(step, rows - start), before + start)
        before += rows


def papers_of(run: Run, source: Source, evaluated: bool, span: Span) -> Iterator[dict[str, Any]]:
    """The papers of a span, including those without pairs; with scores and figures if they are evaluated."""
    rows = (source.run.papers / f"{span.shard}.parquet").read_table().slice(span.first, span.papers).to_pylist()
    scores = (
        _PaperScores(run.evaluation.pinned(), source, span.shard, {row["doi"] for row in rows}) if evaluated else None
    )
    if isinstance(source, GeneratedPapers):
        papers, where = _generated(source, span.shard, rows), "the folders papers and generations of the run directory"
    else:
        papers, where = _measured(rows), "the folder evaluation/papers of the run directory"
    for paper in papers:
        yield cut_paper(_with_scores(paper, scores), where)


def _measured(papers: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for paper in papers:
        yield {
            **_facts(paper),
            "truncated": 0,
            "status": "",
            "why": "",
            "attempts": 0,
            "windows": 1,
            "pairs": paper["pairs"],
            "outputs": [],
        }


def _generated(source: GeneratedPapers, shard: str, papers: list[Any]) -> Iterator[dict[str, Any]]:
    answers = source.answers(shard)
    for paper in papers:
        own = answers.get(paper["doi"], [])
        pairs, status, rejected = paper_outcome(paper, own)
        best = best_answers(own)
        yield {
            **_facts(paper),
            "truncated": max((a["truncated_tokens"] for a in own), default=0),
            "status": str(status) if not rejected else "rejected",
            "why": rejected["detail"] if rejected else "",
            "attempts": max((a["attempt"] for a in own), default=0),
            "windows": len(best),
            "pairs": pairs,
            "outputs": [a["output"] for a in best] if rejected else [],
        }


def _facts(paper: dict[str, Any]) -> dict[str, Any]:
    title = paper["title"] or paper["doi"]
    return {"title": title, **{name: paper[name] for name in ("doi", "source", "keywords", "tokens", "txt")}}


class _PaperScores:
    """Score rows of some papers of a shard, by doi."""

    def __init__(self, run: Run, source: Source, shard: str, dois: set[str]) -> None:
        keys = [key for key in source.keys(shard) if key.doi in dois]
        self.papers, self.coverage, self.similarity, self.racar, self.grounding = (
            each.read(run, shard, keys, each.schema.names)
            for each in (PAPER_SCORES, COVERAGE, SIMILARITY, RACAR, GROUNDING)
        )


def _with_scores(paper: dict[str, Any], scores: _PaperScores | None) -> dict[str, Any]:
    doi = paper["doi"]
    own = scores.papers.get(doi, [{}])[0] if scores else {}
    columns = [len(paper["pairs"]), paper["tokens"]]
    columns += [own.get(name) for _, name in COLUMNS if name is not None] if scores else []
    paper |= {
        "pairs": [{**pair, "notes": [], "warnings": []} for pair in paper["pairs"]],
        "columns": columns,
        "scores": [],
        "problems": [],
        "evidence": [],
        "sentences": [paper["txt"]],
        "figures": [],
    }
    if scores is None or not paper["pairs"]:
        return paper
    paper["scores"] = [(title, f"{own[name]:.3f}") for title, name in CARDS if own.get(name) is not None]
    _add_coverage(paper, scores.coverage.get(doi, []))
    _add_similarity(paper, scores.similarity.get(doi, []))
    _add_racar(paper, scores.racar.get(doi, []))
    _add_grounding(paper, scores.grounding.get(doi, []))
    return paper


def _add_coverage(paper: dict[str, Any], rows: list[Any]) -> None:
    from qaray.report import figures

    for row in rows:
        if failure := failure_of(row):
            paper["problems"].append(f"coverage: {failure}")
            continue
        paper["sentences"] = row["sentences"]
        paper["evidence"] = [[(one["sentence"], one["score"]) for one in best] for best in row["evidence"]]
        paper["figures"] += [
            figures.evidence_scatter(row["evidence"], len(row["sentences"])),
            figures.coverage_heatmap(row["matrix"]),
        ]
        for pair, lost in zip(paper["pairs"], row["pair_tokens_lost"], strict=True):
            if lost:
                pair["warnings"].append(f"{lost} tokens exceed the embedding model's limit")


def _add_similarity(paper: dict[str, Any], rows: list[Any]) -> None:
    from qaray.report import figures

    for row in rows:
        if failure := failure_of(row):
            paper["problems"].append(f"similarity: {failure}")
        if row["pairs"]:
            judged = any(pair["judge"] is not None for pair in row["pairs"])
            paper["figures"].insert(0, figures.question_similarity(row["pairs"], len(paper["pairs"]), judged))


def _add_racar(paper: dict[str, Any], rows: list[Any]) -> None:
    lost = max((row["paper_tokens_lost"] or 0 for row in rows), default=0)
    if lost:
        paper["problems"].append(f"RACAR: the paper's last {lost:,} tokens exceed the judge's context")
    for pair, row in zip(paper["pairs"], rows, strict=False):
        if failure := failure_of(row):
            pair["warnings"].append(f"RACAR: {failure}")
            continue
        pair["notes"] += [f"{name} {row[name]:.1f}" for name in DIMENSIONS]


def _add_grounding(paper: dict[str, Any], rows: list[Any]) -> None:
    for pair, row in zip(paper["pairs"], rows, strict=False):
        if row["numbers"]:
            pair["notes"].append(f"{row['numbers_found']} of {row['numbers']} numbers found in the paper")
        if row["missing"]:
            pair["warnings"].append("not found in the paper: " + ", ".join(first(row["missing"], NUMBERS_SHOWN)))
        if row["paper_reference"]:
            pair["warnings"].append(f"not self-contained: “{row['paper_reference']}”")
