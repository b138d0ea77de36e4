"""The grounding stage: numbers, self-contained questions, word overlap with the evidence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from qaray.evaluate.measure import Context, Stage, map_light, score_key
from qaray.evaluate.sources import keys_of
from qaray.evaluate.tables import COVERAGE, GROUNDING
from qaray.metrics.grounding import is_in_paper, mentions, overlap, paper_reference, quantities
from qaray.schema import Failure, Paired, ScoreReason, failed


def grounding(context: Context) -> Stage:
    """The stage that measures grounding; word overlap with the evidence only if coverage was measured."""
    return Stage("grounding", (GROUNDING,), lambda work: map_light(work, _Ground(context), batch_size=1))


@dataclass(frozen=True)
class _Ground:
    context: Context

    def __call__(self, work: pa.Table) -> Iterator[pa.Table]:
        context = self.context
        for shard in work["shard"].to_pylist():
            papers = context.papers(shard)
            keys = keys_of(papers)
            owed = GROUNDING.owed(context.run, shard, keys)
            found = COVERAGE.read(context.run, shard, keys, ["evidence"])
            rows = [
                row
                for paper in papers
                if paper["doi"] in owed
                for row in _grounding_rows(paper, found[paper["doi"]][0]["evidence"] if paper["doi"] in found else None)
            ]
            GROUNDING.write(context.run, shard, rows)
            yield pa.table({"papers": [len({row["doi"] for row in rows})]})


def _grounding_rows(paper: Paired, best: list[Any] | None) -> Iterator[dict[str, Any]]:
    paper_quantities = quantities(paper["txt"])
    for qa, pair in enumerate(paper["pairs"]):
        numbers = mentions(pair["A"])
        missing = [number.text for number in numbers if not is_in_paper(number, paper_quantities)]
        phrase = paper_reference(pair["Q"])
        word_overlap = None
        if best:
            word_overlap = overlap(pair["A"], " ".join(one["text"] for one in best[qa]))
        yield {
            **score_key(paper),
            "qa": qa,
            "pair_id": pair["pair_id"],
            "numbers": len(numbers),
            "numbers_found": len(numbers) - len(missing),
            "missing": missing,
            "self_contained": phrase is None,
            "paper_reference": phrase,
            "answer_words": len(pair["A"].split()),
            "overlap": word_overlap,
            **failed(None if pair["A"].strip() else Failure(ScoreReason.EMPTY_ANSWER)),
        }
