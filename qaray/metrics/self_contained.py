"""Self-containedness: can a question be understood without its paper?

A question leans on its paper if it refers to the document ("the text", "Figure 3"), to its authors or subjects, or to
something that the study did or used ("the proposed method", "was achieved"), and neither a complement ("Table 1 of the
ICH guideline"), a name or date ("Millikan's experiment"), nor an earlier part of the question says which one is meant.

``RULES`` lists the references; each names the circumstances that excuse it. The rules go by wording: they know English
only, and do not know whether a fact is common knowledge.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from qaray.metrics.question_context import (
    Excuse,
    Question,
    antecedent,
    complement,
    dated,
    dated_or_named,
    definition,
    field_follows,
    general,
    known_event,
    owner,
    proper_noun,
    same_noun,
    words,
)
from qaray.metrics.study_words import (
    ACTORS,
    ALONE,
    COMPOUND,
    CONDITION,
    COUNT,
    DOCUMENT,
    DONE,
    FIGURE,
    HAD_EFFECT,
    MEASURED,
    METHOD,
    NO_PREPOSITION,
    NUMBERED_PART,
    NUMBERED_STEP,
    PURPOSE,
    SAID,
    SAMPLE,
    SECTION,
    STUDIED,
    VERB,
    WHOLE,
    WORK,
)

MAX_CHARACTERS = 4_000  # of a question that are read: what is longer is no question


def paper_reference(question: str) -> str | None:
    """The words that make a question depend on its paper ("this study", "Figure 3"); None if it is self-contained."""
    asked = Question(question[:MAX_CHARACTERS])
    found = (
        match[0]
        for rule in RULES
        for match in rule.pattern.finditer(asked.text)
        if not any(excuse(asked, match) for excuse in rule.unless)
    )
    return next(found, None)


@dataclass(frozen=True)
class Rule:
    """A kind of reference to a paper, and what excuses it."""

    pattern: re.Pattern[str]
    unless: tuple[Excuse, ...]


def _rule(pattern: str, *unless: Excuse) -> Rule:  # pragma: no mutate block (at import)
    return Rule(words(pattern), unless)


_POINTER = (complement, owner)
_DEFINITE = (general, same_noun, dated_or_named)
_SPECIMEN = (general, same_noun, field_follows)
_ANAPHOR = (antecedent, definition)
_OWNED = (owner, general)
_EVENT = (known_event, proper_noun)

_DOCUMENT_RULES = (
    _rule(rf"\bthe (?P<noun>{DOCUMENT}){ALONE}", *_DEFINITE),
    _rule(rf"\b(?:this|these) (?:\w+ )?{DOCUMENT}{WHOLE}"),
    _rule(
        "(?:above|given|provided|supplied|following|attached|accompanying|entire|whole) "
        rf"(?:{DOCUMENT}|{WORK}|context|information|details){WHOLE}"
    ),
    _rule(rf"\b(?:the|in) (?:present|current) (?:{DOCUMENT}|{WORK}){WHOLE}(?! (?:of|on|into|done|required)\b)"),
    _rule(rf"\bthe present {METHOD}{WHOLE}"),
    _rule(r"\b(?:based on|according to|in|from|per|within) the context(?=\W*$|,)"),
    _rule(
        rf"\b(?:in|from|of|by|does) the {SECTION}{WHOLE}"
        rf"(?=\W*$|,| (?:{VERB}|about|regarding|as|on)\b| of (?:the|this) {DOCUMENT})"
    ),
    _rule(r"\bthe supplement(?:ary|al) \w+"),
    _rule(rf"\b(?:shown|seen|depicted|illustrated|displayed|presented|plotted) (?:in|by|on) the {FIGURE}\b"),
    _rule(rf"\b(?:in|from|according to) the {FIGURE}{ALONE}"),
    _rule(rf"\b{NUMBERED_PART}\s*[([]?(?:S?\d+|[IVX]+\b|(?-i:[A-Z])\b(?![-'’]))", *_POINTER),
    _rule(
        rf"\b{NUMBERED_STEP} (?:(?-i:[A-Z])?\d{{1,3}}[a-z]?|(?-i:[A-Z]))"
        rf"(?=\W*$|[,;)?]| (?:{VERB}|and|or|in|from|with|to|than|at|by)\b)",
        *_POINTER,
        general,
    ),
    _rule(rf"\b{COMPOUND} \(?\d{{1,3}}[a-z]\b\)?"),
    # "programmed death ligand 1" is a name: only a preposition, verb or question word may stand before
    _rule(
        r"(?:^|\b(?:of|do|does|did|is|was|are|were|for|to|in|with|by|from|and|the|than|between|why|how|that|into) )"
        rf"{COMPOUND} \(?\d{{1,2}}\)?(?=\W*$|[,;?]| [a-z]{{2}})(?! (?:percent|wt|mol|times|hours?|days?|years?))",
        complement,
    ),
    _rule(rf"\b(?:shown|used|{STUDIED}|{SAID}) (?:above|below|earlier|here)\b|\bherein\b"),
    _rule(r"\bthe (?:above|afore-?mentioned|above-?mentioned|aforesaid)\b"),
)

_ACTOR_RULES = (
    _rule(
        rf"\bthe (?:(?:first|second|last|lead|corresponding) )?{ACTORS}{WHOLE}(?! (?:who|at|from)\b| (?-i:[A-Z][a-z]))",
        dated,
        general,
        complement,
    ),
    _rule(rf"\b(?:our|their) (?:own |new |proposed )?(?:{WORK}|{DOCUMENT}|{METHOD}|hypothesis|data)\b", *_ANAPHOR),
    _rule(r"\b(?:did|were|have) we\b"),
    _rule(r"\bthey\b", *_ANAPHOR),
    _rule(
        r"\b(?:does|did|was) it\b(?! (?:take|mean|matter|make|cost|follow|happen|feel|rain|snow|possible)\b)",
        *_ANAPHOR,
    ),
    _rule(r"^\W*(?:what|which|how) (?:is|are|was|were|does|do|did) its\b"),
    _rule(rf"\b(?:did|had|were) (?:the )?(?:\w+ )?{SAMPLE}\b", known_event, owner),
    _rule(
        rf"^\W*(?:what|which|how many) (?:(?!is\b|are\b|do\b|does\b|can\b|should\b)\w+ ){{0,5}}?{SAMPLE} "
        r"(?:\w+ed|had|gave|chose|said|felt)\b(?! (?:by|with|to|in|for)\b)",
        known_event,
    ),
)

_NO_POINTER = (
    "(?:of|in|who|that|with|from|for|at|on|by|which|where|are|is|years?|months?|weeks?|centur(?:y|ies)|decades?|days?|"
    r"moment|planet|world|universe|way)\b"
)
_STUDY_RULES = (
    _rule(rf"\b(?:this|these|those|that) (?:\w+ )?{WORK}{WHOLE}", definition),
    _rule(rf"\b(?:this|these|those) (?!{_NO_POINTER})(?P<noun>[a-z][\w-]+)", *_ANAPHOR, same_noun),
    _rule(r"\bsuch (?!as\b|that\b)(?:an? )?(?P<noun>[a-z][\w-]+)", *_ANAPHOR, same_noun),
    _rule(rf"\bthe (?P<noun>study){WHOLE}(?! of\b)", *_DEFINITE),
    _rule(
        r"\bthe (?:(?:first|second|third|fourth|fifth|last|final|initial|main|other|same|two|three|four|five) )?"
        r"(?:(?:series|set) of )?(?P<noun>experiments?|trials?|survey|investigation|review|simulations|measurements|"
        rf"research|findings|results|data){ALONE}",
        *_DEFINITE,
    ),
    _rule(
        r"\b(?:key|main|major|principal|primary|most important) (?:findings?|contributions?|conclusions?)\b",
        complement,
    ),
    _rule(rf"\b{PURPOSE} of the (?P<noun>{WORK}|{METHOD}){WHOLE}(?=\W*$|,| (?:for|in|on|with|{VERB})\b)", *_DEFINITE),
    _rule(
        rf"\bthe (?:{COUNT} ){{0,2}}{STUDIED} (?!mechanisms?\b|countries|world|nations|economies|species\b)"
        r"(?-i:(?![A-Z][a-z]{2}))\w+",
        *_OWNED,
    ),
    _rule(
        rf"\bthe (?:new|modified|improved|optimi[sz]ed|hybrid) (?:\w+[\s-]){{0,2}}"
        rf"(?:{METHOD}|alloy|catalyst|coating|compound|electrode|material|polymer)\b(?! of\b)",
        *_OWNED,
    ),
    _rule(r"\bthe (?:novel|innovative) (?!by\b|of\b|is\b|and\b|that\b|in\b|corona|virus)\w+", *_OWNED),
    _rule(r"\b(?:what|which) (?:new|novel|innovative) (?:\w+ ){1,4}?(?:was|were|is|are|has|have)\b", known_event),
    _rule(rf"\bthe (?:\w+[\s-]){{0,2}}(?:{METHOD}|{WORK}) (?:{STUDIED}|{SAID}|used)\b{NO_PREPOSITION}"),
    _rule(
        rf"\bthe (?:\w+ )?(?:{SAMPLE}|{CONDITION}) (?:used|applied|chosen|selected|obtained|{STUDIED})\b",
        general,
        field_follows,
    ),
    _rule(rf"^\W*what (?:is|are) the (?:\w+ ){{1,3}}?(?:{STUDIED}|{SAID})\W*$", known_event),
    _rule(rf"\bthe (?:two|three|four|other) (?P<noun>{METHOD}|{SAMPLE}|groups){ALONE}", *_DEFINITE),
    _rule(
        rf"^\W*(?:what|which) (?!is\b|are\b)(?:[\w-]+ ){{1,3}}?(?:is|are) (?:used|{STUDIED}|{SAID})\W*$", proper_noun
    ),
    _rule(rf"\bthe (?P<noun>{METHOD}){WHOLE}(?=\W*$|,| {VERB}\b)", *_DEFINITE),
    _rule(
        r"\b(?:do|does|did) the (?P<noun>experiments?|trials?|findings|results|data|observations|simulations|"
        rf"measurements){WHOLE}(?! (?:of|from|in|on|for|sets?|base|section)\b) \w+",
        *_DEFINITE,
    ),
    _rule(
        rf"\b(?:do|does) the (?:\w+ ){{0,2}}(?P<noun>{FIGURE}|spectra|spectrum|curves?) "
        r"(?:reveal|show|indicate|suggest)\b",
        *_DEFINITE,
    ),
    _rule(
        r"\b(?:do|does) the (?P<noun>approach|method|algorithm|framework|protocol|procedure|strategy|pipeline|"
        rf"classifier|technique|workflow){WHOLE}(?! of\b| for\b| that\b) \w+",
        *_DEFINITE,
    ),
    _rule(
        rf"^\W*(?:how|why|where) (?:is|are) the (?:{METHOD}|{SAMPLE}|{CONDITION}) (?:\w+ly )?"
        r"(?:\w+ed|built|chosen|drawn|grown|kept|made|set|split|taken)\b",
        field_follows,
    ),
    _rule(
        rf"\bthe (?P<noun>samples?|specimens?)(?:{ALONE}| (?:in|on|with|from|at|during)\b)",
        *_SPECIMEN,
    ),
    _rule(
        rf"\bthe (?P<noun>{METHOD}|material|sample|catalyst|compound|survey|trial|experiment)['’]s\b",
        *_SPECIMEN,
    ),
    _rule(
        rf"^\W*(?:what|which) (?!is\b|are\b)(?:[\w-]+ ){{1,12}}?(?:is|are|was|were) {SAID}"
        r"(?=\W*$| (?:for|in the|regarding|about|as|to)\b)",
        *_EVENT,
    ),
)

# In the past tense: what a study did rather than what is known.
_ACT_RULES = (
    _rule(rf"\b(?:was|were) (?:[^\s?]+ ){{0,14}}?{DONE}\b", known_event),
    _rule(rf"\bwhat (?:was|were) (?:some of )?the (?:[\w-]+ )?{MEASURED}\b", known_event),
    _rule(r"^\W*(?:how|why) (?:was|were) \w+", *_EVENT),
    _rule(r"\b(?:how|why|where|when|(?:what|which) \w+) (?:was|were) the\b", known_event),
    _rule(
        r"^\W*(?:which|how (?:many|much|large|high|long)) [^?.;]{0,120}?\b(?:was|were) (?!by\b)\w+",
        *_EVENT,
    ),
    _rule(r"\b(?:did|had) (?:the|an?|adding|increasing|using|most) \w+", known_event, owner),
    _rule(
        rf"^\W*(?:what|which) (?!is\b|are\b)(?:[\w-]+ ){{1,4}}?{HAD_EFFECT} "
        r"(?!(?:by|in|for|from|at|on|with|using|during|of)\b)",
        *_EVENT,
    ),
)

# The most telling reference comes first.
RULES: tuple[Rule, ...] = _DOCUMENT_RULES + _ACTOR_RULES + _STUDY_RULES + _ACT_RULES
