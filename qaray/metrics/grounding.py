"""Grounding: are an answer's numbers, with units, found in the paper?

Numbers are compared as quantities: 1,000 equals 1000, 2.0 × 10−3 equals 0.002, 0.5 g equals 500 mg, and 25 °C equals
298 K. A number without a unit is found only among the paper's numbers without a unit, and vouches for no unit.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from math import isfinite

from qaray.metrics.numbers.mentions import Mention, Quantity, mentions
from qaray.metrics.numbers.units import Unit

__all__ = ["Mention", "PaperNumbers", "content_words", "is_in_paper", "mentions", "overlap", "quantities"]

EXACT = 1e-9  # relative difference of equal values: floating point only
MAX_ROUNDING = 0.03  # relative; the written precision allows at most this


@dataclass
class PaperNumbers:
    """The numbers of a paper: those without a unit, and those with one by dimension, in base units.

    Values of one unit and one last written place are sorted. Whether a number agrees with any of them is decided by the
    two next to it: the difference that is allowed is the same for all of them, or a share of the larger one.
    """

    bare: set[Decimal] = field(default_factory=set)
    measured: dict[str, dict[tuple[Unit, float], list[float]]] = field(default_factory=dict)  # by (unit, place)

    @classmethod
    def of(cls, quantities: Iterable[Quantity]) -> PaperNumbers:
        numbers = cls()
        found: dict[str, dict[tuple[Unit, float], set[float]]] = {}
        for value, unit in quantities:
            if unit is None:
                numbers.bare.add(value)
            elif (measured := _in_base_units(value, unit)) is not None:
                base, place = measured
                found.setdefault(unit.dimension, {}).setdefault((unit, place), set()).add(base)
        numbers.measured = {
            dimension: {key: sorted(values) for key, values in by_place.items()}
            for dimension, by_place in found.items()
        }
        return numbers

    def __contains__(self, quantity: Quantity) -> bool:
        value, unit = quantity
        if unit is None:
            return value in self.bare
        measured = _in_base_units(value, unit)
        if measured is None:
            return False
        for (other_unit, place), values in self.measured.get(unit.dimension, {}).items():
            at = bisect_left(values, measured[0])
            if any(_agree(measured, unit, (other, place, other_unit)) for other in values[max(0, at - 1) : at + 1]):
                return True
        return False


def _in_base_units(value: Decimal, unit: Unit) -> tuple[float, float] | None:
    """(value, last written place) in base units; None beyond the range of floats."""
    base = unit.base(float(value))
    place = 10.0 ** max(-300, min(300, int(value.as_tuple().exponent))) * unit.factor
    return (base, place) if isfinite(base) else None


def _agree(measured: tuple[float, float], unit: Unit, other: tuple[float, float, Unit]) -> bool:
    if unit.kind and other[2].kind and unit.kind != other[2].kind:
        return False  # 5 % by mass and by volume
    difference, size = abs(measured[0] - other[0]), max(abs(measured[0]), abs(other[0]))
    if difference <= EXACT * size:
        return True
    ratio = max(unit.factor, other[2].factor) / min(unit.factor, other[2].factor)
    if unit.offset == other[2].offset and abs(ratio - round(ratio)) <= EXACT * ratio:
        return False  # g and mg, min and h: exact
    return difference <= min(max(measured[1], other[1]) / 2 * (1 + EXACT), MAX_ROUNDING * size)


def quantities(text: str) -> PaperNumbers:
    """Every quantity that the numbers of a paper's text may mean: the index for ``is_in_paper``."""
    return PaperNumbers.of(
        quantity
        for mention in mentions(text)
        for reading in mention.readings
        for alternatives in reading
        for quantity in alternatives
    )


def is_in_paper(mention: Mention, paper: PaperNumbers) -> bool:
    """Whether the paper has all numbers of one of the mention's readings, with their units.

    Equal are: the same value in the same unit, whatever the notation; in units that differ by a whole factor
    (500 mg and 0.5 g, 2 h and 120 min), the same value exactly; in other units of one dimension (25 °C and 298 K,
    1 atm and 101 kPa), values that agree to half of the coarser one's last written place, and within 3 %. A number
    without a unit equals one without a unit. A sign counts: 6 °C is not −6 °C.
    """
    return any(
        all(any(quantity in paper for quantity in alternatives) for alternatives in reading)
        for reading in mention.readings
    )


_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")


def content_words(text: str) -> set[str]:
    """The words of a text in lower case, without stop words and single characters."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = (match[0].lower() for match in _WORD.finditer(text))
    return {word for word in words if len(word) > 1 and word not in ENGLISH_STOP_WORDS}


def overlap(answer: str, evidence: Sequence[set[str]]) -> float | None:
    """Share of the answer's content words that occur in the evidence, in [0, 1]; None if the answer has none.

    ``evidence``: the ``content_words`` of each of its sentences.
    """
    words = content_words(answer)
    return sum(any(word in own for own in evidence) for word in words) / len(words) if words else None
