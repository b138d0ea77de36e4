"""Numerals: digits, powers of ten and number words of scientific text → values, with every possible reading.

digits   "1,000" "1 000" "1'000" "1.5" "1,5" "1·5" ".5" "1.234(5)"
powers   "2 × 10^-3" "2x10-3" "2 × 10 -3" "2*10**-3" "3.6E+004" "10^6" "106 cells" (its superscript lost)
words    "seven" "twenty-five" "a hundred" "2.5 million" "twice" "half" (an hour)
signs    "-5" "minus 5" "±5"
"""

from __future__ import annotations

import re
from decimal import Decimal

# Readings of a numeral. One has several values where the text may be a list or a range: "3,5" is 3.5, or 3 and 5.
Values = list[list[Decimal]]

MAX_DIGITS, MAX_POWER = 40, 99  # numbers that are longer are no quantities

_UNITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_UNITS += ["thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORDS: dict[str, int | Decimal] = {word: number for number, word in enumerate(_UNITS)}
_WORDS |= {word: 10 * tens for tens, word in enumerate(_TENS, 2)}
_WORDS |= {"a": 1, "twice": 2, "thrice": 3, "half": Decimal("0.5")}
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_WORD = rf"(?a:(?:{'|'.join(_TENS)})(?:[ -](?:{'|'.join(_UNITS[1:10])})\b)?|{'|'.join(reversed(_UNITS))})"
_SCALE = rf"(?a:{'|'.join(_SCALES)})\b"  # (?a: without regard to case, "ſ" would be an s
POWER = r"""
    (?: \s?[×xX·*]\s?10 (?: \s?(?:\^|\*\*)\s?\(?\s?(?P<power>[-+]?\s?\d{1,4}+)\)?   # × 10^-3
                          | (?P<signed>\s?[-+]\s?\d{1,3}+(?![.,]?\d))               # × 10 -3
                          | (?P<lost>\s?[1-9]\d?+(?![.,]?\d)) )                     # × 106: its superscript is lost
      | [eE](?P<exponent>[-+]?\d{1,4}+)(?![\w.])                                    # 3.6E+004
      | (?:\^|\*\*)\s?\(?(?P<raised>[-+]?\d{1,4}+)\)? )                             # 10^6
"""
NUMERAL = re.compile(
    rf"""
    (?: (?P<minus>(?:minus|negative)\s) | (?P<sign>(?<![\w)\]%°'])(?:[-+±]|\+/-)\s?) )?
    (?: (?<![\w^@#.])
        (?P<digits> \d{{1,3}}(?:[ ']\d{{3}}(?!\d))++(?:[.,]\d++)?
                  | \d++(?:[.,]\d++|·(?!10\s?[-^*])\d++)*+
                  | \.\d++ )
        (?:\((?P<error>\d{{1,3}})\))?                                               # of the last digits
        {POWER}?
      | (?<![\w-])(?P<words> (?:{_WORD}|a\s{_SCALE})(?=[\s,.;:)-]|fold|\Z)(?:[ -]{_SCALE}){{0,3}}+
                  | (?a:twice|thrice)\b | half(?=\san?\s) ) )
    (?P<scale>\s?{_SCALE})?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BEFORE = re.compile(r"(?:(?<![\w)\]%°'])(?:[-+±]|\+/-)\s?|\b(?:minus|negative)\s)\Z", re.IGNORECASE)
_LOST_SUPERSCRIPT = re.compile(r"10([3-9]|1[0-5])")
_TEN_TO = re.compile(r"(\s?)-\s?(\d{1,2}+)(?![.,]?\d|\s?[%°/])")  # after "10": "10-6 M", "10 -6 M"
MAX_LOST_POWER = 30  # "10-20" may be 1e-20; beyond, a range only


def match_numeral(text: str, start: int) -> re.Match[str] | None:
    """The numeral whose digits or word begin at ``start``, with a sign or a leading point before it."""
    if text[start - 1 : start] == ".":
        start -= 1
    before = _BEFORE.search(text[max(0, start - 9) : start])
    return NUMERAL.match(text, start - len(before[0]) if before else start)


def power_of_ten(match: re.Match[str]) -> int:
    """The exponent after "× 10" of a match with the groups of POWER; 0 if there is none, or it is ambiguous."""
    return _integer(match["power"] or match["signed"])


def values_of(match: re.Match[str]) -> tuple[Values, int] | None:
    """(readings, end) of a match of NUMERAL; None if no quantity is written with so many digits."""
    values = [[_word_value(match["words"])]] if match["words"] else _digit_values(match["digits"])
    if values is None or abs(shift := _integer(match["power"] or match["signed"] or match["exponent"])) > MAX_POWER:
        return None
    end = match.end()
    if shift:
        values = scaled(values, shift)
    elif match["lost"]:
        values = _lost_power(values, match["lost"])
    elif match["raised"]:
        values = _raised(values, int(match["raised"]))
    elif match["digits"] == "10" and not match["scale"] and (power := _TEN_TO.match(match.string, end)):
        values, end = _ten_to(power), power.end()
    elif match["digits"] and (lost := _LOST_SUPERSCRIPT.fullmatch(match["digits"])):
        values = [*values, [Decimal(1).scaleb(int(lost[1]))]]
    if match["scale"]:
        values = [[*each[:-1], each[-1] * _SCALES[match["scale"].strip().lower()]] for each in values]
    if match["minus"] or (match["sign"] or "").startswith("-"):
        values = [[-each[0], *each[1:]] for each in values]
    return values, end


def scaled(values: Values, shift: int) -> Values:
    """The readings with their last value · 10^shift."""
    return [[*each[:-1], each[-1].scaleb(shift)] for each in values]


def _integer(power: str | None) -> int:
    return int("".join(power.split())) if power else 0


def _lost_power(values: Values, digits: str) -> Values:
    """ "2 × 106" is 2,000,000, or 2 by 106; "2 × 10 6" may be 2 by 10."""
    other = Decimal("10") if digits[0].isspace() else Decimal("10" + digits)
    return scaled(values, int(digits)) + [[each[-1], other] for each in values]


def _raised(values: Values, power: int) -> Values:
    """ "10^6" is a power; "45^3" may be one, or have a citation."""
    base = values[0][-1]
    if base == 10:
        return [[Decimal(1).scaleb(max(-MAX_POWER, min(MAX_POWER, power)))]]
    return values + ([[base**power]] if 1 < power < 7 and base < 10**6 else [])


def _ten_to(power: re.Match[str]) -> Values:
    """ "10-6" is a millionth, or the range from 10 to 6; "10 -6" may be 10 and -6."""
    upto = Decimal(power[2])
    values = [[Decimal(1).scaleb(-int(upto))]] if upto <= MAX_LOST_POWER else []
    return [*values, [Decimal(10), upto], *([[Decimal(10), -upto]] if power[1] else [])]


def _digit_values(digits: str) -> Values | None:
    groups = re.split(r"[ ,.·']", digits)
    if max(map(len, groups)) > MAX_DIGITS or len(groups) > MAX_DIGITS:
        return None
    marks = re.sub(r"\d", "", digits)
    if marks in ("", "."):
        return [[Decimal(digits)]]
    whole, several = [Decimal("".join(groups))], list(map(Decimal, groups))
    thousands = len(groups[0]) < 4 and groups[0] != "0" and all(len(group) == 3 for group in groups[1:])
    if marks in (",", "·"):
        decimal = [Decimal(".".join(groups))]
        if marks == "," and (thousands or groups[0] == "0"):  # "1,200" is not 1 and 200
            return [whole, decimal] if thousands else [decimal]
        return [decimal, several]
    if set(marks) == {"'"}:
        return [whole]
    if len(set(marks)) == 1:
        lakhs = marks[0] == "," and len(groups[-1]) == 3 and all(len(group) == 2 for group in groups[1:-1])
        return [*([whole] if thousands or lakhs else []), *([several] if marks[0] != "." else [])] or None
    if len(set(marks[:-1])) == 1 and all(len(group) == 3 for group in groups[1:-1]):  # 1,234.5
        return [[Decimal("".join(groups[:-1]) + "." + groups[-1])]]
    if set(marks) == {",", "."}:  # 1.2,3.4
        parts = [Decimal(part) for part in digits.split(",") if re.fullmatch(r"\d+(?:\.\d+)?", part)]
        return [parts] if parts else None
    return None


def _word_value(words: str) -> Decimal:
    value = Decimal(0)
    for word in re.split(r"[\s-]", words.lower()):
        value = value * _SCALES[word] if word in _SCALES else value + _WORDS[word]
    return value
