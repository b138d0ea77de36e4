"""Pairs without a marker for each question: numbered lists, tables, questions as headings."""

from __future__ import annotations

import re
from collections.abc import Sequence

from qaray.asking.parsing.drafts import ARROW, Draft, Line, asks, joined, without_farewell
from qaray.asking.parsing.markers import ANSWER, HEADING, QUESTION, word_role

_BLANKS = "[ \\t\u00a0\u3000]"
_LISTED = re.compile(
    rf"^(?P<decoration>[\s>#*_`\-•]*)\(?(?P<number>\d{{1,9}}){_BLANKS}*[.):、．](?P<late>[*_`]*){_BLANKS}*(?P<text>\S.*)$"
)
_ASKS_AND_ANSWERS = re.compile(
    r"^(?P<question>.*?[?？][*_`]*)[ \t]*(?:→|->|=>|⇒|➔|[–—]|[ \t]-[ \t])[ \t]*(?P<answer>\S.*)$"
)
_BULLET = re.compile(r"^\s*[-*•]\s+(.*)")


def _sections(lines: list[Line]) -> list[Draft]:
    """A list of questions, perhaps under a heading, and a list of answers under another."""
    heads = [
        (place, line.marker.style) for place, line in enumerate(lines) if line.marker and line.marker.role == HEADING
    ]
    roles = [role for _, role in heads]
    if roles not in ([QUESTION, ANSWER], [ANSWER]):
        return []
    first, second = heads[0][0] + 1 if len(heads) == 2 else 0, heads[-1][0]
    questions, answers = _items(lines[first:second]), _items(lines[second + 1 :])
    if not set(answers) <= set(questions):
        return []
    return [Draft(questions[number], answers[number], answered=True) for number in answers]


