"""Grounding: are an answer's numbers, with units, found in the paper, and is a question self-contained?

Numbers are compared as values with units: 1,000 equals 1000, 2.0 × 10−3 equals 0.002, and 5 % equals 5%.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

Quantity = tuple[Decimal, str]  # value, unit ("" if none is written)


@dataclass(frozen=True)
class Mention:
    """A number as written, and its possible readings: "10−3" is a thousandth, or the range from 10 to 3."""

    text: str
    readings: tuple[tuple[Quantity, ...], ...]


# Variants of minus signs, dashes and spaces in text from PDFs.
_MINUS, _BLANKS = "−‐‑‒–—﹣－", "\u00a0\u2009\u202f\u2007\u200a\u2002\u2003"
_SIGNS = str.maketrans(dict.fromkeys(_MINUS, "-") | dict.fromkeys(_BLANKS, " "))
_SUPERSCRIPT = re.compile("[⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+")
_TO_PLAIN = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")

_PREFIX = "(?:da|[YZEPTGMkhdcmµnpfazy])?"
_BASE = (
    "(?:mol|cal|bar|atm|[Tt]orr|ppm|ppb|Hz|Pa|Da|eV|Wh|Ah|Bq|Gy|Sv|rpm|min|days?|hours?|yr|years?|"
    "dB|kat|lm|lx|cd|rad|wt|vol|Å|Ω|ohm|[gmsKNJWVAFHTCLlMhtU])"
)
_FACTOR = rf"(?:%|‰|℃|°\s?[CFK]?|{_PREFIX}{_BASE})(?:\^?[-+]?[1-4])?(?![A-Za-z])"
_UNIT = rf"{_FACTOR}(?:\s?[/·.]\s?{_FACTOR}|\s{_PREFIX}{_BASE}\^?-[1-4](?!\d))*"
_NUMBER = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_FIGURE = re.compile(
    rf"""
    (?<![\w.,^])                                          # not within a name or a number
    (?P<sign>(?<![\w)\]%.])-)?(?P<number>{_NUMBER})
    (?: \s?[×xX·*⋅]\s?10\s?(?:\^\s?\(?|\*\*)?(?P<power>[-+]?\d{{1,2}})\)?     # × 10^−3
      | [eE](?P<exponent>[-+]?\d{{1,2}})
      | \^\(?(?P<raised>[-+]?\d{{1,2}})\)?               # 10^6
    )?
    (?P<range>\s?(?:-|\bto\b)\s?(?P<upto>{_NUMBER}))?
    (?:\s?(?P<unit>{_UNIT}))?
    (?![A-Za-z\d])
    """,
    re.VERBOSE,
)


def mentions(text: str) -> list[Mention]:
    """The numbers in a text. Digits within names (CO2, PM2.5, sp3) do not count."""
    return [Mention(match[0].strip(), tuple(_readings(match))) for match in _FIGURE.finditer(plain(text))]


def plain(text: str) -> str:
    """Normalises the signs, spaces, superscripts and µ of scientific text: ``cm⁻¹`` → ``cm^-1``."""
    text = unicodedata.normalize("NFC", text).replace("μ", "µ").translate(_SIGNS)
    return _SUPERSCRIPT.sub(lambda match: "^" + match[0].translate(_TO_PLAIN), text)


def _readings(match: re.Match[str]) -> Iterator[tuple[Quantity, ...]]:
    unit = _unit(match["unit"])
    value = _decimal((match["sign"] or "") + match["number"])
    power = match["power"] or match["exponent"]
    if power:
        value = _scaled(value, int(power))
    elif match["raised"]:
        value = _scaled(Decimal(1), int(match["raised"])) if value == 10 else value ** int(match["raised"])
    if not match["range"]:
        yield ((value, unit),)
        return
    upto = _decimal(match["upto"])
    if power:  # "2–4 × 10^3" has its power at the end only and is not handled here
        upto = _scaled(upto, 0)
    if value == 10 and not power and upto == int(upto) and upto <= 30 and match["range"].lstrip().startswith("-"):
        yield ((_scaled(Decimal(1), -int(upto)), unit),)
    yield ((value, unit), (upto, unit))


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text.replace(",", "")).normalize()
    except InvalidOperation:  # digits of a non-Latin script
        return Decimal("".join(str(unicodedata.digit(c, 0)) if c.isdigit() else c for c in text.replace(",", "")))


def _scaled(value: Decimal, power: int) -> Decimal:
    return value.scaleb(power).normalize()


def _unit(text: str | None) -> str:
    """Normalises a unit: no spaces, ``^`` or ``·``; litre as L; ``/x`` as ``x-1``."""
    if not text:
        return ""
    text = re.sub(r"\s", "", text.replace("℃", "°C")) if "°" in text or "℃" in text else text
    parts = re.split(r"[\s·.]+|(?=/)", text.replace("^", ""))
    return "".join(_factor(part) for part in parts if part)


def _factor(part: str) -> str:
    inverse, part = part.startswith("/"), part.lstrip("/")
    name, power = re.fullmatch(r"(.*?)([-+]?\d*)", part).groups()  # type: ignore[union-attr]
    name = re.sub(r"l$", "L", name) if re.fullmatch(r"[mµndk]?l", name) else name
    exponent = int(power or 1) * (-1 if inverse else 1)
    return name + ("" if exponent == 1 else str(exponent))


def quantities(text: str) -> dict[Decimal, set[str]]:
    """Every possible value of the numbers in a paper's text → the units that it has there."""
    found: dict[Decimal, set[str]] = {}
    for mention in mentions(text):
        for reading in mention.readings:
            for value, unit in reading:
                found.setdefault(value, set()).add(unit)
    return found


