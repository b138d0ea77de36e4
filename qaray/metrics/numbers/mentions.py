"""Numbers of scientific text with their units: a tokenizer, and a grammar of what joins numbers.

    chain    = number { joint number } [")" [power] [unit]]     "10, 20 and 30 mL", "(3 ± 1) mg", "(2-4) × 10^3 Pa"
    joint    = a range, an error (±), a dimension (×), a list; below the head of a column also a blank
    number   = numeral [unit]                                   "5 mg", "532-nm", "2.5 million", "seven", "fivefold"

A number without a unit takes that of the number that follows it in its chain, or of the head before it ("T/K: 300,
310"). Labels, citations, years and parts of names are no numbers (``labels``). Where a text can be read in several
ways, a mention keeps them all: "10-3" is a thousandth, or the range from 10 to 3.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import pairwise
from string import ascii_letters
from typing import NamedTuple

from qaray.metrics.numbers.labels import identifier_end, is_label, is_year, mask
from qaray.metrics.numbers.notation import plain
from qaray.metrics.numbers.numerals import (
    MAX_POWER,
    NUMERAL,
    POWER,
    match_numeral,
    power_of_ten,
    scaled,
)
from qaray.metrics.numbers.tokens import NumberToken, continues_name, read_number
from qaray.metrics.numbers.unit_text import match_unit
from qaray.metrics.numbers.units import Unit


class Quantity(NamedTuple):
    """A value as written, so that its exponent is the last written place; ``unit`` is None for a bare number."""

    value: Decimal
    unit: Unit | None


Alternatives = tuple[Quantity, ...]  # readings of one number: a paper needs one of them
Reading = tuple[Alternatives, ...]  # the numbers of a mention: a paper needs all of them


@dataclass(frozen=True)
class Mention:
    """A number, or a range, as written, with its possible readings."""

    text: str
    readings: tuple[Reading, ...]

    @property
    def has_unit(self) -> bool:
        """Whether the number is written with a unit, or takes one from what it is joined to."""
        return all(quantity.unit is not None for part in self.readings[0] for quantity in part)


MAX_READINGS = 6
AROUND = 48  # characters before and after a number that decide whether it is a label

# Where a numeral may begin. The sets of first characters let the search skip all others.
_START = re.compile(
    r"[0-9]++|[TtFfSsEeNnOoHhZz](?<![\w-].)(?:(?<=[Tt])(?:wo|hree|en|w[ei]|hirt|hri)|(?<=[Ff])(?:our|i[vf]|ort)|"
    r"(?<=[Ss])(?:ix|even)|(?<=[Ee])(?:igh|lev)|(?<=[Nn])ine|(?<=[Oo])ne|(?<=[Hh])alf|(?<=[Zz])ero)|"
    r"[Aa](?<![\w-].)\s(?:doz|hund|thous|mill|bill|trill)"
)
_CONTINUED = frozenset("^@#%_" + ascii_letters)  # digits after these are no number
_JOINT = re.compile(
    r"""
    (?P<range>\s?(?:-|~|\.\.\.?|…)\s?(?=[\d.+±-])
            |-?\s(?:up\s|down\s)?(?:to|through)\s(?:about\s|approximately\s|up\sto\s|~\s?)?)
    | (?P<error>\s?\(?\s?(?:±|\+/-|\+-)\s?|\splus\sor\sminus\s)
    | (?P<times>\s?[×x*]\s?|\sby\s)
    | (?P<list>-?\s?(?:,|;)\s?(?P<last>(?:and|or)\s)?|-?\s(?P<conjunction>and|or|versus|vs\.?)\s|/)
    | (?P<blank>\s)
    """,
    re.VERBOSE,
)
_AFTER_BRACKET = re.compile(rf"\s?\)(?:{POWER})?", re.VERBOSE)
_HEAD = re.compile(
    r"(?:[(\[]\s?(?:in\s)?|/\s?|\bin\s|,\s)([^\s()\[\]:=,;|]{1,16}(?:\s[^\s()\[\]:=,;|]{1,8})?)[)\]]?\s?([:=|])?\s?\Z"
)
_NO_HEADS = frozenset("ABCDs")  # "(A)" is a panel, "patient(s)" a plural; units only before a colon
_TIME_HEAD = re.compile(r"\b(days?|weeks?|months?|hours?|minutes?)\s\Z", re.IGNORECASE)
# Words for a few things that an answer sums up, rather than numbers of the paper: "two main types", "three of".
_SUMMARY = re.compile(
    r"\s(?:(?:main|major|key|different|distinct|important|primary|new|novel|other|basic|possible|more|such)\b|"
    r"(?:types?|kinds?|ways?|factors?|reasons?|methods?|approaches|steps?|categories|aspects?|of|are|is)\b)"
)
_EXTENTS = frozenset(("[length]^1", "[length]^2", "[pixel]^1", "[angle]^1"))  # of "2 × 3 mm"; "3 × 5 mL" is a count


def mentions(text: str) -> list[Mention]:
    """The numbers in a text. Digits within names (CO2, IL-6), labels, citations and years do not count."""
    return list(_mentions(mask(plain(text))))


def _mentions(text: str) -> Iterator[Mention]:
    position = 0
    for start in _starts(text):
        if start < position or (match := match_numeral(text, start)) is None:
            continue
        if not match["words"] and (end := identifier_end(text, match.start("digits"))):
            position = end
            continue
        head = _head(text, match.start())
        chain, position = _chain(text, match, bool(head))
        if chain:
            _take_units(text, chain, head)
            position = max(position, chain[-1].end)
            yield from _emit(text, chain)


def _starts(text: str) -> Iterator[int]:
    """Where a number may begin: digits that continue no word, and number words."""
    for match in _START.finditer(text):
        start = match.start()
        if not start or text[start - 1] not in _CONTINUED:
            yield start


def _before(text: str, start: int) -> str:
    return text[max(0, start - AROUND) : start]


def _chain(text: str, match: re.Match[str], has_head: bool) -> tuple[list[NumberToken], int]:
    """The numbers joined to the first one, and where to go on."""
    before = text[max(0, match.start() - 2) : match.start()]
    first = None if continues_name(before) else read_number(text, match)
    if first is None:
        return [], match.end()
    chain: list[NumberToken] = []
    _append(chain, first)
    position = first.end
    while joint := _JOINT.match(text, position):
        if joint["blank"] and (not has_head or chain[-1].units):
            break
        following_match = NUMERAL.match(text, joint.end())
        if following_match is None:
            break
        if not following_match["words"] and identifier_end(text, following_match.start("digits")):
            break
        following = read_number(text, following_match)
        if following is None:
            break
        chain[-1].joint = str(joint.lastgroup)
        chain[-1].last_but_one = bool(joint["last"] or joint["conjunction"])
        following.in_bracket = "(" in joint[0]
        _append(chain, following)
        position = following.end
    return chain, position


def _append(chain: list[NumberToken], number: NumberToken) -> None:
    """Adds a number, and the error that it may have in brackets: "1.234(5)" is 1.234 ± 0.005."""
    chain.append(number)
    if number.error is not None:
        chain.append(replace(number, values=[[number.error]]))


def _head(text: str, start: int) -> tuple[Unit, ...]:
    """Units of the head of a column or list before ``start``: "T/K:", "Time (h)", "temperature in °C:"."""
    before = _before(text, start)
    if "/" not in before and before.rstrip()[-1:] not in (")", "]", ":", "=", "|"):
        return ()
    match = _HEAD.search(before)
    if match is None or match.start() == 0 or not (match[2] or match[0][0] in "/(["):
        return ()
    unit = match_unit(match[1], 0)
    if unit is None or unit.end != len(match[1]) or (match[1] in _NO_HEADS and not match[2]):
        return ()
    return unit.readings


def _take_units(text: str, chain: list[NumberToken], head: tuple[Unit, ...]) -> None:
    """Gives each number of a chain without a unit that of what it is joined to."""
    first, last = chain[0], chain[-1]
    opened = last.in_bracket or "(" in text[max(0, first.start - 2) : first.start + 1]
    if opened and not last.units and (bracket := _AFTER_BRACKET.match(text, last.end)):
        _take_from_bracket(text, chain, bracket)
    labels = len(chain) > 1 and is_label(_before(text, first.start))  # "Fig. 2, 5 mg"
    for number, following in reversed(list(pairwise(chain))):
        if labels and number.joint == "list":
            continue
        if not number.units and following.units and number.joint != "blank":
            _take_following(text, number, following, alone=len(chain) == 2)
        elif number.joint == "range" and number.units and all(unit.dimension == "[angle]^1" for unit in number.units):
            number.units = tuple(dict.fromkeys(number.units + following.units))  # 20°-30 °C
    for number, following in pairwise(chain):
        if number.units and not following.units and number.joint in ("range", "error"):
            following.units = number.units
    for number in chain:
        if not number.units and head:
            number.units = head
    if not first.units and (time := _TIME_HEAD.search(_before(text, first.start))):  # "day 7"
        unit = match_unit(time[1], 0)
        first.units, first.may_be_bare = unit.readings if unit else (), True


def _take_following(text: str, number: NumberToken, following: NumberToken, alone: bool) -> None:
    if number.joint == "times" and not any(unit.dimension in _EXTENTS for unit in following.units):
        return  # "3 × 100 mL": three times
    if number.joint == "list" and is_year(_before(text, number.start), number.written, ","):
        return
    number.units = following.units
    number.may_be_bare = number.joint == "times" or (number.joint == "list" and alone and not number.last_but_one)


def _take_from_bracket(text: str, chain: list[NumberToken], bracket: re.Match[str]) -> None:
    """A power and a unit after a bracket are those of all numbers in it: "(2-4) × 10^3 kg"."""
    shift, end = power_of_ten(bracket), bracket.end()
    unit = match_unit(text, end + text[end : end + 1].isspace())
    if abs(shift) > MAX_POWER or (not shift and unit is None):
        return
    for number in chain:
        if not number.units:
            number.values = scaled(number.values, shift)
            number.units = unit.readings if unit else ()
    chain[-1].end = unit.end if unit else end


def _emit(text: str, chain: list[NumberToken]) -> Iterator[Mention]:
    """The mentions of a chain: one for each range, one for each other number."""
    numbers = iter([number for number in chain if not _is_no_quantity(text, chain[0], number)])
    for number in numbers:
        upto = next(numbers, None) if number.joint == "range" else None
        if upto is None:
            yield _mention(text, number, number, _readings(number))
            continue
        readings = [(*left, *right) for left in _readings(number) for right in _readings(upto)]
        if upto.shift and not number.shift:  # "5-20 × 10^-4 M"
            number.values = scaled(number.values, upto.shift)
            readings += [(*left, *right) for left in _readings(number) for right in _readings(upto)]
        yield _mention(text, number, upto, readings)


def _mention(text: str, first: NumberToken, last: NumberToken, readings: list[Reading]) -> Mention:
    return Mention(text[first.start : last.end].strip(), tuple(readings[:MAX_READINGS]))


def _readings(number: NumberToken) -> list[Reading]:
    units: tuple[Unit | None, ...] = number.units or (None,)
    either = tuple(dict.fromkeys((*units, None)))
    signs = (1, -1) if number.both_signs else (1,)
    return [
        tuple(
            tuple(
                Quantity(value * sign, unit)
                for unit in (units if value is values[-1] and not number.may_be_bare else either)
                for sign in signs
            )
            for value in values
        )
        for values in number.values
    ]


def _is_no_quantity(text: str, first: NumberToken, number: NumberToken) -> bool:
    """Whether a number is a label, a citation or a year; a label before a chain is that of all its numbers."""
    label = _before(text, first.start)
    if number.units:  # "Fig. 2A" has no ampere
        return number.end == number.bare_end + 1 and text[number.bare_end].isupper() and is_label(label)
    after = text[number.end : number.end + AROUND]
    if not number.written[0].isdigit() and number.written[0] != ".":
        return number.written.lower() in ("one", "zero") or _is_summary(number, after) or is_label(label)
    if is_label(label, number.written, after) if number is first else is_label(label):
        return True
    return text[number.start : number.end].isdigit() and is_year(_before(text, number.start), number.written, after)


def _is_summary(number: NumberToken, after: str) -> bool:
    return number.end == number.bare_end and _SUMMARY.match(after) is not None
