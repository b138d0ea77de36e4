"""The grammar of units: text after a number → units.

    unit    = factor { separator factor }         separator: "/", "per", "·", "*", ".", "-", a blank
    factor  = [number] symbol [power]             a symbol of ``units.TABLE`` with a prefix, or a name in words
    power   = "^-1" "-1" " -1" "2" "squared"      the minus and superscripts as ``notation.plain`` writes them

A text may have several readings: ``5 C`` is a charge or a temperature; ``W/m·K`` is W/(m·K) or W·K/m.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

from qaray.metrics.numbers.units import ENTITIES, SYMBOLS, Unit, dimension_of, unit_names, unit_of

# What a blank joins without a negative power: in a product ("3 mA h", "5 N m"), and in a denominator ("cm2/V s").
PRODUCTS = re.compile(r"[kMGmµn]?(?:[AWVJ] h|N (?:c?m|s)|(?:Pa|[JVAWC]) s|(?:Ω|[Oo]hm) c?m)")
DENOMINATORS = frozenset(("s", "h", "min", "K", "m", "cm", "mL", "L", "mol", "mg", "g", "kg", "day", "d"))
# Units of several words, or with signs of their own.
_PERCENT = r"[\s-]?(?:%|percent\b|per\scent\b)"
SPELLED = tuple(
    (re.compile(pattern, re.IGNORECASE), symbol)
    for pattern, symbol in (
        (r"deg(?:rees?|\.)?\s?(?:celsius|centigrade|c)\b", "°C"),
        (r"deg(?:rees?|\.)?\s?(?:fahrenheit|f)\b", "°F"),
        (r"degrees?\skelvin\b", "K"),
        (r"°\s?c\b", "°C"),
        (r"°\s?f\b", "°F"),
        (r"per\s?cent(?:age\spoints?)?\b", "%"),
        (r"per\s?mill?e?\b", "‰"),
        (r"parts?\sper\smillion\b", "ppm"),
        (r"parts?\sper\sbillion\b", "ppb"),
        (rf"(?:wt\.?|w/w|mass|weight){_PERCENT}", "wt%"),
        (rf"(?:vol\.?|v/v|volume){_PERCENT}", "vol%"),
        (rf"mol(?:e|ar|\.)?{_PERCENT}", "mol%"),
        (rf"at(?:om|omic|\.)?{_PERCENT}", "at%"),
        (r"%\s?\(?(?:by\s(?:weight|mass)|w/w|m/m|wt)\b\)?", "wt%"),
        (r"%\s?\(?(?:by\svolume|v/v|vol)\b\)?", "vol%"),
        (r"r\.p\.m\.?|rev(?:olutions?|\.)?(?:\sper\sminute|/min)\b|rotations?\sper\sminute\b", "rpm"),
        (r"beats(?:\sper\sminute|/min)\b", "bpm"),
        (r"frames(?:\sper\ssecond|/s)\b", "fps"),
        (r"[×x]\s?g\b(?![/·])", "×g"),
        (r"mm\shg\b|millimet(?:er|re)s?\sof\smercury\b", "mmHg"),
        (r"cm\sh2o\b", "cmH2O"),
        (r"base\spairs?\b", "bp"),
        (r"amino\sacids?\b", "aa"),
    )
)
_SPELLED = re.compile("|".join(pattern.pattern for pattern, _ in SPELLED), re.IGNORECASE)


class UnitMatch(NamedTuple):
    end: int  # position after the unit
    readings: tuple[Unit, ...]
    symbol: str  # the first factor as written


_NAME = re.compile(
    r"[%‰]|°[CFK](?![A-Za-z])|°|wt%|vol%|mol%|at%|×g|cmH2O|"
    r"[A-Za-zµΩÅå]{1,24}(?:-(?:year|volt|pair|hour)s?)?(?![A-Za-zµΩ])"
)
_POWER = re.compile(
    r"\^\s?\(?([-+]?\d)\)?(?!\d)|\*\*\(?([-+]?\d)\)?|\s?(-[1-9])(?!\d|[.,]\d|\s?[-±×])|([2-4])(?!\d|[.,]\d)"
    r"|\s([23])(?=\s?(?:[),;:]|\.(?!\d)|$))"  # PDF: "0.3 cm 2"
)
_DIVISION = re.compile(r"\s?/\s?(\(?)|\sper\s(\(?)", re.IGNORECASE)
_PRODUCT = re.compile(r"\s?[·*]\s?|\.(?=[A-Za-zµ°])|-(?=[A-Za-zµ])|\s")
_COUNT = re.compile(r"(\d{1,4})\s?(?=[A-Za-zµ])")  # "mg/100 mL"
_ADJECTIVE = re.compile(r"(square|cubic)\s", re.IGNORECASE)
_SQUARED = re.compile(r"\s(squared|cubed)\b", re.IGNORECASE)
_RAISED = ("meter", "second", "inch", "foot", "mile", "volt", "angstrom", "parsec")  # units with positive powers
MAX_FACTORS, MAX_READINGS, WINDOW = 6, 4, 120  # the last in characters


class _Factor(NamedTuple):
    symbols: tuple[tuple[str, ...], ...]  # names of each symbol; several symbols if they are glued
    power: int  # of the last symbol
    written: str
    signed: bool  # the power has a minus
    end: int
    signs: tuple[int, ...] = (1,)  # of the powers: -1 below a division sign, both if that is open


def match_unit(text: str, start: int) -> UnitMatch | None:
    """The longest unit that begins at ``start`` of a text in plain notation; None if there is none."""
    window, shift = text[start : start + WINDOW], 0
    if match := _SPELLED.match(window):
        symbol = next(symbol for pattern, symbol in SPELLED if pattern.fullmatch(match[0]))
        window, shift = symbol + window[match.end() :], match.end() - len(symbol)
    found = _factors(window)
    if found is None:
        return None
    factors, end, scale = found
    readings = tuple(dict.fromkeys(_units(factors, scale)))
    return UnitMatch(start + end + shift, readings, factors[0].written) if readings else None


def _units(factors: list[_Factor], scale: float) -> Iterator[Unit]:
    """The units that the factors may mean, at most MAX_READINGS for each choice of signs."""
    names = [name for each in factors for name in each.symbols]
    for signs in list(product(*(each.signs for each in factors)))[:MAX_READINGS]:
        powers = [
            sign * power
            for each, sign in zip(factors, signs, strict=True)
            for power in (*[1] * (len(each.symbols) - 1), each.power)
        ]
        for chosen in list(product(*names))[:MAX_READINGS]:
            unit = unit_of(tuple(zip(chosen, powers, strict=True)), scale)
            if unit is not None:
                yield unit


def _factors(text: str) -> tuple[list[_Factor], int, float] | None:
    """(factors, end, scale) of the unit at the beginning of a text."""
    first = _factor(text, 0)
    if first is None:
        return None
    factors, end, scale = [first], first.end, 1.0
    below = in_group = False  # after a division sign, in a bracket after one
    while len(factors) < MAX_FACTORS:
        division = None if in_group else _DIVISION.match(text, end)
        between = division or _PRODUCT.match(text, end)
        count = _COUNT.match(text, between.end()) if division and between else None
        following = _factor(text, count.end() if count else between.end() if between else end)
        if following is None or not _joins(factors[-1], between, following, below, in_group):
            break
        if division:
            below, in_group = True, "(" in division[0]
            scale /= max(1, int(count[1])) if count else 1
        open_sign = below and not following.signed and not division and not in_group
        signs = (-1, 1) if open_sign else (-1,) if division or in_group else (1,)
        factors.append(following._replace(signs=signs))
        end = following.end
        if in_group and text[end : end + 1] == ")":
            end, in_group = end + 1, False
    if first.written in ENTITIES and not any(each.signed or -1 in each.signs for each in factors[1:2]):
        return None  # "40,000 spores per plate" is a count
    return factors, end, scale


def _joins(last: _Factor, between: re.Match[str] | None, following: _Factor, below: bool, in_group: bool) -> bool:
    """Whether two factors are one unit: "cm2V-1" needs no separator, "mg L-1" a blank, "mA h" is in a table."""
    if between is None:
        return last.power != 1 and (following.signed or last.signed)
    if not between[0].isspace() or following.signed or in_group:
        return True
    if below and following.written in DENOMINATORS:
        return True
    return PRODUCTS.fullmatch(f"{last.written} {following.written}") is not None


def _factor(text: str, start: int) -> _Factor | None:
    adjective = _ADJECTIVE.match(text, start)
    match = _NAME.match(text, adjective.end() if adjective else start)
    if match is None:
        return None
    written, end = match[0], match.end()
    power_match = _POWER.match(text, end) if written[0] not in "%‰" and written != "°" else None
    power = int(next(filter(None, power_match.groups()))) if power_match else 1
    names = unit_names(written)
    if names is None:
        if power_match is None or power >= 0 or (symbols := _split(written)) is None:
            return None
        return _Factor(symbols, power, written, True, power_match.end())
    if power_match and _may_have(names, power) and not _is_range(text, names, power_match):
        end = power_match.end()
    else:  # a citation: "5 mg^12"
        power = 1
    if squared := _SQUARED.match(text, end):
        power, end = (2 if squared[1].lower() == "squared" else 3), squared.end()
    if adjective:
        power = 2 if adjective[1].lower() == "square" else 3
    return _Factor((names,), power, written, power < 0, end)


def _may_have(names: tuple[str, ...], power: int) -> bool:
    """Whether the unit is ever written with this power: others are citations, or the end of a range."""
    if power < 0:
        return power >= -6 and names[0] not in ("degC", "degF")
    return 1 <= power <= 4 and any(name.endswith(_RAISED) for name in names)


def _is_range(text: str, names: tuple[str, ...], power: re.Match[str]) -> bool:
    """Whether "-1" begins a range's end with a unit of the same dimension: "5 µm-1 mm"."""
    if not power[3]:
        return False
    blank = text[power.end() : power.end() + 1].isspace()
    match = _NAME.match(text, power.end() + blank)
    following = unit_names(match[0]) if match and not _POWER.match(text, match.end()) else None
    return following is not None and dimension_of(following[0]) == dimension_of(names[0])


def _split(written: str, most: int = 3) -> tuple[tuple[str, ...], ...] | None:
    """Symbols without a separator, as PDFs have them ("mgL-1", "mAcm-2"): the fewest, the first as long as possible."""
    if written in SYMBOLS:
        return (SYMBOLS[written],)
    found = [
        (SYMBOLS[written[:cut]], *rest)
        for cut in range(4, 0, -1)
        if most > 1 and written[:cut] in SYMBOLS and (rest := _split(written[cut:], most - 1))
    ]
    return min(found, key=len, default=None)
