"""JSON as models write it: found in a text, repaired and loaded.

Trailing commas, comments, Python literals and unescaped quotes are repaired, by json_repair. A backslash before the
name of a TeX command is LaTeX, although ``\\t`` of ``\\times`` is a tabulator in JSON.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

# json_repair takes up to the square of a text's length, and visits it again at each depth.
MAX_REPAIR = 16_000  # longest text that is repaired, characters: objects within a longer one are repaired alone
MAX_REPAIRS = 4 * MAX_REPAIR  # characters of an answer that are repaired
MAX_BRACKETS = 40  # depth of a text that is repaired

# Commands of TeX that begin with a letter of JSON's escapes (\b \f \n \r \t \u). Under n, a command is missing whose
# name without the n is an English word or a list number (\nless, \ni): there, a line break is more likely.
TEX_COMMANDS = frozenset(
    """
    backslash bar bf because begin beta beth between bfseries big bigcap bigcup bigg biggl biggr bigl bigm bigoplus
    bigotimes bigr bigtriangleup bigvee bigwedge binom bm bmod boldsymbol bot bowtie Box box boxed boxtimes bra breve
    bullet
    fbox fint flat foo footnote forall frac frown
    nabla natural ne nearrow neg neq newcommand newline nexists ngeq nleq nmid nolimits nonumber not notin nrightarrow
    nsim nsubseteq nu num nwarrow
    raise rangle rank rbrace rbrack rceil Re ref rfloor rho right rightarrow rightharpoonup rightleftharpoons rightmost
    risingdotseq rm root rVert rvert
    tag tan tanh tau TeX text textbf textcelsius textdegree textit textmu textrm textsc textstyle textsubscript
    textsuperscript texttt tfrac therefore theta thickapprox thicksim tilde times tiny to top triangle triangledown
    triangleq tt
    ulcorner underbrace underline underset unicode unit uparrow updownarrow uplus upsilon upuparrows urcorner
    """.split()  # noqa: SIM905
)
_ESCAPE = re.compile(r"\\(?:\\|(?P<word>[A-Za-z]+)|(?P<sign>[^A-Za-z\\]))", re.S)
_UNICODE = re.compile(r"u[0-9a-fA-F]{4}")

# Where a JSON value may begin: a bracket before another, before a quote or before a key.
_BEGINS = re.compile(r"\{(?=\s*(?:[\"'“”‘’`\\{\[]|//|/\*|\w{1,24}\s*:))|\[(?=\s*(?:[\"'“‘\\{\[]|//|/\*))")
_STRUCTURE = re.compile(r'\\.|["{}\[\]]', re.S)
_BRACKETS = re.compile(r"[{}\[\]]")
_FENCE = re.compile(r"^[ \t]*(?:`{3,}|~{3,})[^\n`]*$", re.M)
_QUOTES = str.maketrans({"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "＂": '"', "‘": "'", "’": "'"})
_CURLY_KEY = re.compile(r"[{,]\s*[“”„«‘’＂]")
# A string in double quotes, or one in single quotes that follows a bracket, comma or colon. The latter ends with a
# quote before a colon, a bracket, or a comma and a further key or value: apostrophes do not end it.
_STRING = re.compile(
    r""""(?:[^"\\]++|\\(?:.|\Z))*+(?:"|\Z)|(?P<before>[{\[,:]\s*)'(?P<inner>(?:\\(?:.|\Z)|[^\\])*?)"""
    r"""(?:\Z|'(?=\s*(?::|[}\]]|,\s*(?:['"{\[}\]]|-?\d|[Tt]rue|[Ff]alse|[Nn]one|null|$))))""",
    re.S,
)


def json_values(text: str, loader: Loader) -> Iterator[tuple[int, Any]]:
    """(position, value) of every object and list in ``text`` that is complete, outermost first. Raises nothing.

    A value in which brackets within strings are unbalanced is tried again with these brackets counted.
    """
    end = 0
    strict, loose = _closings(text, _STRUCTURE), _closings(text, _BRACKETS)
    left = 8 * len(text)  # characters that may be loaded: nested text that is not JSON is not loaded at every depth
    for match in _BEGINS.finditer(text):
        start = match.start()
        for closing in dict.fromkeys((strict.get(start), loose.get(start))):
            if start < end or closing is None or left < 0:
                continue  # within a value, or not closed: there may be complete objects within
            left -= closing - start
            value = loader.load(text[start : closing + 1])
            if isinstance(value, (dict, list)) and value:
                end = closing + 1
                yield start, value


