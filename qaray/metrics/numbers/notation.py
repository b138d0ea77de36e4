"""Plain notation of scientific text: one spelling of what Unicode, LaTeX, HTML and PDFs write in many ways.

``25 º C`` → ``25 ° C``, ``cm⁻¹`` → ``cm^-1``, ``$3.2 \\times 10^{-19}$`` → ``3.2 ×10^-19``, ``12&nbsp;µg`` → ``12 µg``.
"""

from __future__ import annotations

import re
import unicodedata

_ALIKE = {
    "-": "−‐‑‒–—﹣－⁃➖",
    " ": "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000",
    "": "\u00ad\u200b\u200c\u200d\u2060\u2061\u2062\u2063\u2064\ufeff\ufe0e\ufe0f",
    "°": "º˚∘◦ᵒᴼ⸰⚬",
    "·": "⋅∙•‧・･",
    "×": "✕✖⨯╳",
    "~": "∼～〜˜∽",
    "'": "’‘′ʹ＇",
    "±": "∓",
    "/": "∕⁄",
    "µ": "\u03bc",
    "Ω": "\u2126",
    "Å": "\u212b",
    "K": "\u212a",
    "°C": "℃",
    "°F": "℉",
    "℞": "",
}
_SUPERSCRIPTS, _SUBSCRIPTS = "⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "₊₋₀₁₂₃₄₅₆₇₈₉"


