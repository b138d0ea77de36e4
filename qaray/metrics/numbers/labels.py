"""Digits that are no quantities: labels, citations, years, list markers, locants, isotopes, identifiers.

``mask`` takes out what is recognised by its own shape; the others are recognised by what stands around a number.
"""

from __future__ import annotations

import re

_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|"
    r"Nov(?:ember)?|Dec(?:ember)?)"
)
_ADDRESS = re.compile(r"(?:https?|ftp)://\S++|www\.\S++")
_DOI = re.compile(r"10(?<![\w.]10)\.\d{4,9}/\S++")
_MAIL = re.compile(r"@(?<=\w@)[\w-]{1,64}\.\S++")
_CITATION = re.compile(r"\[\s?\d{1,4}[a-z]?(?:\s?[,;-]\s?\d{1,4}[a-z]?)*+\s?\](?!\s?[×x^*]|\s?\w{1,3}/)")
_RAISED_CITATION = re.compile(r"\^(?<=[A-Za-z)\]%°.,;:]\^)(?![234](?!\d))\d{1,3}(?:[,-]\^?\d{1,3})*+(?!\d)")
# Identifiers that begin with a digit.
_IDENTIFIER = re.compile(
    rf"""
    \d{{1,7}}-\d{{1,3}}-\d{{1,5}}(?:-[\dXx]{{1,7}}){{0,3}}(?![\w-])           # date, CAS number, ISBN
    | \d{{1,2}}/\d{{1,2}}/\d{{2,4}}(?![\w/])                            # date
    | (?!\d{{1,3}}(?:\.\d{{3}})+(?![\d.]))\d{{1,4}}(?:\.\d{{1,4}}){{2,6}}(?!\.?\w)  # version, section, enzyme class
    | (?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?\s?(?:[ap]\.?m\b\.?|o'clock)  # time of day
    | \d{{1,2}}(?:st|nd|rd|th)?\s{_MONTH}\b\.?(?:,?\s(?:1[5-9]|20)\d\d)?(?!\w)
    """,
    re.VERBOSE,
)


def mask(text: str) -> str:
    """The text with addresses, DOIs and citations in brackets or superscripts replaced by as many underscores."""
    for present, pattern in (
        ("://", _ADDRESS), ("www.", _ADDRESS), ("10.", _DOI), ("@", _MAIL), ("[", _CITATION), ("^", _RAISED_CITATION),
    ):  # fmt: skip
        if present in text:
            text = pattern.sub(lambda match: "_" * len(match[0]), text)
    return text


def identifier_end(text: str, start: int) -> int | None:
    """Where a date, CAS number, version or time of day ends that begins at ``start``; None if none does."""
    match = _IDENTIFIER.match(text, start)
    return match.end() if match else None


# Words that number something: "Fig. 8", "Table 2", "strain No. 25922", "type 2", "phase 3".
_NUMBERED = """
algorithm appendix article assay batch box bullet case channel chapter chromosome class clause clone cluster code
cohort column complex compound condition corollary cycle definition domain entry eq eqn equation example exon
experiment factor family fig figure file footnote formulation generation genotype grade group helix hypothesis
interleukin intron isoform isolate issue item lane layer lemma level line lot method mode model module movie mutant
note number objective omega option page panel paragraph part patent patient peak phase plate point position procedure
process product proposition protocol quartile question reaction ref reference region remark residue room route row run
sample scenario schedule scheme sec sect section series serotype set sheet site specimen stage step strain study
subtype subunit supplement tab table task tertile theorem tier trial type variant ver version video visit vitamin vol
volume wave zone
"""
_LABEL_WORDS = frozenset(word + ending for word in _NUMBERED.split() for ending in ("", "s", "es"))
_ABBREVIATIONS = frozenset(("no.", "nos.", "nr.", "p.", "pp.", "ex.", "exp.", "chap.", "v.", "v", "No", "Nos", "Q"))
_WORD_BEFORE = re.compile(r"(?:(?<![\w-])([A-Za-z]{1,16})(\.?)|([#§№]))\s?(?:[Nn]os?\.?\s?|number\s|#)?[(\[]?\s?\Z")
_MONTH_BEFORE = re.compile(rf"\b{_MONTH}\.?\s(?:\d{{1,2}}(?:st|nd|rd|th)?,?\s)?\Z")
# Words in capitals before a number: "ATCC 25922", "ISO 9001"; not those of measured values.
_ACRONYM = re.compile(r"(?<![\w=])((?=[A-Z\d/-]*[A-Z][A-Z\d/-]*[A-Z])[A-Z][A-Z\d/-]{1,11})[\s-]\Z")
_MEASURED = re.compile(
    r"BMI|IQ|SD|SEM?|CI|OR|RR|HR|MIC|LOD|LOQ|RMSE|MAE|AUC|USD?|EUR|AND|OF|TO|FOR|IN|WITH|AT|BY|FROM|THE"
)
# Names before a number: "Tween 20", "Windows 10"; at the beginning of a sentence, any word has a capital.
_NAME = re.compile(r"(?<![.!?:;\n]\s)(?<![\w-])([A-Z][a-z]{2,20})\s\Z")
_FIRST_NAME = re.compile(r"(?:\A|[.!?:;]\s|\n)([A-Z][a-z]{3,20})\s\Z")
_NO_NAME = re.compile(
    r"\w+(?:ly|ed|ing)|About|Above|After|Almost|Among|Another|Around|Before|Below|Between|Both|Circa|Contains|Down|Each|"
    r"Equals|Every|First|From|Given|Have|Into|Just|Last|Less|Like|Most|More|Near|Next|Only|Other|Over|Past|Some|Such|"
    r"Than|That|Their|There|These|They|Thus|Those|Under|Until|Upon|Were|When|Where|While|With|Within"
)
_NOUN_FOLLOWS = re.compile(
    r"\s?(?!(?:was|were|is|are|has|have|had|and|or|in|at|on|of|to|for|with|by|as|from|that|which|can|may|could|should|"
    r"will|did|does|showed|shows|than|after|before|then|when|but|we)\b)[a-z]{2,}"
)
_CAPITAL_BEFORE = re.compile(r"[A-Z]\S{0,20}\s?\Z")
_LINE_BEGINS = re.compile(r"(?:\A|\n|[.;:!?]\s)\s?[*#(-]{0,3}\s?\Z")
_LIST_MARK = re.compile(r"\*{0,2}[.):]\*{0,2}(?=\s|\Z)")
_HEADING = re.compile(r"\.?\s+[A-Z][a-z]")
_YEAR = re.compile(r"(?:1[5-9]|20)\d\d")
_RECENT = re.compile(r"19\d\d|20[0-4]\d")
_YEAR_BEFORE = re.compile(
    r"(?:\b(?:in|since|until|till|during|years?|late|early|mid|spring|summer|autumn|fall|winter|copyright|"
    rf"{_MONTH}\.?),?\s|©\s?|\bet al\.?,?\s?\(?|\([A-Z][^()\n]{{0,60}}|\()\Z",
    re.IGNORECASE,
)
_VALUE_BEFORE = re.compile(r"(?:[=<>~≈:/]|\b(?:m/z|is|was|about|approximately|than|least|most|value|scans?))\s?\Z")

