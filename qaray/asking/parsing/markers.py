"""The markers of questions and answers: words × numbers × enclosures.

    Q1: …    Question #2: …    **Answer 3.** …    (Q4) …    [Question] …    ### Frage 5    问题一：…    <answer>…

A marker stands at the beginning of a line, perhaps behind a list number, bold or heading marks. ``Markers.inline``
finds the places within a line that begin one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

QUESTION, ANSWER, END, HEADING = "Q", "A", "END", "HEADING"

# Words of a question and of its answer, by language.
_LANGUAGES = (
    ("question|ques|qn", "answer|ans"),  # English
    ("frage", "antwort"),
    ("question", "réponse|reponse|rép|rep"),
    ("pregunta", "respuesta"),
    ("pergunta|questão", "resposta"),
    ("domanda|quesito", "risposta"),
    ("vraag", "antwoord"),
    ("вопрос", "ответ"),
    ("питання", "відповідь"),
    ("pytanie", "odpowiedź"),
    ("otázka", "odpověď"),
    ("kérdés", "válasz"),
    ("întrebare|întrebarea", "răspuns|răspunsul"),
    ("fråga|spørgsmål|spørsmål|kysymys", "svar|vastaus"),
    ("soru", "cevap|yanıt"),
    ("pertanyaan", "jawaban"),
    ("câu hỏi|câu|hỏi", "câu trả lời|trả lời|đáp án|đáp"),
    ("ερώτηση", "απάντηση"),
    ("سؤال|السؤال", "جواب|الجواب|إجابة|الإجابة"),
    ("سوال|پرسش", "پاسخ"),
    ("שאלה", "תשובה"),
    ("प्रश्न|सवाल", "उत्तर|जवाब"),
    ("প্রশ্ন", "উত্তর"),
    ("คำถาม", "คำตอบ"),
    ("问题|問題|问|問|提问|题目|題目", "答案|回答|答|解答|答复"),  # Chinese
    ("質問|問い|問", "回答|答え|解答"),  # Japanese
    ("질문|문제", "답변|대답|답|정답"),  # Korean
)
# Pairs of markers beside these words, tried in order until one gives pairs: the letters Q and A, then what may also be
# a variable, a heading or a speaker.
_ALTERNATIVES = (
    ("Q", "A"), ("query", "response|reply"), ("instruction|prompt", "response|output"),
    ("problem|exercise", "solution"), ("user|human", "assistant|ai|model|bot"),
    ("F", "A"), ("Q", "R"), ("P", "R"), ("D", "R"), ("V", "A"), ("В", "О"),
)  # fmt: skip


def _words(column: int) -> str:  # pragma: no mutate block (at import)
    found = {word for language in _LANGUAGES for word in language[column].split("|")}
    return "|".join(sorted(found, key=lambda word: (-len(word), word)))


QUESTION_WORDS, ANSWER_WORDS = tuple(_words(0).split("|")), tuple(_words(1).split("|"))

_DECORATION = r"[ \t\u00a0\u3000>#*_`~•·◦▪●○➤▶\U0001f300-\U0001faff\u2600-\u27bf\ufe0f-]*"
_DIGITS = r"(?:\d{1,9}|[一二三四五六七八九十]{1,3}|(?-i:[ivx]{1,5}|[IVX]{1,5})(?=\W))"
_NUMBER = (
    rf"[ \t\u00a0]*+[-_.]?(?:#|№|No\.?|Nr\.?|n[°º]|第)?[ \t]*+\(?(?P<number>{_DIGITS})?\)?"
    r"(?:[ \t]*+(?:/|of)[ \t]*+\d+)?"
)
_LABEL = r"(?:[ \t]?[(\[][^()\[\]\n]{1,40}[)\]](?=[*_`]{0,3}[ \t]*[:：]))?"  # Question 1 (easy):
_ADJECTIVE = (
    r"(?:(?:correct|expected|possible|model|sample|suggested|reference|final|ideal|short|long|detailed)[ \t]+)?"
)
_EMPHASIS = r"[*_`]{0,3}"
_END_OF_NUMBER = r"(?:[:：.)\]】」）>|]|[-–—]{1,2}(?=\s)|=>|→)"


def _marker(words: str, own: str) -> str:  # pragma: no mutate block (at import)
    """A marker: decoration, perhaps a list number and a bracket, word, number, bracket, colon; or alone on its line."""
    word = rf"(?:{_ADJECTIVE}(?:{words})s?|{own})(?=[一二三四五六七八九十第]|(?![^\W\d_]))"
    return (
        rf"(?P<decoration>{_DECORATION}(?:\(?\d{{1,4}}[ \t]*[.):](?!\d){_DECORATION})?)(?P<bracket>[\[(<【「（]?)"
        rf"(?P<word>{word})(?:[ \t]+(?:to|for)[ \t]+(?:{_words(0)}|Q))?{_NUMBER}{_LABEL}(?P<early>{_EMPHASIS})"
        r"[ \t\u00a0]*+"
        rf"(?P<end>{_END_OF_NUMBER}[ \t]*[:：]?|:|：|(?=[ \t]*$))(?P<late>{_EMPHASIS})[ \t\u00a0\u3000]*(?P<text>.*)$"
    )


@dataclass(frozen=True)
class Markers:
    """The markers of one alternative, beside the words of all languages."""

    question: re.Pattern[str]
    answer: re.Pattern[str]
    inline: re.Pattern[str]  # a place in a line before which it may be split
    hint: re.Pattern[str]  # found in every text that has markers of the alternative's own
    common: bool  # the letters Q and A: questions need no question mark

    @classmethod
    def of(cls, own: tuple[str, str]) -> Markers:  # pragma: no mutate block (at import)
        question, answer = (re.compile(_marker(_words(i), each), re.I) for i, each in enumerate(own))
        both = rf"(?:{_words(0)}|{_words(1)}|(?-i:{'|'.join(own)}))"
        number = r"[ \t]*#?\(?\d{1,3}\)?"
        inline = re.compile(
            # numbered with a colon; numbered, behind the end of a sentence; with a colon, behind the end of a sentence
            rf"(?<=\S)[ \t]+(?=[*_]{{0,3}}[\[(]?(?:{_words(0)}|(?-i:{own[0]})){number}[\])]?[*_]{{0,3}}[:：])"
            rf"|(?<=[.?!:;)\]*|/–—。？！”\"'’%°-])[ \t]+(?=[*_]{{0,3}}[\[(]?{both}{number}[\])]?[*_]{{0,3}}[:：])"
            rf"|(?<=[？。！：])(?={both}{number}[:：])"
            rf"|(?<=[.?!:)\]*|。？！”\"'’])[ \t]+(?=[*_]{{0,3}}(?:[\[(]{both}{number}[\])]|{both}{number}[.)][ \t]))"
            rf"|(?<=[?？.。!！*)])[ \t]+(?=[*_]{{0,3}}{both}[*_]{{0,3}}[ \t]?[:：])"
            rf"|(?<=\S)[ \t]+(?=\[/?{both}\])",
            re.I,
        )
        hint = re.compile(rf"^[\W_]{{0,12}}(?:{own[0]}|{own[1]})\W?[ \t]?#?\d{{0,4}}\W", re.I | re.M)
        return cls(question, answer, inline, hint, own == _ALTERNATIVES[0])


ALTERNATIVES = tuple(Markers.of(own) for own in _ALTERNATIVES)


@dataclass(frozen=True)
class Marker:
    """A marker at the beginning of a line."""

    role: str  # QUESTION, ANSWER, END of an answer, or HEADING of several questions or answers
    number: int | None
    style: str  # word or letter, numbered or not, and what ends it; HEADING: the role of what follows
    text: str  # the rest of the line


_CHINESE = {sign: value for value, sign in enumerate("一二三四五六七八九", 1)}
_ROMAN = {"i": 1, "v": 5, "x": 10}


def number_of(text: str | None) -> int | None:
    """The value of a marker's number: digits of any script, Chinese up to 99, Roman up to 39."""
    if not text:
        return None
    if text.isdecimal():
        return int(text)
    if text[0].lower() in _ROMAN:
        values = [_ROMAN.get(letter, 0) for letter in text.lower()]
        return sum(-v if any(w > v for w in values[i + 1 :]) else v for i, v in enumerate(values))
    tens, ten, ones = text.rpartition("十")
    return (_CHINESE.get(tens, 1) * 10 if ten else 0) + _CHINESE.get(ones, 0)


