"""The static report of a run: opens from disk, no network, no script. Paper text is escaped by Jinja2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jinja2

from qaray.generate import best_answers, read_answers
from qaray.outputs import paper_outcome
from qaray.runs import Run, RunRefused

PAPERS_PER_PAGE = 500
SHOWN = ["doi", "title", "source", "keywords", "tokens", "file", "position"]
REASONS = {
    "missing_key": "a required key is missing",
    "wrong_type": "a field has the wrong type",
    "empty_text": "the text is empty",
    "duplicate_doi": "the doi came before",
    "undecodable": "the bytes are no text",
    "not_json": "no JSON at that place",
    "over_length": "longer than the context",
    "engine_error": "the engine failed on it",
    "no_pairs": "no pair in any answer",
}


def write_report(run: Run) -> str:
    """Writes OUT/report/index.html and, beyond 500 papers, further pages. Returns the path of the first.

    Raises RunRefused if the run is not finished.
    """
    manifest = run.manifest.read_json()
    if manifest is None:
        raise RunRefused(
            f"{run.root} holds no finished run (manifest.json is missing): run the command that began it again"
        )
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qaray", "report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = lambda value: f"{value:,}"
    template = environment.get_template("report.html")
    folder = run.root / "report"
    pages = max(1, -(-manifest["counts"]["papers"] // PAPERS_PER_PAGE))
    papers = _papers(run)
    for page in range(pages):
        rows = (row for row, _ in zip(papers, range(PAPERS_PER_PAGE), strict=False))
        context = {"manifest": manifest, "papers": rows, "page": page, "pages": pages, "page_name": page_name}
        if page == 0:
            context |= {"rejected": list(_rejected(run)), "reasons": REASONS}
        with (folder / page_name(page)).write() as stream:
            template.stream(context).dump(stream, encoding="utf-8")
    return (folder / page_name(0)).path


def page_name(page: int) -> str:
    return "index.html" if page == 0 else f"page-{page + 1}.html"


def _papers(run: Run) -> Iterator[dict[str, Any]]:
    """What the report shows of each paper, one shard in memory at a time."""
    files = run.generation_files()
    for shard in run.paper_shards():
        answers = read_answers(shard.fs, files.get(shard.name.removesuffix(".parquet"), []))
        for paper in shard.read_table(SHOWN).to_pylist():
            own = answers.get(paper["doi"], [])
            pairs, status, rejected = paper_outcome(paper, own)
            best = best_answers(own)
            yield {
                "doi": paper["doi"],
                "title": paper["title"] or paper["doi"],
                "source": paper["source"],
                "keywords": paper["keywords"],
                "tokens": paper["tokens"],
                "truncated": max((a["truncated_tokens"] for a in own), default=0),
                "status": str(status) if not rejected else "rejected",
                "why": rejected["detail"] if rejected else "",
                "attempts": max((a["attempt"] for a in own), default=0),
                "windows": len(best),
                "wanted": sum(a["num_qas"] for a in best),
                "pairs": pairs,
                "outputs": [a["output"] for a in best] if rejected else [],
            }


def _rejected(run: Run, most: int = 200) -> Iterator[dict[str, Any]]:
    """The first rejected records of the ingest."""
    shown = 0
    for shard in run.rejected_papers.files(".parquet"):
        for row in shard.read_table().to_pylist():
            if shown == most:
                return
            shown += 1
            yield row