# Mass numbers of the elements whose symbols are units too.
ISOTOPES = {
    "C": range(10, 15), "N": range(13, 16), "F": (18, 19), "P": (31, 32, 33), "S": range(32, 37), "B": (10, 11),
    "U": range(232, 239), "D": range(1, 5), "Pa": (231,), "Cd": range(106, 117), "Ga": range(66, 73),
}  # fmt: skip


def is_label(before: str, number: str = "", after: str = "") -> bool:
    """Whether a number without a unit is a label, citation, list marker or part of a name.

    ``before`` and ``after`` are some characters of the text around the number, in plain notation. Without ``number``,
    only the words before it decide.
    """
    if _is_numbered_word(before) or _MONTH_BEFORE.search(before[-20:]):
        return True
    if not number:
        return False
    digits = number.isdigit()
    if digits and len(number) <= 3 and before[-1:] == "(" and after[:1] == ")":
        return not before[:-1].rstrip()[-1:].isdigit()  # "(3)" is a marker, "8 (3)" a value with its deviation
    if (begins := _LINE_BEGINS.search(before)) and len(number) <= 5:
        if digits and len(number) <= 2 and _LIST_MARK.match(after):
            return True
        if "\n" in begins[0] and _HEADING.match(after):  # "2.1 Materials"
            return True
    if not digits:
        return False
    if after[:1] == ")" and len(number) <= 2 and before[-1:] in " \n" and "(" not in before:
        return True
    if not _CAPITAL_BEFORE.search(before):
        return False
    acronym = _ACRONYM.search(before)
    if acronym and not _MEASURED.fullmatch(acronym[1]):
        return True
    if (name := _FIRST_NAME.search(before)) and not _NO_NAME.fullmatch(name[1]):
        return not _NOUN_FOLLOWS.match(after)
    if (name := _NAME.search(before)) and not _NO_NAME.fullmatch(name[1]):
        return not _NOUN_FOLLOWS.match(after) or len(number) > 3
    return False


def _is_numbered_word(before: str) -> bool:
    match = _WORD_BEFORE.search(before)
    if match is None:
        return False
    word, dot, sign = match.groups(default="")
    return bool(sign) or word.lower() in _LABEL_WORDS or word in _ABBREVIATIONS or word.lower() + dot in _ABBREVIATIONS


def is_year(before: str, number: str, after: str) -> bool:
    """Whether a number without a unit is a year: "in 2010", "(Smith, 2010)"; "2000 cells" is a count."""
    if not _YEAR.fullmatch(number):
        return False
    if _YEAR_BEFORE.search(before):
        return True
    return bool(_RECENT.fullmatch(number)) and not _VALUE_BEFORE.search(before) and not _NOUN_FOLLOWS.match(after)


def is_isotope(number: str, symbol: str) -> bool:
    """Whether the glued text is a nuclide: "13C", "1H"; "25C" is a temperature."""
    return number.isdigit() and int(number) in ISOTOPES.get(symbol, ())