def begins_as_json(text: str) -> bool:
    """Whether a text, or the content of its first fence, begins as JSON."""
    return _BEGINS.match(_FENCE.sub("", text, count=1).lstrip()) is not None


def _closings(text: str, pattern: re.Pattern[str]) -> dict[int, int]:
    """Position of each opening bracket → that of its closing one. With _STRUCTURE, brackets in strings do not count."""
    closings: dict[int, int] = {}
    stack: list[int] = []
    quoted = False
    for match in pattern.finditer(text):
        sign = match[0]
        if sign == '"':
            quoted = not quoted
        elif quoted or len(sign) > 1:
            continue
        elif sign in "{[":
            stack.append(match.start())
        elif stack and text[stack[-1]] + sign in ("{}", "[]"):
            closings[stack.pop()] = match.start()
    return closings


def quoted_text(text: str) -> str | None:
    """The content of a text that is one JSON string."""
    text = _FENCE.sub("", text).strip()
    if len(text) > 4 and text[0] == text[-1] and text[0] in "\"'" and "\\" in text:
        try:
            found = json.loads(escaped('"' + text[1:-1] + '"'), strict=False)
        except ValueError:
            return None
        return found if isinstance(found, str) else None
    return None


def escaped(text: str) -> str:
    """JSON text whose LaTeX commands and other invalid escapes have their backslash doubled."""

    def one(match: re.Match[str]) -> str:
        word, sign = match["word"], match["sign"]
        if word is None:
            return match[0] if sign in (None, '"', "/") else "'" if sign == "'" else "\\" + match[0]
        if word[0] == "u":
            latex = _UNICODE.match(text, match.start() + 1) is None
        else:
            latex = word in TEX_COMMANDS or word[0] not in "bfnrt"
        return "\\" * latex + match[0]

    return _ESCAPE.sub(one, text)


class Loader:
    """Loads the JSON texts of one answer, and repairs them as long as this does not cost too much."""

    def __init__(self) -> None:
        self._left = MAX_REPAIRS

    def load(self, text: str) -> Any:
        """The value of a JSON text, repaired if needed; None if it cannot be read."""
        text = escaped(text)
        if (value := _strict(text)) is not None:
            return value
        if len(text) > min(MAX_REPAIR, self._left) or _depth(text) > MAX_BRACKETS:
            return None
        self._left -= len(text)
        return _repaired(text)


def _depth(text: str) -> int:
    """Depth of the brackets of a text, those in strings included."""
    steps = (1 if match[0] in "{[" else -1 for match in _BRACKETS.finditer(text))
    return max(itertools.accumulate(steps), default=0)


def _repaired(text: str) -> Any:
    if _CURLY_KEY.search(text):
        text = text.translate(_QUOTES)
    if '"""' in text:
        text = re.sub(r'"""(.*?)"""', lambda match: json.dumps(match[1], ensure_ascii=False), text, flags=re.S)
    try:
        import json_repair

        text = _double_quoted(text)
        return _strict(text) or json_repair.loads(text, skip_json_loads=True)
    except (ValueError, RecursionError, IndexError, AttributeError, TypeError):
        return None


def _strict(text: str) -> Any:
    """The value of valid JSON, numbers as written; None if it is invalid."""
    try:
        return json.loads(
            text,
            strict=False,
            object_pairs_hook=_object,
            parse_float=str,
            parse_int=str,
            parse_constant=lambda name: None,
        )
    except (ValueError, RecursionError):
        return None


def _object(items: list[tuple[str, Any]]) -> Any:
    """An object; one whose keys repeat becomes the list of the objects that it was meant to be."""
    objects: list[dict[str, Any]] = [{}]
    for key, value in items:
        if key in objects[-1]:
            objects.append({})
        objects[-1][key] = value
    return objects if len(objects) > 1 else objects[0]


def _double_quoted(text: str) -> str:
    """JSON with strings in single quotes → the same in double quotes; apostrophes in the strings stay."""

    def one(match: re.Match[str]) -> str:
        if match["inner"] is None:
            return match[0]
        inner = re.sub(r'(?<!\\)"', r"\"", match["inner"]).replace("\\'", "'")
        return f'{match["before"]}"{inner}"'

    return _STRING.sub(one, text)