def is_in_paper(mention: Mention, paper: Mapping[Decimal, set[str]]) -> bool:
    """Whether the paper contains a reading of the number: the same value and, if one is written, the same unit.

    A value that the paper has without a unit (in a table column or a list) matches any unit.
    """
    return any(
        all(value in paper and (not unit or unit in paper[value] or "" in paper[value]) for value, unit in reading)
        for reading in mention.readings
    )


_WORK = (
    r"(?:study|studies|paper|article|work|research|review|report|investigation|manuscript|experiments?|authors?|text|"
    r"passage|document|findings|results)"
)
_NOT_ALONE = re.compile(
    rf"\b(?:this|these|the\s+(?:present|current|above|given|provided|following)|present|our|their)\s+{_WORK}\b(?![-‐])"
    r"|\b(?:the|an?)\s+(?:paper|article|manuscript|authors?|passage|document|text|abstract)\b(?!\s+of\b)(?![-‐])"
    r"|\bthe\s+study\b(?!\s+of\b)"
    r"|\b(?:fig(?:ure|s|\.)|table|scheme|equation|eq\.|section|appendix|ref\.)\s*\(?[S]?\d+"
    r"|\b(?:shown|described|mentioned|discussed|given|listed|stated|presented|reported)\s+(?:above|below|earlier|here)\b"
    r"|\b(?:the\s+above|aforementioned|above-mentioned|herein)\b"
    r"|\bin\s+this\s+(?:context|case|section|chapter|method|approach|system|model|experiment|process)\b",
    re.IGNORECASE,
)


def paper_reference(question: str) -> str | None:
    """The words that make a question depend on its paper ("this study", "Figure 3"); None if it is self-contained."""
    match = _NOT_ALONE.search(question)
    return match[0] if match else None


_WORD = re.compile(r"[^\W_]+(?:[-'’][^\W_]+)*")


def content_words(text: str) -> set[str]:
    """The words of a text in lower case, without stop words and single characters."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words = (match[0].lower() for match in _WORD.finditer(text))
    return {word for word in words if len(word) > 1 and word not in ENGLISH_STOP_WORDS}


def overlap(answer: str, evidence: str) -> float | None:
    """Share of the answer's content words that occur in the evidence, in [0, 1]; None if the answer has none."""
    words = content_words(answer)
    return len(words & content_words(evidence)) / len(words) if words else None
