"""Sentence splitting of scientific text: nupunkt (Punkt with pre-trained abbreviations), then corrections.

nupunkt knows most abbreviations, but takes thousands of ordinary words for some ("low", "cancer"), and knows neither
citations after the full stop nor headings. ``tests/unit/test_sentences.py`` has an example of each correction.
"""

from __future__ import annotations

import re
from collections.abc import Iterator


def _words(text: str) -> frozenset[str]:  # pragma: no mutate block (at import)
    return frozenset(text.split())


# Abbreviations of four letters or more. Any other lower-case word ends a sentence before a capital.
_ABBREVIATIONS = _words(
    "acad anhyd appl approx assoc avgs biol calc calcd chap chem coeff conc concn cont corr decomp dept equiv eqns "
    "exptl figs incl inst misc natl obsd orig phys proc prof publ recryst refs resp satd sect soln solns spec subsp "
    "suppl tabs temp theor transl univ unpubl vols"
)
# Abbreviations before a name or a number: they never end a sentence.
_BEFORE_A_NAME = _words(
    "anhyd approx c.f ca calcd cf chap conc cv e.g eq eqn eqns eqs fig figs i.e m.p b.p pv ref refs sect ssp subsp "
    "suppl tab tabs var viz vs wt"
)
_BEFORE_A_NUMBER = _words("art ch no nos nr p pp sec ver vol vols")
# Abbreviations that may end a sentence; it depends on the next word.
_AFTER_A_NAME = _words("avg co corp equiv i.d inc ltd max mequiv min o.d r.s.d resp s.e.m sp spp")
_UNITS = _words(
    "A C Da F GPa Gy H Hz J K L M MHz MPa N Pa S Sv T V W a.m atm bar cm d day days dm eq equiv eV fmol g h hr hrs kDa "
    "kHz kJ kPa kV kW kcal kg km l m mA mL mM mV mW mbar mg mi min mins ml mm mmol mol months ms nA nM ng nm nmol p.m "
    "pg pm pmol ppb ppm rpm s sec secs wk wks y yr yrs µA µL µM µV µg µl µm µmol μA μL μM μV μg μl μm μmol Å Ω"
)
# Nouns whose name is a letter: "vitamin B. The dose …", where nupunkt sees an initial.
_NAMED_BY_LETTER = _words(
    "antigen appendix band batch box buffer case chain chromosome class coenzyme compound curve cyclin cytochrome "
    "domain electrode enzyme factor figure form fraction grade group hepatitis immunoglobulin influenza isomer kinase "
    "lamin layer line method mixture mode model option panel part peak phase plant plasmid plot point procedure "
    "protein region ring route sample scheme section series set site solution stage state station step strain subunit "
    "table type vitamin zone"
)
_FIRST_WORDS = _words(
    "A After All Also Although Among An And Another Any As At Because Before Both But By Each For From Further "
    "Furthermore Hence Here How However If In Indeed It Its Many Moreover Most Nevertheless No None Nor Not On Once "
    "One Only Other Our Several Similarly Since So Some Such That The Their Then There Thereafter Therefore These "
    "They This Those Though Thus To Two Under Unlike Upon We What When Where Whereas Which While With Yet"
)
_MONTHS = _words("Apr Aug Dec Feb Jan Jul Jun Mar Nov Oct Sep Sept")
_BEFORE_INITIALS = _words("and as by de for from in of or the to via von with")

