"""Merges the answers of a paper into its pairs, using the best attempt of each window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qaray.asking.grammar import no_pairs, question_key
from qaray.generate.answers import best_answers
from qaray.schema import CUT_OFF, Pair, Paper, Parsed, ParseStatus, Rejected, RejectReason, failure_of

SHOWN = 200  # characters of an output without pairs in rejected.jsonl


def paper_outcome(paper: Paper, answers: list[Parsed]) -> tuple[list[Pair], ParseStatus, Rejected | None]:
    """The paper's pairs from the best attempt of each window, its status, and its rejection if it has no pairs."""
    best = best_answers(answers)
    pairs = paper_pairs(answers)
    wanted = sum(answer["num_qas"] for answer in best)
    cut = any(a["finish_reason"] in CUT_OFF for a in best)
    if pairs:
        short = ParseStatus.TRUNCATED if cut else ParseStatus.SHORT
        return pairs, ParseStatus.COMPLETE if len(pairs) >= wanted else short, None
    failure = next((found for answer in best if (found := failure_of(answer))), None)
    if failure is not None:
        (reason, detail), stage = failure, "generate"
    else:
        reason, stage = str(RejectReason.NO_PAIRS), "parse"
        ended = ", ".join(sorted({str(a["reason"] or a["finish_reason"]) for a in answers}))
        detail = no_pairs_detail([answer["output"] for answer in best], f"{len(answers)} tried, ended by {ended}")
    rejected = Rejected(
        doi=paper["doi"],
        file=paper["file"],
        position=paper["position"],
        stage=stage,
        reason=reason,
        detail=detail,
    )
    return [], ParseStatus.MALFORMED, rejected


def no_pairs_detail(outputs: Sequence[str], note: str = "") -> str:
    """Why outputs have no pairs: what they are, and the beginning of the first one, at most 200 characters."""
    kinds = ", ".join(dict.fromkeys(str(no_pairs(output)) for output in outputs))
    begins = next((output for output in outputs if output.strip()), "").strip()[:SHOWN]
    return f"no question-answer pair: {kinds}{f' ({note})' if note else ''}" + (f": {begins}" if begins else "")


def paper_pairs(answers: list[Parsed]) -> list[Pair]:
    """The paper's pairs: those of the best attempt of each window, merged."""
    return merged_pairs([answer["pairs"] for answer in best_answers(answers)])


def merged_pairs(windows: list[list[Pair]]) -> list[Pair]:
    """The pairs of all windows of a paper. The first of several pairs with the same question is kept."""
    first: dict[str, Pair] = {}
    for pairs in windows:
        for pair in pairs:
            first.setdefault(question_key(pair["Q"]), pair)
    return list(first.values())


def processed_record(paper: Any, pairs: list[Pair]) -> dict[str, Any]:
    """A record of processed_output.json."""
    record = {key: paper.get(key) for key in ("source", "doi", "abstract", "keywords", "txt", "title")}
    return {**record, "num_Q&A": len(pairs), "Q&A": pairs}
