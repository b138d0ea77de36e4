"""Writes the static report of a run, which opens from disk, offline. Jinja2 escapes all text of papers and answers.

OUT/report/index.html   yield, scores, figures, a table of papers to sort and filter
OUT/report/papers/      one page per paper: its pairs, its text with their evidence, its figures
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

from markupsafe import Markup

from qaray.evaluate.sources import GeneratedPapers, Source
from qaray.evaluate.summary import BOUNDS, sample_note
from qaray.metrics.similarity import FLAGGED, MAX_QUESTION_PAIRS
from qaray.report.limits import cut_rejected
from qaray.report.pages import Pages, figure
from qaray.report.papers import COLUMNS, Span, papers_of, spans
from qaray.report.records import (
    MEASURE_AGAIN,
    EvaluationManifest,
    GenerationManifest,
    Summary,
    checked,
    read_checked,
)
from qaray.run.cluster import in_order
from qaray.run.directory import Run

REJECTED_SHOWN = 200  # maximum number of rejected records in the index
PAGES_AT_ONCE = 20  # pages per task
REASONS = {
    "missing_key": "a required key is missing",
    "wrong_type": "a field has the wrong type",
    "empty_text": "the text is empty",
    "duplicate_doi": "an earlier record has the same doi",
    "undecodable": "the bytes are not valid text",
    "not_json": "no JSON value at this position",
    "over_length": "longer than the context",
    "engine_error": "the engine failed on this prompt",
    "process_killed": "every process that worked on it was killed",
    "no_pairs": "no question-answer pair in any answer",
}
MEANINGS = {
    "coverage_overall": "share of the paper's tenths that contain the sentences nearest to all pairs together",
    "coverage_individual": "the same for each pair's own nearest sentences, averaged over pairs",
    "coverage_null": "expected value for as many random sentences",
    "coverage_lift": "overall − random; negative if the pairs cluster more than by chance",
    "sentence_std": "standard deviation of a sentence's cosine over the pairs, averaged over sentences",
    "similarity_judge": (
        "do two questions of a paper ask the same? judge's score from both orders, 0 to 1; of a paper with more than "
        f"{MAX_QUESTION_PAIRS:,} question pairs, so many drawn at random"
    ),
    "similarity_cosine": "the same, by the cosine of the questions' embeddings",
    "similarity_flagged": f"share of a paper's question pairs above {FLAGGED}",
    "racar_relevance": "1 to 5: concerns the paper's science",
    "racar_agnosticism": "1 to 5: understandable without the paper",
    "racar_completeness": "1 to 5: answers the whole question",
    "racar_accuracy": "1 to 5: agrees with the paper",
    "racar_reasonableness": "1 to 5: coherent and well reasoned",
    "racar_passes": "share of pairs that pass the test-set rule: self-contained, all other dimensions at least 3",
    "numbers_found": "share of the answers' numbers found in the paper, with units",
    "swap_rate": "the same for numbers with a unit from other papers' answers: what “numbers found” is by coincidence",
    "self_contained": "share of questions without references such as “this study” or “Figure 3”",
    "answer_words": "number of words per answer",
    "evidence_overlap": "share of an answer's content words found in its evidence",
}
# Metric → what it is by chance, and how the figure names that.
NULLS = {
    "coverage_overall": ("coverage_null", "random"),
    "coverage_individual": ("coverage_null", "random"),
    "numbers_found": ("swap_rate", "numbers of other papers"),
}


def write_report(
    run: Run, source: Source, most: int, report: Callable[[int, int], None] = lambda done, pages: None
) -> str:
    """Writes pages for the first ``most`` papers of ``source``, and the index. Returns the index's path.

    Figures take a third of a second per paper, so pages are written in Ray tasks if Ray is connected. ``report`` is
    called with (pages written, pages in all). Raises RunRefused unless the run that generated the pairs, or the
    evaluation that ingested them, is finished, Damaged if one of its files cannot be used.
    """
    manifest: Any = None
    evaluation: Any
    if isinstance(source, GeneratedPapers):
        pairs_run, manifest, evaluation = run, run.finished(), run.measured()
        checked(run.manifest, manifest, GenerationManifest, "rerun `qaray generate`")
    else:
        pairs_run, evaluation = run.evaluation, run.evaluation.finished()
    summary: Any = None
    if evaluation:
        checked(run.evaluation.manifest, evaluation, EvaluationManifest, MEASURE_AGAIN)
        summary = read_checked(run.evaluation.summary, Summary, MEASURE_AGAIN)
    folder, pages = run.root / "report", Pages()
    papers: list[dict[str, Any]] = []
    work = list(spans(source, most, PAGES_AT_ONCE))
    for written in in_order(
        _write_pages, (run, source, evaluation is not None), ((span,) for span in work), ahead=64, cpus=1
    ):
        papers += written
        report(len(papers), sum(span.papers for span in work))
    for page in (folder / "papers").files(".html")[len(papers) :]:
        page.remove()  # left by an earlier report with more papers
    total = (manifest or evaluation)["counts"]["papers"]
    records = pairs_run.rejected_records()
    rejected = [cut_rejected(row) for row in islice(records, REJECTED_SHOWN)]
    reject_reasons = (
        manifest["counts"]["by_reject_reason"]
        if manifest
        else Counter(row["reason"] for row in chain(rejected, records))
    )
    pages.write(
        folder / "index.html", "index.html", "table.js",
        manifest=manifest, evaluation=evaluation, headline=_headline(manifest, evaluation),
        source=_source(manifest, evaluation), papers=papers, papers_left_out=max(0, total - len(papers)),
        columns=[title for title, shown in COLUMNS if shown is None or evaluation], rejected=rejected,
        reject_reasons=reject_reasons, reasons=REASONS, figures=_figures(manifest, summary),
        metrics=_metrics(summary), notices=_notices(summary), facts=_facts(summary),
    )  # fmt: skip
    return (folder / "index.html").path


def _write_pages(of: tuple[Run, Source, bool], span: Span) -> list[dict[str, Any]]:
    """Writes the pages of a span's papers; returns their rows of the index. Runs as a Ray task."""
    run, source, evaluated = of
    folder, pages = run.root / "report" / "papers", Pages()
    written = []
    for number, paper in enumerate(papers_of(run, source, evaluated, span), span.before + 1):
        paper["page"] = f"{number:06d}.html"
        pages.write(folder / paper["page"], "paper.html", "paper.js", paper=paper)
        written.append({name: paper[name] for name in ("page", "title", "doi", "status", "columns")})
    return written