def _role_marker(line: str, pattern: re.Pattern[str], role: str) -> Marker | None:
    match = pattern.match(line)
    if match is None:
        return None
    number, end, word = number_of(match["number"]), match["end"].strip()[:1], match["word"]
    letter = len(word) == 1 and word.isalpha() and ord(word) < 0x0500
    closed = bool(match["bracket"]) and end in "])>】」）" and end != ""
    if match["bracket"] and not closed:
        return None
    text = _without_emphasis(match)
    alone = not text.strip(" *_`")
    numbered = "bare" if number is None else "numbered"
    decorated = closed or bool(match["early"] or set(match["decoration"]) & set("#*_`"))
    if number is None and word[-1] in "sS" and alone and word.lower()[:-1] in (*QUESTION_WORDS, *ANSWER_WORDS):
        return Marker(HEADING, None, role, "")
    if number is None and not closed and not decorated:
        if not end and letter:
            return None  # a letter on a line of its own
        if end == "." and not (letter and word.isupper()) and not alone:
            return None  # "Answer. The film …" is text; "A. The film …" may be a marker
    return Marker(role, number, f"{'letter' if letter else 'word'} {numbered} {end}", text)


def _without_emphasis(match: re.Match[str]) -> str:
    """The text after a marker, without the closing half of an emphasis that began before it."""
    opened = "".join(re.findall(r"[*_`]+(?=\S|$)", match["decoration"]))
    if match["early"] or (match["late"] and opened):
        return match["text"]
    text = match.string[match.start("late") :].strip(" \t")
    if not opened:
        return text
    if text.endswith(opened):
        return text[: -len(opened)]
    return text.replace(opened, "", 1)


