"""One number of a text with its own unit, or the finding that its digits are part of a name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal

from qaray.metrics.numbers.labels import is_isotope
from qaray.metrics.numbers.numerals import Values, power_of_ten, values_of
from qaray.metrics.numbers.unit_text import UnitMatch, match_unit
from qaray.metrics.numbers.units import Unit

_HALF = re.compile(r"\san?\s")
_FOLD = re.compile(r"[\s-]?(?:fold|times)\b", re.IGNORECASE)
# Nouns after a hyphen that leave a number a count; after any other word it is a locant or part of a name.
_COUNTED = re.compile(
    r"-(?:well|item|point|channel|lead|bed|patient|subject|sample|cycle|plex|mer|member|year-old)s?\b"
)
_ION = re.compile(r"(?:\A|[^A-Za-z])[A-Z][a-z]?\s?\Z")  # "Fe 3+"
_PART_OF_NAME = re.compile(r"[+-](?=[A-Za-z\s,.)]|\Z)| (?:cells?|lymphocytes?|terminal|terminus|atoms?)\b")
_STEREO, _AFTER_STEREO = re.compile(r"\)?-|,\s?\d+[RSEZ]"), re.compile(r"[RSEZ],\s?\Z")  # "(2R,3S)-"


@dataclass
class NumberToken:
    """A number in a text; the grammar of chains completes its unit."""

    start: int
    end: int  # after the unit, if it has one
    bare_end: int  # before the unit
    values: Values
    written: str  # digits or words
    shift: int = 0  # power of ten after ×
    both_signs: bool = False  # ±5
    error: Decimal | None = None  # 0.005 in "1.234(5)"
    units: tuple[Unit, ...] = ()
    may_be_bare: bool = False
    joint: str = ""  # what joins it to the next of its chain
    last_but_one: bool = False  # joined by "and" or "or"
    in_bracket: bool = False  # "25 (±2) °C"


def read_number(text: str, match: re.Match[str]) -> NumberToken | None:
    """The number of a numeral, with its own unit; None if it is part of a name."""
    found = values_of(match)
    if found is None:
        return None
    values, end = found
    number = NumberToken(match.start(), end, end, values, match["digits"] or match["words"], power_of_ten(match))
    if match["error"] and "." in number.written:
        last = values[0][-1]
        number.error = Decimal(match["error"]).scaleb(int(last.as_tuple().exponent))
    number.both_signs = (match["sign"] or "").strip() in ("±", "+/-")
    return number if _with_unit(text, number) else None


def _with_unit(text: str, number: NumberToken) -> bool:
    """Reads what follows the number; False if that makes it part of a name ("2-propanol", "13C", "3a")."""
    end = number.end
    following, second = text[end : end + 1], text[end + 1 : end + 2]
    if number.written.lower() == "half":  # "half an hour"
        article = _HALF.match(text, end)
        return article is not None and _take_own(number, match_unit(text, article.end()))
    if fold := _FOLD.match(text, end):
        number.end = fold.end()
        return True
    if following == "-" and second.isalpha():
        unit = match_unit(text, end + 1)
        return _take_own(number, unit if _is_unit(text, number, unit) else None) or bool(_COUNTED.match(text, end))
    unit = match_unit(text, end + following.isspace())
    if _is_unit(text, number, unit):
        return _take_own(number, unit)
    if following in ("-", "'"):
        return not (second in ("(", "[", "'") or (following == "'" and (second == "-" or second.isalpha())))
    if following.isalnum() or following == "_":
        return following in "xX" and not second.isalpha()  # "512x1024", "40x"
    return not (following == "+" and _ION.search(text[max(0, number.start - 4) : number.start]))


def _take_own(number: NumberToken, unit: UnitMatch | None) -> bool:
    if unit is not None:
        number.units, number.end = unit.readings, unit.end
    return unit is not None


def _is_unit(text: str, number: NumberToken, unit: UnitMatch | None) -> bool:
    """Whether a symbol after a number is a unit, not an isotope, a locant or the beginning of a name."""
    if unit is None:
        return False
    symbol, between = unit.symbol, text[number.end : number.end + 1]
    glued, hyphen = between == symbol[0], between == "-"
    if glued and is_isotope(number.written, symbol):
        return False
    if glued and symbol == "s" and len(number.written) == 4:  # the 1990s
        return False
    if (
        glued
        and symbol == "S"
        and (_STEREO.match(text, unit.end) or _AFTER_STEREO.search(text[max(0, number.start - 3) : number.start]))
    ):
        return False
    if not symbol.isupper() or unit.end > number.end + 1 + (not glued):
        return True
    if hyphen and number.written.isdigit() and int(number.written) < 20:  # "2-C", "1-H"
        return False
    return not _PART_OF_NAME.match(text, unit.end)


def continues_name(before: str) -> bool:
    """Whether the digits continue a name, by the two characters before them: "IL-6", "C57BL/6", "O-18"."""
    return len(before) == 2 and before[1] in "-/'.:*" and (before[0].isalnum() or before[0] in ")]_'")