_FULL_STOP = re.compile(
    r"\.(?P<cited>\d{1,3}(?:[,–-]\d{1,3}){0,9}(?![\d.])|\[\d[\d,–\s-]{0,40}\]|\(\d[\d,–-]{0,20}\)|[⁰¹²³⁴-⁹][⁰¹²³⁴-⁹,⁻–-]{0,20})?"
    r"""["”’'»)\]]{0,3}(?P<blank>\s+)(?P<bracket>\[\d[\d,–\s-]{0,40}\]\s+)?"""
)
_CONTEXT = 40  # characters before and behind a full stop that decide about it
# A capital, or a name that begins in lower case: mRNA, pH, α-Synuclein, tert-Butanol.
_SENTENCE_START = re.compile(r"""["“‘'«(\[]{0,2}(?:[A-ZÀ-ÖØ-Þ]|[a-z]{1,3}[A-Z]|[a-z]{1,5}-[A-Z]|[α-ωΑ-Ω])""")
_CAPITALISED = re.compile(r"[A-Z][a-z]+\b|A\b")
_LOWER_CASE = re.compile(r"[a-z]{2,}(?![A-Za-z]|-[A-Z])")
_ORDINARY = re.compile(r"(?:^|[^\w.])[a-z]{4,}$")
_HYPHENATED_INITIALS = re.compile(r"[A-Z]\.[-‐–][A-Z]")
_NUMBER_ONLY = re.compile(r"\s*\(?(?:\d{1,3}(?:\.\d{1,3}){0,4}|[IVX]{1,5})[.)]{0,2}\s*")

_HEADING = re.compile(
    r"(?:(?P<number>(?:\d{1,2}(?:\.\d{1,2}){0,4}|[IVX]{1,4})[.)]?)[^\S\n]+)?(?P<words>[A-ZÀ-Þ][^\n.!?;]{1,70})"
)
_MAX_HEADING_LINE, _MAX_HEADING_WORDS = 90, 10
_NOT_IN_HEADINGS = re.compile(
    r"\b(?:am|are|be|been|can|could|did|do|does|had|has|have|is|may|must|was|were|we|will|would)\b"
)
_NOT_HEADING_START = re.compile(r"(?:The|An?|This|These|That|Those|It|They|We|He|She|However|Thus|Then|There)\b")
_NOT_HEADING_END = re.compile(
    r"(?:,|:|-|–|\b(?:an?|and|are|as|at|by|for|from|in|into|its|of|on|or|our|than|that|the|their|to|using|via|with))$"
)
_LINE_END = re.compile(r"""[.!?:]["”’'»)\]]{0,3}\s*$""")
_LINE_START = re.compile(r"""["“‘'«(\[]{0,2}[A-ZÀ-ÖØ-Þ\d]""")

