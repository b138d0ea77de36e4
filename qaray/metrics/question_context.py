"""What a question says of itself, and what in it excuses a reference that would otherwise lean on the paper."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from qaray.metrics.study_words import DOCUMENT, SAMPLE, SECTION, WORK


def words(pattern: str) -> re.Pattern[str]:  # pragma: no mutate block (at import)
    """Compiles a pattern in which a blank stands for any white space; case is ignored."""
    return re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE)


_PAST = words(r"\b(?:was|were|did|had)\b")
# "In a double-blind design, …", "When a patient …, how …": the scene that a question sets for itself.
_SCENE = words(
    r"^\W*(?:in|for|when|if|during|suppose|consider|under|on|at|with|once|while|as|because|since)\b"
    rf"(?! (?:the|this|these|our) (?:\w+ )?(?:{WORK}|{DOCUMENT}|{SECTION})\b)[^,?]{{2,200}},"
)
_SCENE_BEHIND = words(r"\b(?:in|during|of|by) (?!the\b|this\b|these\b)\w{2}")
_INDEFINITE = words(r"\b(?:an?|any|each|every) \w")
_SUBJECTS = words(rf"\b{SAMPLE}\b")
_YEAR = re.compile(r"\b(?:1[5-9]|20)\d\d(?:s\b|\b(?!\s?(?:[a-zµ]{1,2}\b|[°%])))")
# A person, place or body that a past event is known by: "Millikan's", "by Watson", "did Kepler", "the Cambrian".
_NAME = re.compile(
    r"\s[A-Z][\w.-]*[a-z](?:s['’]|['’]s)|\b(?:by|did|was|were)\s+(?:[A-Z]\.\s?)*[A-Z][a-z]+\b|"
    r"\b[A-Z][a-z]{2,}(?:\s+(?:and|&)\s+[A-Z][a-z]{2}|[–-][A-Z][a-z]{2}|\s+et\s+al\b)|"
    r"\b[A-Z]\w+\s+(?:collaboration|experiment|mission|trial|study|survey|project|expedition|probe|telescope)s?\b|"
    r"\b(?:experiment|trial|stud(?:y|ie)|work|theory|finding|result|observation|expedition)s?\s+of\s+(?:the\s+)?[A-Z][a-z]{2}"
)
_NAMED_THING = re.compile(
    r"\b[Tt]he\s+[A-Z][a-z]{2,}\b(?!\s+(?:spectr|bands?|peaks?|shift|equation|plots?|tests?|scores?))"
)
_PROPER = re.compile(r"\s[A-Z][a-z]{2,}\b")
_HISTORY = words(
    r"\b(?:first|originally|histor\w+|ancient|medieval|centur\w+|discover\w+|invent\w+|extinct\w*|evol\w+|dinosaurs?|"
    r"universe|earth|planets?|ice ages?|continents?|solar system|galax\w+|humans|wars?|pandemic|epidemic|"
    r"civili[sz]ation\w*|revolution|until|theory|abandoned|banned|phased out|believed|billion years|million years|"
    r"traditionally)\b"
)
_CLAUSE_END = words(
    r"[,;:?.]\s|\b(?:and|but|so) (?:how|why|what|which|when|where|can|do|does|is|are|should|could)\b|"
    r"(?<=\w\s)(?:when|if|because|although|while|that|who|as|since|after|before|until|than|where|whose|which)\s"
)
_CONTENT_WORD = re.compile(r"\b[a-z]\w{3}|\b[A-Z]\w")
_OF_ANOTHER = words(
    r"\)? (?:of|by) (?!(?:(?:the|this|these|our|their|present|current) ){1,2}(?:(?-i:[a-z]+) )?"
    rf"(?:{WORK}|{DOCUMENT})\b)"
)
_OF_NAME = re.compile(r"(?:\W+\w+){0,4}?\s+(?:of|by|from|in|at|for)\s+(?:the\s+)?(?:\d{4}\b|[A-Z][a-z]+)")
_POSSESSIVE = re.compile(r"['’]s\s+$")
_SPELLED_OUT = re.compile(r"[^?]*:\s+\S")


@dataclass(frozen=True)
class Question:
    """A question and what is true of it as a whole, computed once."""

    text: str

    @cached_property
    def in_past(self) -> bool:
        return bool(_PAST.search(self.text))

    @cached_property
    def sets_scene(self) -> bool:
        return bool(_SCENE.match(self.text))

    @cached_property
    def is_named(self) -> bool:
        return bool(_NAME.search(self.text))

    @cached_property
    def is_dated(self) -> bool:
        return bool(_YEAR.search(self.text))

    @cached_property
    def is_public_record(self) -> bool:
        dated = self.is_dated and not _SUBJECTS.search(self.text)  # "how many patients were enrolled in 2011" is not
        return self.is_named or dated or bool(_HISTORY.search(self.text) or _NAMED_THING.search(self.text))

    def before(self, match: re.Match[str]) -> str:
        return self.text[max(0, match.start() - 300) : match.start()]

    def after(self, match: re.Match[str]) -> str:
        return self.text[match.end() : match.end() + 200]


Excuse = Callable[[Question, "re.Match[str]"], bool]


def complement(asked: Question, match: re.Match[str]) -> bool:
    """An of-phrase says which one: "Table 1 of the ICH guideline"."""
    return bool(_OF_ANOTHER.match(asked.after(match)))


def owner(asked: Question, match: re.Match[str]) -> bool:
    """A name or a date says whose it is: "the proposed mechanism of Criegee", "Euclid's proposition 4"."""
    return bool(_OF_NAME.match(asked.after(match))) or bool(_POSSESSIVE.search(asked.before(match)))


def general(asked: Question, match: re.Match[str]) -> bool:
    """General knowledge, in the present tense, of what the question introduces: "When a sample …, the sample …"."""
    return not asked.in_past and (asked.sets_scene or bool(_INDEFINITE.search(asked.before(match))))


def field_follows(asked: Question, match: re.Match[str]) -> bool:
    """The same with the field behind: "Why is the sample rotated in NMR?"."""
    return not asked.in_past and bool(_SCENE_BEHIND.search(asked.after(match)))


def known_event(asked: Question, match: re.Match[str]) -> bool:
    """A past event of public record: named, dated or long ago."""
    return asked.is_public_record


def dated(asked: Question, match: re.Match[str]) -> bool:
    return asked.is_dated


def dated_or_named(asked: Question, match: re.Match[str]) -> bool:
    return asked.is_dated or asked.is_named


def proper_noun(asked: Question, match: re.Match[str]) -> bool:
    return bool(_PROPER.search(asked.text))


def same_noun(asked: Question, match: re.Match[str]) -> bool:
    """The noun occurs before: "Why does paper yellow, and how is the paper kept?"."""
    return match["noun"].lower().rstrip("sy") in asked.before(match).lower()


def antecedent(asked: Question, match: re.Match[str]) -> bool:
    """An earlier clause gives the referent: "Why do enzymes unfold, and how do they refold?"."""
    before = asked.before(match)
    ends = [end.start() for end in _CLAUSE_END.finditer(before)]
    return bool(ends) and len(_CONTENT_WORD.findall(before, 0, ends[-1])) >= 2


def definition(asked: Question, match: re.Match[str]) -> bool:
    """It is spelled out behind a colon: "What does this equation describe: F = ma?"."""
    return bool(_SPELLED_OUT.match(asked.after(match)))