def _items(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The items of a list by number; items without numbers are numbered."""
    items: dict[str, list[Line]] = {}
    current: list[Line] = []
    bullets = last = 0
    for line in lines:
        listed = _LISTED.match(line.text)
        number = line.marker.number if line.marker else int(listed["number"]) if listed else None
        if number is not None and number > last and not bullets:
            last = number
            text = line.marker.text if line.marker else _item_text(listed) if listed else ""
            current = items[str(last)] = [Line("", text)]
        elif (bullet := _BULLET.match(line.text)) and len(items) == bullets:
            bullets += 1
            current = items[str(bullets)] = [Line("", bullet[1])]
        else:
            current.append(line)
    return items


def _table(lines: list[Line]) -> list[Draft]:
    """A Markdown table with a column of questions and one of answers."""
    drafts: list[Draft] = []
    columns: dict[str, int] = {}
    width = 0
    for line in lines:
        row = line.text.strip()
        if "|" not in row:
            columns = {} if row else columns
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row.removeprefix("|").removesuffix("|"))]
        if not columns:
            roles = [word_role(cell.strip(" *_`")) for cell in cells]
            if roles.count(QUESTION) == 1 and roles.count(ANSWER) == 1:
                columns = {QUESTION: roles.index(QUESTION), ANSWER: roles.index(ANSWER)}
                width = len(cells)
        elif len(cells) == width and not all(re.fullmatch(r":?-*:?", cell) for cell in cells):
            texts = {role: cells[place].replace("\\|", "|").replace("<br>", "\n") for role, place in columns.items()}
            drafts.append(Draft([Line("", texts[QUESTION])], [Line("", texts[ANSWER])], answered=True))
    return drafts


def _listed(lines: list[Line]) -> list[Draft]:
    """A numbered line is a question if an answer marker follows within three lines, before the next numbered line."""
    drafts: list[Draft] = []
    for place, line in enumerate(lines):
        listed = _LISTED.match(line.text)
        if listed and _is_answered(lines, place + 1):
            drafts.append(Draft([Line("", _item_text(listed))]))
        elif drafts:
            draft, marker = drafts[-1], line.marker
            if marker and marker.role == ANSWER and not draft.answered:
                draft.answer, draft.answered = [Line("", marker.text)], True
            else:
                (draft.answer if draft.answered else draft.question).append(line)
    if drafts:
        _split_unanswered(drafts)
    return drafts


def _is_answered(lines: Sequence[Line], first: int) -> bool:
    seen = 0
    for place in range(first, len(lines)):
        marker = lines[place].marker
        if marker and marker.role == ANSWER:
            return True
        if lines[place].text.strip():
            seen += 1
            if seen == 3 or _LISTED.match(lines[place].text):
                return False
    return False


def _split_unanswered(drafts: list[Draft]) -> None:
    """Moves a last numbered question without an answer, cut off by the text's end, out of the answer before."""
    tail = drafts[-1].answer
    place = max((place for place, line in enumerate(tail) if line.text.strip()), default=0)
    listed = _LISTED.match(tail[place].text) if tail else None
    if listed and place and not tail[place - 1].text.strip() and int(listed["number"]) == len(drafts) + 1:
        del tail[place:]
        drafts.append(Draft([Line("", _item_text(listed))]))


def _item_text(listed: re.Match[str]) -> str:
    """The text of a list item without the closing half of an emphasis that began before its number."""
    opened = "".join(sign for sign in listed["decoration"] if sign in "*_")
    text = listed["text"]
    return text.replace(opened, "", 1) if opened and not listed["late"] else text


def unmarked(lines: list[Line]) -> list[Draft]:
    """Questions by marker, number or heading, each followed by its answer without a marker."""
    if any(line.marker and line.marker.role == ANSWER for line in lines):
        return []
    for question_of, least in ((_marked_question, 1), (listed_question, 2), (_headline, 2)):
        drafts: list[Draft] = []
        arrows = 0
        begun = False  # whether the current answer has text
        for place, line in enumerate(lines):
            question = question_of(line)
            if question is None and drafts and not lines[place - 1].text.strip():
                question = _next_item(line, len(drafts) + 1)
            if question is None:
                if drafts:
                    arrows += not begun and ARROW.match(line.text) is not None
                    begun = begun or bool(line.text.strip())
                    drafts[-1].answer.append(line)
                continue
            answer = []
            if both := _ASKS_AND_ANSWERS.match(question):
                question, answer = both["question"], [Line("", both["answer"])]
                arrows += 1
            begun = bool(answer)
            drafts.append(Draft([Line("", question)], answer, answered=True))
        answers = [text for draft in drafts if (text := without_farewell(joined(draft.answer), 0).strip())]
        if len(answers) >= (1 if arrows else least) and 2 * len(answers) > len(drafts):
            return drafts
    return []


def _next_item(line: Line, number: int) -> str | None:
    """The text of the list item ``number``, which need not ask: "2. Describe the film."."""
    listed = _LISTED.match(line.text)
    return _item_text(listed) if listed and int(listed["number"]) == number else None


def _marked_question(line: Line) -> str | None:
    marker = line.marker
    if marker is None or marker.role != QUESTION:
        return None
    is_question = asks(marker.text) or _ASKS_AND_ANSWERS.match(marker.text) or marker.number is not None
    return marker.text if marker.text and is_question else None


def listed_question(line: Line) -> str | None:
    listed = _LISTED.match(line.text)
    text = _item_text(listed) if listed else ""
    return text if asks(text) or _ASKS_AND_ANSWERS.match(text) else None


def _headline(line: Line) -> str | None:
    """The text of a heading, or of a line in bold, that asks."""
    text = _BULLET.sub(r"\1", line.text).strip()
    bold = next((sign for sign in ("**", "__") if text.startswith(sign) and text.endswith(sign) and len(text) > 5), "")
    if bold:
        text = text[2:-2]
    elif text.startswith("#"):
        text = text.strip("# ")
    else:
        return None
    return text if asks(text) and bold not in (text[:2], text[-2:]) else None


# In the order in which they are tried.
FORMATS = (_sections, _table, _listed, unmarked)
