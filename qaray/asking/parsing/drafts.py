"""Lines of an answer, and the pair that they become: without emphasis, fields, separators and closing remarks."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from qaray.asking.parsing.markers import Marker, Markers, marker_of
from qaray.schema import QA

# Fields of a pair beside question and answer, on lines of their own.
_FIELD_WORDS = (
    "sources?|type|(?:question|answer) type|difficulty(?: level)?|level|category|topic|tags?|section|pages?|"
    "references?|citation|evidence|supporting (?:text|evidence|sentences?|quote)|quote|context|keywords?|explanation|"
    "rationale|justification|confidence|score|bloom(?:'s|’s)? (?:level|taxonomy)|cognitive level|"
    "quelle|fuente|fonte|来源|類型|类型|难度|出典"
)
_FIELD = re.compile(rf"^(?:[\s>#*_`]*|\s*[-•*]\s+[*_]{{1,2}})\[?\(?(?:{_FIELD_WORDS})\s*+[*_`]*+\s*+[:：].*$", re.I)
# Fields that may have several lines.
_LONG_FIELD = re.compile(
    r"^[\s>#*_`]*(?:explanation|rationale|justification|evidence|supporting|quote|context|references?)\b", re.I
)
_DECORATION = re.compile(r"[\s>#*_`\-•\[(]*(?:\d+[.)])?[\s*_`]*")  # of a line before its marker
# Choices of an answer: "A. 1 eV", "B. 2 eV". With these, the letter A marks no answer.
_OPTION_A, _OPTION = re.compile(r"[\s>*\-•]*\(?[Aa][.)]\s"), re.compile(r"[\s>*\-•]*\(?[Bb][.)]\s")
_SEPARATOR = re.compile(r"^\s*(?:(?:[-*_=~—–]\s?){3,}|>+)\s*$")
_PAIR_HEADING = re.compile(
    r"^[\s#*_>`\-•\[(]*(?:(?:q\s?(?:&|and|/)\s?a|qa|question[\s-](?:and[\s-])?answer|(?:next )?pair|item|example|"
    r"entry|no|nr)[\s.]*+(?:pair)?\s*+#?\s*+\d*+|#\s*\d{1,4}|\d{1,4}[.)])[\s*_:.)\]`]*$"
    r"|^\s*(?:#{1,6}\s.*|\*\*[^*\n]+\*\*:?)\s*$",
    re.I,
)
_FENCE = re.compile(r"^\s*(?:`{3,}|~{3,})")
ARROW = re.compile(r"\s*(?:→|->|=>|⇒|➔|➜|⟶|↳|»|>>)\s*(?!\d)")
_JOINS = re.compile(r"(?<=[?？])\s*[/|–—-]$")
_DASH = re.compile(r"\s*(?:[-–—•*]\s+|[–—])(?!\d)")
_ASKS = re.compile(r"[?？][*_`\"”'’)\]\s]*$")
_SENTENCE_ENDS = re.compile(r"[.!?…。！？][\"”'’)\]*_`]*\s*$")
# Closing remarks of models: a last paragraph that begins like this is not part of the answer.
_FAREWELL = re.compile(
    r"^\W*(?:(?:END|done|that is all|that's all)\b\W*$|(?:I )?hope (?:this|these|it|that)\b|Let me know\b|"
    r"Feel free\b|Would you like\b|Is there anything\b|Keywords?:|(?:Ich hoffe|J['’]espère|Espero|Spero|希望|以上)|"
    r"(?:Please|If|Note|I have|I['’]ve|These|The above|The questions|You can|As requested|All|Each|This|Total|In total|"
    r"Here)\b[^\n]{0,160}\b(?:questions?|answers?|pairs?\b(?! of\b)|Q&As?|help|assist|clarif|adjust|anything else|"
    r"let me know))",
    re.I,
)
PLACEHOLDER = re.compile(
    r"[\[<({]?\s*(?:(?:(?:your|the|insert|first|second|next)\s+)*(?:question|answer)(?:\s*(?:text|\d+|one|two))?(?:\s+here)?|"
    r"\.{2,}|…|(?:What|How|Why)\s*(?:…|\.{3}))\s*[\])}>]?[.?]?",
    re.I,
)

MAX_MARKER = 80  # longest marker with what stands before it in its line, characters


@dataclass
class Line:
    """A line of an answer, or a part of one that begins with a marker."""

    joint: str  # the white space between this line and the one before
    text: str
    marker: Marker | None = None


@dataclass
class Draft:
    """A question that is being read, and its answer once it has begun."""

    question: list[Line]
    answer: list[Line] = field(default_factory=list)
    answered: bool = False

    @property
    def asks(self) -> bool:
        return asks(joined(self.question))


def lines_of(text: str, markers: Markers) -> list[Line]:
    """The lines of a text. A marker within a line begins a line of its own."""
    lines = []
    for line in text.split("\n"):
        joint, start = "\n", 0
        for place in markers.inline.finditer(line):
            before = place.start() - start
            if before < MAX_MARKER and _is_within_marker(line[start : start + 2 * MAX_MARKER], before, markers):
                continue
            lines.append(Line(joint, line[start : place.start()]))
            joint, start = place[0], place.end()
        lines.append(Line(joint, line[start:]))
    options = any(_OPTION.match(line.text) for line in lines)
    for each in lines:
        each.marker = None if options and _OPTION_A.match(each.text) else marker_of(each.text, markers)
    return lines


def _is_within_marker(head: str, place: int, markers: Markers) -> bool:
    """Whether a place in the beginning of a line is within its marker, or in what stands before this."""
    marker = marker_of(head, markers)
    return (marker is not None and place < len(head) - len(marker.text)) or bool(_DECORATION.fullmatch(head[:place]))


def joined(lines: Sequence[Line]) -> str:
    return "".join(line.joint * (place > 0) + line.text for place, line in enumerate(lines))


def asks(text: str) -> bool:
    """Whether a text ends with a question mark."""
    return _ASKS.search(text) is not None


def pairs_of(drafts: list[Draft], marked: bool = True) -> list[QA]:
    """The pairs of the drafts that have a question and an answer. ``marked``: answers have markers."""
    ended = [len(draft.answer) - _first_field(draft.answer) for draft in drafts]
    fields = sum(map(bool, ended)) >= min(2, sum(draft.answered for draft in drafts))  # fields are part of the format
    pairs = []
    for draft, lines in zip(drafts, ended, strict=True):
        answer = draft.answer[: len(draft.answer) - lines] if fields else draft.answer
        if pair := _pair(draft, answer, last=draft is drafts[-1], marked=marked):
            pairs.append(pair)
    return pairs


def _pair(draft: Draft, answer: list[Line], last: bool, marked: bool) -> QA | None:
    question = [line for place, line in enumerate(draft.question) if place == 0 or not _FIELD.match(line.text)]
    told = joined(_without_tail(answer, last))
    told = without_farewell(told, 1) if last else told
    pair = QA(Q=_plain(joined(_without_tail(question, last=True))), A=_plain(told if marked else _without_arrow(told)))
    return pair if is_pair(pair["Q"], pair["A"]) else None


def is_pair(question: str, answer: str) -> bool:
    """Whether neither text is empty or a placeholder of the format, such as "[question]" or "…"."""
    return all(text and not PLACEHOLDER.fullmatch(text) for text in (question, answer))


def _without_tail(lines: list[Line], last: bool) -> list[Line]:
    """The lines of an answer without the separators and headings of pairs that follow it."""
    end = len(lines)
    fences = sum(_FENCE.match(line.text) is not None for line in lines)
    while end > 1:
        text, before = lines[end - 1].text, lines[end - 2].text
        # The end of a fence that began before the answer, or this and the beginning of the next.
        fence = _FENCE.match(text) is not None and (
            fences % 2 == 1 or _FENCE.match(_text_before(lines, end - 1)) is not None
        )
        heading = not last and _PAIR_HEADING.match(text) and not before.strip()
        if text.strip() and not (_SEPARATOR.match(text) or heading or fence):
            break
        fences -= fence
        end -= 1
    return lines[:end]


def _first_field(lines: Sequence[Line]) -> int:
    """The first of the fields with which an answer ends; the number of lines if it ends without any."""
    first: int | None = None
    for place, line in enumerate(lines[1:], start=1):
        if _FIELD.match(line.text) and (first or _SENTENCE_ENDS.search(_text_before(lines, place))):
            first = first or place
            if _LONG_FIELD.match(line.text):
                return first
        elif line.text.strip() and not _PAIR_HEADING.match(line.text) and not _SEPARATOR.match(line.text):
            first = None
    return len(lines) if first is None else first


def _text_before(lines: Sequence[Line], place: int) -> str:
    """The line before ``place``, or the one before a blank line."""
    before = lines[place - 1].text
    return before if before.strip() or place < 2 else lines[place - 2].text


def _without_arrow(answer: str) -> str:
    """An answer without the arrow or dash that stands for its marker."""
    if match := ARROW.match(answer):
        return answer[match.end() :]
    if (match := _DASH.match(answer)) and not re.search(r"\n[^\S\n]*[-–—•*]\s", answer):
        return answer[match.end() :]
    return answer


def _plain(text: str) -> str:
    """A text without the emphasis around all of it, and without what joins a question to its answer on one line."""
    text = _JOINS.sub("", text.strip())
    if text.endswith("**") and text.count("**") % 2:
        text = text[:-2]
    wrapped = re.fullmatch(r"(\*\*|__)((?:(?!\1).)+)\1", text.strip(), re.S)
    return wrapped[2].strip() if wrapped else text.strip()


def _separates(line: str) -> bool:
    return not line.strip() or _SEPARATOR.match(line) is not None


def without_farewell(answer: str, first: int) -> str:
    """The answer without the closing remarks in its last paragraphs, at most those from paragraph ``first``."""
    paragraphs = re.split(r"\n\s*\n", answer.rstrip())
    while len(paragraphs) > first:
        text = "\n".join(itertools.dropwhile(_separates, paragraphs[-1].split("\n")))
        if text and not _FAREWELL.match(text):
            break
        paragraphs.pop()
    answer = "\n\n".join(paragraphs)
    lines = answer.split("\n")
    return "\n".join(lines[:-1]) if len(lines) > 1 and re.fullmatch(r"\W*END\W*", lines[-1]) else answer
