"""The static report of a run: opens from disk with no network. Paper text is escaped by Jinja2 and never runs.

OUT/report/index.html   yield, scores, figures, a table of papers to sort and filter
OUT/report/papers/      a page a paper: its pairs, its text with their evidence, its figures
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any

from markupsafe import Markup

from qaray.evaluate.sources import GeneratedPapers, Source
from qaray.evaluate.summary import BOUNDS
from qaray.metrics.similarity import FLAGGED
from qaray.report.pages import Pages, figure
from qaray.report.papers import COLUMNS, Span, papers_of, spans
from qaray.run.cluster import in_order
from qaray.run.directory import Run

REJECTED_SHOWN = 200  # records
PAGES_AT_ONCE = 20
REASONS = {
    "missing_key": "a required key is missing",
    "wrong_type": "a field has the wrong type",
    "empty_text": "the text is empty",
    "duplicate_doi": "the doi came before",
    "undecodable": "the bytes are no text",
    "not_json": "no JSON at that place",
    "over_length": "longer than the context",
    "engine_error": "the engine failed on it",
    "process_killed": "every process that worked on it was killed",
    "no_pairs": "no pair in any answer",
}
MEANINGS = {
    "coverage_overall": "tenths of the paper that hold the sentences nearest to all pairs together",
    "coverage_individual": "the same of each pair's own nearest sentences",
    "coverage_null": "what as many random sentences would hit",
    "coverage_lift": "overall − random: below 0 the pairs cluster more than chance would",
    "sentence_std": "spread of a sentence's cosines over the pairs",
    "similarity_judge": "do two questions of a paper ask the same? by the judge, both orders, 0 to 1",
    "similarity_cosine": "the same by the questions' embeddings",
    "similarity_flagged": f"share of a paper's question pairs above {FLAGGED}",
    "racar_relevance": "1 to 5: about the paper's science",
    "racar_agnosticism": "1 to 5: understood without the paper",
    "racar_completeness": "1 to 5: answers all that is asked",
    "racar_accuracy": "1 to 5: agrees with the paper",
    "racar_reasonableness": "1 to 5: coherent, soundly reasoned",
    "racar_passes": "share of pairs that pass the test-set rule: 3 in all, and a question that stands alone",
    "numbers_found": "share of the answers' numbers that stand in the paper, with their unit",
    "self_contained": "share of questions without “this study”, “Figure 3” and the like",
    "answer_words": "words of an answer",
    "evidence_overlap": "share of an answer's content words that its evidence has",
}


def write_report(
    run: Run, source: Source, most: int, report: Callable[[int, int], None] = lambda done, pages: None
) -> str:
    """Writes the pages of the first ``most`` papers of ``source`` and the index. Returns the index's path.

    Figures take a third of a second a paper, so that pages are tasks where Ray is connected.

    Raises RunRefused unless what wrote the pairs is finished: the run, or the evaluation that took them in.
    """
    manifest: Any = None
    evaluation: Any
    if isinstance(source, GeneratedPapers):
        taken_in, manifest, evaluation = run, run.finished(), run.measured()
    else:
        taken_in, evaluation = run.evaluation, run.evaluation.finished()
    summary = run.evaluation.summary.read_json() if evaluation else None
    folder, pages = run.root / "report", Pages()
    papers: list[dict[str, Any]] = []
    work = list(spans(source, most, PAGES_AT_ONCE))
    for written in in_order(
        _write_pages, (run, source, evaluation is not None), ((span,) for span in work), ahead=64, cpus=1
    ):
        papers += written
        report(len(papers), sum(span.papers for span in work))
    for page in (folder / "papers").files(".html")[len(papers) :]:
        page.remove()  # of an earlier report with more papers
    total = (manifest or evaluation)["counts"]["papers"]
    records = taken_in.rejected_records()
    rejected = list(islice(records, REJECTED_SHOWN))
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
    """The pages of a span's papers; what the index says of each. Runs as a task."""
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
        return f"{counts['pairs']:,} question-answer pairs of {counts['papers']:,} papers, measured"
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
            "meaning": MEANINGS[name],
        }
        for name, found in (summary["metrics"] if summary else {}).items()
    ]


def _notices(summary: Any) -> Iterator[str]:
    """What the reader must know before believing a score."""
    for name in ("similarity", "racar"):
        control = (summary or {}).get(name, {}).get("control", {})
        if control.get("near_chance"):
            yield (
                f"The judge's {name} scores say little: on {control['what']}, it tells the two apart with an AUC of "
                f"{control['auc']:.2f}, where 0.5 is chance."
            )


def _facts(summary: Any) -> Iterator[str]:
    if not summary:
        return
    for name in ("similarity", "racar"):
        control = summary.get(name, {}).get("control", {})
        if control.get("auc") is not None:
            yield f"control of {name}: AUC {control['auc']:.3f} ({control['positives']} against {control['negatives']})"
    found = summary.get("similarity", {})
    if found.get("flagged_share") is not None:
        yield f"{found['flagged_share']:.1%} of {found['judged']:,} judged question pairs above 0.5"
    if found.get("judge_cosine_spearman") is not None:
        yield f"rank correlation of judge and cosine {found['judge_cosine_spearman']:.2f}"
    if found.get("mean_gap_of_orders") is not None:
        yield f"the judge's two orders differ by {found['mean_gap_of_orders']:.3f} on average"
    if "racar" in summary and summary["racar"]["passing_share"] is not None:
        yield f"{summary['racar']['passing']:,} pairs pass the test-set rule"
    if "grounding" in summary:
        yield f"{summary['grounding']['numbers_found']:,} of {summary['grounding']['numbers']:,} numbers found"
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
            null = metrics["coverage_null"]["mean"] if name.startswith("coverage") else None
            title = name.replace("_", " ") + (", dashed: random" if null is not None else "")
            yield figures.distribution(metrics[name], title, null)