_BLANK_LINE = re.compile(r"\n[^\S\n]*\n\s*")
_BLANKS = re.compile(r"\s*")
_LONG_WORD = re.compile(r"\S{1000}")
_VISIBLE = re.compile(r"\w")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text in order, [S], each with its trailing whitespace: their concatenation is the text.

    A blank line ends a sentence, and so does the end of a heading's line. A part without a letter or digit belongs to
    the previous sentence, a number alone ("2.1.") to what follows. A text without letters and digits is one sentence;
    the empty text has none.
    """
    starts: list[int] = []  # of all sentences but the first
    position = 0
    visible = False  # whether the last sentence has a letter or digit
    for paragraph in _cut(text, [match.end() for match in _BLANK_LINE.finditer(text)]):
        number = False  # the last piece of this paragraph is a number alone
        for piece in _cut(paragraph, _ends(paragraph)):
            has_words = _VISIBLE.search(piece) is not None
            if number or not has_words or not visible:
                visible = visible or has_words
            else:
                starts.append(position)
                visible = has_words
            number = has_words and _NUMBER_ONLY.fullmatch(piece) is not None
            position += len(piece)
    return list(_cut(text, starts))


def _ends(paragraph: str) -> list[int]:
    """The ends of the sentences, including trailing whitespace, in order."""
    ends = {_BLANKS.match(paragraph, end).end() for end in _punkt_ends(paragraph)}  # type: ignore[union-attr]
    for stop in _FULL_STOP.finditer(paragraph):
        bare = stop.end("blank")
        is_end = _ends_sentence(paragraph, stop)
        if is_end is None:
            is_end = bare in ends
        ends.difference_update((stop.start() + 1, bare, stop.end()))
        if is_end:
            cited = stop["bracket"] and _SENTENCE_START.match(paragraph, stop.end())
            ends.add(stop.end() if cited else bare)
    ends.update(_heading_ends(paragraph))
    return sorted(ends)


def _punkt_ends(paragraph: str) -> Iterator[int]:
    """The ends of nupunkt's sentences. It takes the square of a word's length: a long word is given to it in parts."""
    import nupunkt

    cuts = [match.end() for match in _LONG_WORD.finditer(paragraph)]
    start = 0
    for part in _cut(paragraph, cuts):
        for _, end in nupunkt.sent_spans(part):
            if not cuts or (end < len(part) and (part[end].isspace() or part[end - 1].isspace())):  # not within a word
                yield start + end
        start += len(part)
    yield len(paragraph)


def _ends_sentence(text: str, stop: re.Match[str]) -> bool | None:
    """Whether a full stop ends its sentence; None leaves it to nupunkt."""
    before = text[max(0, stop.start() - _CONTEXT) : stop.start()].split()
    word = before[-1].lstrip("([{\"'“‘/") if before else ""
    if not word or before[-1][-1] != text[stop.start() - 1]:
        return None
    starts = _SENTENCE_START.match(text, stop.end()) is not None
    if (starts or stop["bracket"]) and not stop["cited"] and word not in _ABBREVIATIONS and _ORDINARY.search(word):
        return True
    unless_it_goes_on = False if _LOWER_CASE.match(text, stop.end()) or text.startswith("%", stop.end()) else None
    previous = before[-2] if len(before) > 1 else ""
    capitalised = _CAPITALISED.match(text, stop.end())
    first_word = capitalised is not None and capitalised[0] in _FIRST_WORDS
    abbreviation = word.lower()
    if stop["cited"]:
        part_of_name = len(word) < 2 or word[-1].isdigit() or "/" in word or ":" in word
        part_of_name = part_of_name or abbreviation in _BEFORE_A_NAME or abbreviation in _BEFORE_A_NUMBER
        return True if starts and not part_of_name else None
    if (word in _UNITS and previous[-1:].isdigit()) or (word.lstrip("0123456789.") in _UNITS and word[0].isdigit()):
        return True if capitalised else unless_it_goes_on
    if abbreviation in _BEFORE_A_NAME or _HYPHENATED_INITIALS.search(word):
        return False
    if abbreviation in _AFTER_A_NAME:
        return first_word or (capitalised is not None and abbreviation in ("sp", "spp"))
    if word in _MONTHS and capitalised and previous.islower():
        return True
    if len(word) == 1 and word.isupper():
        named = previous.lower() in _NAMED_BY_LETTER or (
            first_word and previous.islower() and previous not in _BEFORE_INITIALS
        )
        return True if named and capitalised else None
    if word in _ABBREVIATIONS:
        return None if first_word else False
    return None if _ORDINARY.search(word) else unless_it_goes_on


def _heading_ends(paragraph: str) -> Iterator[int]:
    """The ends of the lines that are headings: short, without a verb or full stop, between whole sentences."""
    if "\n" not in paragraph:
        return
    start, begins = 0, True  # begins: the line before ends a sentence
    for line in paragraph.splitlines(keepends=True):
        end = start + len(line)
        heading = begins and len(line) <= _MAX_HEADING_LINE and _is_heading(line.strip())
        if heading and _LINE_START.match(paragraph, end):
            yield end
        if not line.isspace():
            begins = heading or bool(_LINE_END.search(line, max(0, len(line) - 20)))
        start = end


def _is_heading(line: str) -> bool:
    match = _HEADING.fullmatch(line)
    if not match:
        return False
    words = match["words"]
    return (
        len(words.split()) <= _MAX_HEADING_WORDS
        and not _NOT_IN_HEADINGS.search(words)
        and not _NOT_HEADING_END.search(words)
        and (bool(match["number"]) or not _NOT_HEADING_START.match(words))
    )


def _cut(text: str, ends: list[int]) -> Iterator[str]:
    """Splits a text at ``ends``; yields no empty parts."""
    start = 0
    for end in [*ends, len(text)]:
        if end > start:
            yield text[start:end]
            start = end