class _Plain(dict[int, str]):
    """Characters in plain notation, found when first asked for."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        digit = unicodedata.decimal(char, None)
        if digit is not None:  # ٣ and ３ are 3
            plain = str(digit)
        elif 0x3380 <= code <= 0x33DF or 0xFF01 <= code <= 0xFF5E or 0x1D400 <= code <= 0x1D7FF or char in "﹪ﬀﬁﬂ":
            plain = unicodedata.normalize("NFKC", char)  # ㎎, ％, 𝑚
        else:
            plain = char
        self[code] = plain
        return plain


_PLAIN = _Plain({ord(char): plain for plain, alike in _ALIKE.items() for char in alike})
_PLAIN.update(zip(map(ord, _SUBSCRIPTS), "+-0123456789", strict=True))
_PLAIN.update((ord(char), char) for char in _SUPERSCRIPTS)
_TO_DIGITS = str.maketrans(_SUPERSCRIPTS, "+-0123456789")
_SUPERSCRIPT = re.compile(rf"([×x·*]\s?10)?([{_SUPERSCRIPTS}]++)(\s?[CFK]\b)?")
_SPACED_MINUS = re.compile(r"(?<=[\s(])[−–]\s(?=[\d.])")
_AFTER_WORD = re.compile(r"(?:[^\W\d]|\()\s*\Z")

_ENTITIES = {
    "nbsp": " ", "thinsp": " ", "ensp": " ", "emsp": " ", "minus": "−", "ndash": "–", "mdash": "–", "times": "×",
    "plusmn": "±", "deg": "°", "micro": "µ", "mu": "µ", "middot": "·", "sdot": "·", "sup1": "¹", "sup2": "²",
    "sup3": "³", "lt": "<", "gt": ">", "le": "≤", "ge": "≥", "Omega": "Ω", "Aring": "Å", "amp": "&", "percnt": "%",
    "permil": "‰",
}  # fmt: skip
_HTML = re.compile(r"&(?:(" + "|".join(_ENTITIES) + r")|#(\d{1,6})|#x([0-9a-fA-F]{1,5}));")
_RAISED = re.compile(r"<sup>\s?([^<>]{1,12}?)\s?</sup>", re.I)
_TAG = re.compile(r"</?(?:sub|sup|i|b|em|strong|span)>", re.I)

_COMMANDS = {
    "times": "×", "cdot": "·", "pm": "±", "mp": "±", "sim": "~", "mu": "µ", "micro": "µ", "Omega": "Ω", "ohm": "Ω",
    "AA": "Å", "angstrom": "Å", "circ": "°", "degree": "°", "degreeCelsius": "°C", "celsius": "°C", "textdegree": "°",
    "per": " per ", "squared": "^2", "cubed": "^3", "percent": "%", "textmu": "µ", "textendash": "-", "to": " to ",
    "quad": " ", "qquad": " ", "left": "", "right": "", "mathrm": "", "text": "", "textrm": "", "mathit": "", "rm": "",
    "operatorname": "", "mathbf": "", "textbf": "", "textit": "", "mbox": "", "hbox": "", "ensuremath": "", "ce": "",
    "si": "", "unit": "", "num": "", "SI": "", "qty": "", "textsuperscript": "^", "sp": "^", "thinspace": " ",
    "SIrange": "", "numrange": "",
}  # fmt: skip
_SI_PREFIX = re.compile(r"\\(tera|giga|mega|kilo|centi|milli|micro|nano|pico|femto)\s*\\(?=[a-z])")
_SI_RANGE = re.compile(r"(?<=range)\{([^{}]{1,30})\}\{([^{}]{1,30})\}")
_COMMAND = re.compile(r"\\([A-Za-z]+)\s?")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]{1,40})\}\s*\{([^{}]{1,40})\}")
_ESCAPED = re.compile(r"\\([%$&#_{}])")
_SPACE = re.compile(r"\\[,;: >]|~")
_GROUPED_POWER = re.compile(r"\^\s*\{\s*([-+−–]?\s?\d{1,4})\s*\}")
_EN_DASH = re.compile(r"(\d\s?[A-Za-zµ%°]{0,3}\s?)--(?=\s?\d)")  # "10--20"
_TIMES = re.compile(r"[xX](?<=\d[xX])(?=\d)")  # "512x512"
_BLANKS = re.compile(r" {2,}")
_CURRENCY = re.compile(r"(?<=[A-Za-z])\$(?=\d)")
_BRACES = re.compile(r"[{}$]|\\!")


def plain(text: str) -> str:
    """The text in plain notation: ``-`` for every dash, ``^`` before superscripts, ASCII digits, ° µ Ω Å × · ± ~."""
    if "&" in text or "</" in text:
        text = _TAG.sub("", _RAISED.sub(r"^\1", _HTML.sub(_entity, text)))
    if "\\" in text or "^{" in text or "{,}" in text or "$" in text:
        text = _without_latex(text)
    if "--" in text:
        text = _EN_DASH.sub(r"\1-", text)
    if not text.isascii():
        text = _SPACED_MINUS.sub(_joined_minus, text).translate(_PLAIN).replace("A\u030a", "Å")
        text = _SUPERSCRIPT.sub(_superscript, text)
    text = _TIMES.sub("×", text)
    return _BLANKS.sub(" ", text) if "  " in text else text


def _entity(match: re.Match[str]) -> str:
    name, decimal, hexadecimal = match.groups()
    if name:
        return _ENTITIES[name]
    code = int(decimal) if decimal else int(hexadecimal, 16)
    return " " if 0xD800 <= code < 0xE000 else chr(code)


def _joined_minus(match: re.Match[str]) -> str:
    """ "− 80 °C" after a word or a bracket is a sign that a PDF has set apart; after a number it is a dash."""
    return "-" if _AFTER_WORD.search(match.string[max(0, match.start() - 3) : match.start()]) else match[0]


def _superscript(match: re.Match[str]) -> str:
    power_of_ten, digits, letter = match.groups(default="")
    if digits == "⁰" and not power_of_ten:  # a superscript zero as degree sign
        return "°" + letter.strip()
    return f"{power_of_ten}^{digits.translate(_TO_DIGITS)}{letter}"


def _without_latex(text: str) -> str:
    if "\\" in text:
        text = _SI_RANGE.sub(r"\1 to \2 ", text)
        text = _SI_PREFIX.sub(r"\\\1", text)
        text = _FRACTION.sub(r"\1/\2", _ESCAPED.sub(r"\1", text))
        text = _SPACE.sub(" ", text).replace("}{", "} {")
        text = _COMMAND.sub(_command, text)
    text = _CURRENCY.sub(" ", text)
    text = _GROUPED_POWER.sub(r"^\1", text)
    return re.sub(r"\^\s?°", "°", _BRACES.sub("", text))


def _command(match: re.Match[str]) -> str:
    return _COMMANDS.get(match[1], f" {match[1]} ")