def _headline(manifest: Any, evaluation: Any) -> str:
    if manifest is None:
        counts = evaluation["counts"]
        return f"{counts['pairs']:,} question-answer pairs of {counts['papers']:,} papers, evaluated"
    counts = manifest["counts"]
    papers = f"{counts['papers_with_pairs']:,} of {counts['papers']:,} papers"
    return f"{counts['pairs']:,} question-answer pairs from {papers}"


def _source(manifest: Any, evaluation: Any) -> str:
    if manifest is None:
        return f"pairs from {evaluation['pairs_of']}"
    return f"written by {manifest['run']['base_model'] or 'the echo engine'}"


def _metrics(summary: Any) -> list[dict[str, Any]]:
    return [
        {
            "title": name.replace("_", " "),
            "mean": figure(found["mean"]),
            "interval": f"{figure(found['low'])} … {figure(found['high'])}" if found["low"] is not None else "–",
            "papers": found["papers"],
            "missing": found["missing"],
            "meaning": MEANINGS.get(name, ""),
        }
        for name, found in (summary["metrics"] if summary else {}).items()
    ]


def _notices(summary: Any) -> Iterator[str]:
    """Warnings to read before trusting a score."""
    for name in ("similarity", "racar"):
        control = (summary or {}).get(name, {}).get("control", {})
        if control.get("near_chance"):
            yield (
                f"The judge's {name} scores are not reliable: on {control['what']}, it separates the two with an AUC "
                f"of {control['auc']:.2f}, where 0.5 is chance."
            )


def _facts(summary: Any) -> Iterator[str]:
    if not summary:
        return
    for name in ("similarity", "racar"):
        control = summary.get(name, {}).get("control", {})
        if control.get("auc") is not None:
            yield f"control of {name}: AUC {control['auc']:.3f} ({control['positives']} against {control['negatives']})"
    found = summary.get("similarity", {})
    if found.get("sampled"):
        yield sample_note(found["sampled"])
    if found.get("flagged_share") is not None:
        yield f"{found['flagged_share']:.1%} of {found['judged']:,} judged question pairs above 0.5"
    if found.get("judge_cosine_spearman") is not None:
        yield f"rank correlation of judge and cosine {found['judge_cosine_spearman']:.2f}"
    if found.get("mean_gap_of_orders") is not None:
        yield f"the judge's two orders differ by {found['mean_gap_of_orders']:.3f} on average"
    if "racar" in summary and summary["racar"]["passing_share"] is not None:
        yield f"{summary['racar']['passing']:,} pairs pass the test-set rule"
    if "grounding" in summary:
        found = summary["grounding"]
        yield f"{found['numbers_found']:,} of {found['numbers']:,} numbers found"
        if found.get("swap_rate") is not None:
            yield (
                f"swap rate {found['swap_rate']:.1%}: {found['swapped_found']:,} of {found['swapped']:,} numbers with "
                "a unit from other papers' answers found too, by coincidence"
            )
    if "near_duplicates" in summary:
        yield f"{summary['near_duplicates']['pairs']:,} near-duplicate questions across papers"
    for problem, count in summary["problems"].items():
        yield f"{count:,} × {problem}"


def _figures(manifest: Any, summary: Any) -> Iterator[Markup]:
    from qaray.report import figures

    if manifest:
        rejected = manifest["counts"]["papers"] - manifest["counts"]["papers_with_pairs"]
        status = {name: manifest["counts"]["by_status"].get(name, 0) for name in ("complete", "short", "truncated")}
        yield figures.yield_bars({**status, "no pairs": rejected})
    shown = (
        "coverage_overall", "coverage_individual", "similarity_judge", "similarity_cosine", "racar_accuracy",
        "racar_relevance", "numbers_found", "self_contained",
    )  # fmt: skip
    metrics = summary["metrics"] if summary else {}
    for name in BOUNDS:
        if name in shown and name in metrics and metrics[name]["papers"]:
            null_name, null_title = NULLS.get(name, ("", ""))
            null = metrics.get(null_name, {}).get("mean")
            title = name.replace("_", " ") + (f", dashed: {null_title}" if null is not None else "")
            yield figures.distribution(metrics[name], title, null)