_LIST_NUMBER = re.compile(r"(\d{1,4})[.)]\s+")
_ENDS = re.compile(rf"[ \t]*\[(?:/?END|/(?:{_words(0)}|{_words(1)}|[QA])\d*)\](?P<text>.*)$", re.I)
_BOLD_MARKER = re.compile(rf"<(?:b|strong|p|li|h\d|div)>\s{{0,4}}(?:Q|{_words(0)})[\s\d:.]", re.I)
_BOLD, _BREAK = re.compile(r"</?(?:b|strong)>", re.I), re.compile(r"</?(?:p|li|ul|ol|h\d|div|br)\s?/?>", re.I)
_WRAPPER = re.compile(r"\s*<(?:answers?|output|response|result)>", re.I)
_CLOSING, _QUESTION_TAG = re.compile(r"</\w+>"), re.compile(r"</?q", re.I)
_TAG = re.compile(
    rf"<(?P<close>/?)(?:(?P<question>q|{_words(0)})|(?P<answer>a|{_words(1)})|(?P<pair>(?:qn?a|q_a|pair|item|entry)s?|"
    rf"(?:qa|question[_-]?answer)[_-]?(?:pairs?|list|set)))(?:[_-]?text)?[_-]?(?P<number>\d{{0,4}})(?:\s[^<>\n]{{0,80}})?/?>",
    re.I,
)


def without_tags(text: str) -> str:
    """XML tags as markers: ``<question>What …?</question>`` → ``[Q] What …?`` and an end; bold in HTML as Markdown."""
    if _BOLD_MARKER.search(text):
        text = _BREAK.sub("\n", _BOLD.sub("**", text))
    if wrapper := _WRAPPER.match(text):
        inner = text[wrapper.end() :].rstrip()
        closing = inner.rfind("</")
        if closing >= 0 and _CLOSING.fullmatch(inner, closing):
            inner = inner[:closing]
        text = text if _QUESTION_TAG.search(inner) else inner
    closed = {name for match in _TAG.finditer(text) if match["close"] for name in ("question", "answer") if match[name]}
    if closed != {"question", "answer"}:
        return text

    def marker(match: re.Match[str]) -> str:
        if match["close"] or match["pair"]:
            return "\n[END]\n"
        return f"\n[{QUESTION if match['question'] else ANSWER}{match['number']}] "

    return _TAG.sub(marker, text)


def marker_of(line: str, markers: Markers) -> Marker | None:
    """The marker with which a line begins; None for a line of text."""
    if ends := _ENDS.match(line):
        return Marker(END, None, "", ends["text"].strip())
    marker = _role_marker(line, markers.question, QUESTION) or _role_marker(line, markers.answer, ANSWER)
    if marker is None or not marker.text or marker.role == HEADING:
        return marker
    # "Q1: Q1: …" and "Q1: 1. …": the prompt ends with a marker, and the model begins with another.
    again = _role_marker(marker.text, markers.question if marker.role == QUESTION else markers.answer, marker.role)
    if (
        again
        and again.text
        and again.style[-1] not in "]>"
        and again.role == marker.role
        and marker.number in (None, again.number or marker.number)
    ):
        return replace(marker, number=again.number or marker.number, text=again.text)
    if (number := _LIST_NUMBER.match(marker.text)) and int(number[1]) == marker.number:
        return replace(marker, text=marker.text[number.end() :])
    return marker


def word_role(text: str) -> str | None:
    """The role that a heading of a column names, such as "Question" or "Answers"; None for another."""
    word = text.lower()
    for role, words in ((QUESTION, ("q", *QUESTION_WORDS)), (ANSWER, ("a", *ANSWER_WORDS))):
        if word in words or word.removesuffix("s") in words or word.removesuffix(" text") in words:
            return role
    return None
