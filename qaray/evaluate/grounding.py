"""The grounding stage: numbers, self-contained questions, word overlap with the evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import pyarrow as pa

from qaray.corpus.records import has_visible
from qaray.evaluate.measure import Context, Stage, map_light, score_key
from qaray.evaluate.sources import keys_of
from qaray.evaluate.tables import COVERAGE, GROUNDING
from qaray.metrics.grounding import Mention, content_words, is_in_paper, mentions, overlap, quantities
from qaray.metrics.self_contained import paper_reference
from qaray.schema import Failure, Paired, ScoreReason, failed


def grounding(context: Context) -> Stage:
    """The stage that measures grounding; word overlap with the evidence only if coverage was measured."""
    return Stage("grounding", (GROUNDING,), lambda work: map_light(work, _Ground(context), batch_size=1))


SWAPPED = 50  # numbers of other papers' answers that each paper is tested with, each quantity once
FROM_EACH = 4  # at most, of one of these papers
NEIGHBOURS = 50  # papers of the shard whose answers they may be taken from


@dataclass(frozen=True)
class _Ground:
    context: Context

    def __call__(self, work: pa.Table) -> Iterator[pa.Table]:
        context = self.context
        for shard in work["shard"].to_pylist():
            papers = context.papers(shard)
            keys = keys_of(papers)
            owed = GROUNDING.owed(context.run, shard, keys)
            found = COVERAGE.read(context.run, shard, keys, ["evidence", "sentences"])
            numbers = _Numbers(papers)
            rows = [
                row
                for position, paper in enumerate(papers)
                if paper["doi"] in owed
                for row in _grounding_rows(
                    paper,
                    numbers.of(position),
                    numbers.of_others(position),
                    found[paper["doi"]][0] if paper["doi"] in found else None,
                )
            ]
            GROUNDING.write(context.run, shard, rows)
            yield pa.table({"papers": [len({row["doi"] for row in rows})]})


class _Numbers:
    """The numbers in the answers of a shard's papers, read when first asked for."""

    def __init__(self, papers: Sequence[Paired]) -> None:
        self.papers = papers
        self.of, self.with_unit = cache(self._of), cache(self._with_unit)

    def _of(self, position: int) -> list[list[Mention]]:
        """One list per pair of a paper."""
        return [mentions(pair["A"]) for pair in self.papers[position]["pairs"]]

    def _with_unit(self, position: int) -> list[Mention]:
        """The first numbers of a paper that have a unit: as many as ``of_others`` may look at."""
        kept: list[Mention] = []
        times: Counter[Any] = Counter()  # by quantity
        for number in (n for answer in self.of(position) for n in answer if n.has_unit):
            times[number.readings] += 1
            if times[number.readings] <= FROM_EACH:
                kept.append(number)
            if len(times) > SWAPPED + FROM_EACH:
                break
        return kept

    def of_others(self, position: int) -> list[Mention]:
        """Up to SWAPPED different numbers with a unit, from answers of the papers that follow in the shard's circle."""
        found: dict[Any, Mention] = {}  # by quantity
        for other in range(position + 1, position + min(len(self.papers), NEIGHBOURS + 1)):
            new = (n for n in self.with_unit(other % len(self.papers)) if n.readings not in found)
            found.update({number.readings: number for number in islice(new, FROM_EACH)})
            if len(found) >= SWAPPED:
                break
        return list(found.values())[:SWAPPED]


def _grounding_rows(
    paper: Paired, numbers_of: list[list[Mention]], swapped: list[Mention], coverage: dict[str, Any] | None
) -> Iterator[dict[str, Any]]:
    """The rows of a paper's pairs. ``coverage``: its row, None if it was not measured."""
    paper_numbers = quantities(paper["txt"])
    swapped_found = sum(is_in_paper(number, paper_numbers) for number in swapped)
    evidence = coverage["evidence"] if coverage else []
    sentence_words = cache(lambda number: content_words(coverage["sentences"][number] if coverage else ""))
    for qa, (pair, numbers) in enumerate(zip(paper["pairs"], numbers_of, strict=True)):
        missing = [number.text for number in numbers if not is_in_paper(number, paper_numbers)]
        asked, answered = has_visible(pair["Q"]), has_visible(pair["A"])
        phrase = paper_reference(pair["Q"])
        word_overlap = None
        if evidence:
            word_overlap = overlap(pair["A"], [sentence_words(one["sentence"]) for one in evidence[qa]])
        yield {
            **score_key(paper),
            "qa": qa,
            "pair_id": pair["pair_id"],
            "numbers": len(numbers),
            "numbers_found": len(numbers) - len(missing),
            "missing": missing,
            "swapped": len(swapped) or None,
            "swapped_found": swapped_found if swapped else None,
            "self_contained": phrase is None if asked else None,
            "paper_reference": phrase,
            "answer_words": len(pair["A"].split()) if answered else None,
            "overlap": word_overlap,
            **failed(_empty(asked, answered)),
        }


def _empty(asked: bool, answered: bool) -> Failure | None:
    """Why a pair has no score: its question or its answer is empty."""
    if asked and answered:
        return None
    return Failure(ScoreReason.EMPTY_ANSWER if asked else ScoreReason.EMPTY_QUESTION)
