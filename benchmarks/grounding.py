"""Finding the numbers of answers in their papers: the paper read once, against the paper read for each pair.

    ratio grounding_shared_paper   seconds a pair: the paper's numbers extracted for each pair / once for its pairs

Both are pure Python on one core. Before the ratio, milliseconds a pair and a paper are printed. pint's registry is
built before the timing. The pairs are those of --papers (``Q&A``), or as many as --pairs cut from the paper's text.

    python benchmarks/grounding.py [--papers PATH] [--pairs 10] [--repeat 5]
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from statistics import median
from typing import Any

from qaray.metrics.grounding import is_in_paper, mentions, quantities

SAMPLE = Path(__file__).parents[1] / "qaray/sample/papers.json"


def answers_of(paper: dict[str, Any], pairs: int) -> list[str]:
    """The answers of a paper, or sentences of its text that have digits."""
    if paper.get("Q&A"):
        return [str(next((pair[key] for key in ("A", "answer") if key in pair), "")) for pair in paper["Q&A"]]
    sentences = [sentence for sentence in re.split(r"(?<=[.?!])\s", paper["txt"]) if re.search(r"\d", sentence)]
    return (sentences * pairs)[:pairs]


def shared(papers: list[tuple[str, list[str]]]) -> int:
    """Numbers found, with each paper read once."""
    found = 0
    for text, answers in papers:
        known = quantities(text)
        found += sum(is_in_paper(number, known) for answer in answers for number in mentions(answer))
    return found


def plain(papers: list[tuple[str, list[str]]]) -> int:
    """Numbers found, with the paper read for each pair."""
    return sum(
        is_in_paper(number, known)
        for text, answers in papers
        for answer in answers
        for known in [quantities(text)]
        for number in mentions(answer)
    )


def seconds(work: Any, papers: list[tuple[str, list[str]]]) -> float:
    begun = time.perf_counter()
    work(papers)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--papers", type=Path, default=SAMPLE)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    records = json.loads(options.papers.read_text())
    papers = [(record["txt"], answers_of(record, options.pairs)) for record in records]
    pairs = sum(len(answers) for _, answers in papers)
    characters = sum(len(text) for text, _ in papers) // len(papers)
    assert shared(papers) == plain(papers)
    rounds = [(seconds(shared, papers), seconds(plain, papers)) for _ in range(options.repeat)]
    ours, theirs = median(one for one, _ in rounds), median(other for _, other in rounds)
    extraction = median(seconds(lambda papers: [quantities(text) for text, _ in papers], papers) for _ in range(3))
    print(f"{len(papers)} papers of {characters:,} characters on average, {pairs} pairs")
    print(f"{1000 * ours / pairs:.2f} ms a pair; {1000 * extraction / len(papers):.1f} ms to read a paper")
    print(f"ratio grounding_shared_paper {theirs / ours:.2f} (of {options.repeat})")


if __name__ == "__main__":
    main()
