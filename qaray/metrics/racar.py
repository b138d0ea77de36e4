"""RACAR: five dimensions of a pair, each graded 1…5 with the paper in context (SciQAG, arXiv 2405.09939)."""

from __future__ import annotations

from collections.abc import Mapping

from qaray.schema import DIMENSIONS

LEVELS = (1, 2, 3, 4, 5)
PASS = 3.0  # minimum grade of the test-set rule


def passes(scores: Mapping[str, float | None], self_contained: bool) -> bool:
    """The rule of SciQAG's test set: at least 3 in every dimension except agnosticism, and self-contained.

    ``self_contained`` follows from the question's words and replaces agnosticism. A missing score does not pass.
    """
    judged = [scores.get(name) for name in DIMENSIONS if name != "agnosticism"]
    return self_contained and all(value is not None and value >= PASS for value in judged)
