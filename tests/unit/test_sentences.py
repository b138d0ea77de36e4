"""Sentences of scientific text: what nupunkt gets right where a regular expression does not, and each correction."""

import random
import re

import nupunkt
import pytest

from qaray.corpus.sentences import split_sentences
from tests.conftest import shared

ONE_SENTENCE = [
    "As shown by Jones et al. (2004), the yield was 3.5% in E. coli at 37 °C.",
    "The value is given in Fig. 3 and in Eq. 4 of Ref. 12.",
    "The pH was ca. 7.4 vs. 7.2, i.e. slightly basic, cf. Table 2.",
    "Approx. 5 g of NaCl (99.9% pure) was added to 2.5 mL of H2O.",
    "The column (4.6 mm i.d. and 250 mm long) was held at 1.5 × 10−3 mol L−1.",
    "Dr. Brown used the compound CuSO4·5H2O at 0.05 M.",
    "The R.S.D. values were below 2.1% for n = 5.",
    "See Figs. 1 and 2, e.g. the band at 1650.5 cm−1.",
]

# One row a line; ¦ marks the beginning of each sentence but the first.
ORDINARY_WORDS = """
The yield was low. ¦Each run took 2 h.
No trace was found. ¦All vials were dry.
It was seen by neutron diffraction. ¦Two peaks split.
He died of cancer. ¦Both groups were alike.
He died of cancer. ¦mRNA fell.
He died of cancer. ¦tert-Butanol fell.
He died of cancer. ¦β-Catenin fell.
Lines bend toward the wall. ¦Their speed falls.
The dye was well-read. ¦Ink was not.
We used approx. Fifty grams and calcd. Values of it. ¦So be it.
A 5% soln. Of salt is no sentence here, nor is anhyd. MgSO4. ¦It dried.
The calc. values, as in exp. work, were small. ¦So be it.
The dye stayed in the soln. ¦The salt did not.
He ran home. ¦then it rained.
It was made of DNA. then it fell. ¦So be it.
It was made of DNA. ¦tert-Butanol fell. ¦siRNA fell.
"""
CITATIONS = """
Others saw it earlier.[3,4] ¦Nobody knew why.
Others saw it earlier.(3) ¦Nobody knew why.
Others saw it earlier.³ ¦Nobody knew why.
Others saw it earlier.¹²,¹³ ¦Nobody knew why.
Others saw it earlier.7,8 ¦Nobody knew why.
Others saw it earlier.7–9 ¦Nobody knew why.
Others saw it earlier (at 5 K).7 ¦Nobody knew why.
Others saw it earlier.[3] and then it was lost. ¦Nobody knew why.
The crack closes. [7] ¦However, steel matters.
The crack closes. ¦[7] showed that steel matters.
As in Fig.7 The lamp is on.
As in vol.7 The lamp is on.
Read a/page.7 The lamp is on.
Read org:page.7 The lamp is on.
We read set A.7 The lamp is on.
The pH was 5.7 The lamp is on.
The code was BAC5.7 The lamp is on.
"""
NUMBERS = """
2.1. Materials were bought from Fluka. ¦They were pure.
The work ended. ¦2.1. Materials were bought from Fluka.
3. Results follow. ¦They are long.
1) Weigh the salt. ¦2) Heat it.
IV. Discussion of errors. ¦It is brief.
The work ended. ¦VIII. Errors of milling are small.
The mean was 5.0. ¦The rest was 4.0.
"""
SPECIES = """
Cultures of Xanthomonas campestris pv. vesicatoria grew. ¦They were yellow.
Brassica oleracea var. capitata was sown. ¦Rows were short.
Triticum aestivum cv. Chinese Spring was sown. ¦Rows were short.
Bacillus sp. BX12 was found. ¦It is rare.
We kept one Bacillus sp. ¦Trees were few.
We counted Festuca spp. ¦Trees were few.
The P. fluorescens strain, S. Typhimurium and B. subtilis grew. ¦All died.
"""
NAMES = """
The code of J.-P. Laurent was used. ¦It is free.
We thank J. K. Rowe, A.-M. Dubois and T. Ito. ¦They helped.
It was shown by E. Fischer. ¦He used sugars.
By A. The name is hidden.
It needs protein kinase C. ¦Binding is weak.
It carries chromosome X. ¦Males differ.
Oranges have vitamin C. ¦The skin holds most.
Vitamin C. ¦The skin holds most.
We then computed it in R. The rest is standard.
This ran well under R. ¦The rest is standard.
It came from Merck Co. Ltd. and Fluka Inc. in Basel. ¦It was pure.
Made by Agilent Technologies, Inc. ¦The lamp was new.
Made in Boston, U.S.A. ¦The lot was new.
"""
UNITS = """
Melting begins at 300 K. ¦Above 310 K it ends.
Shake for 20 min. ¦Next it was cooled.
Shake for 30 s. ¦Next it was cooled.
Shake for 2hr. ¦Next it was cooled.
The dose was 5 mg. ¦Mice were fed.
The dose was 2.5 g. ¦Mice were fed.
5 g. ¦Mice were fed.
The dose was 5 g. ¦A mouse was fed.
It lasted 20yrs. ¦Mice were fed.
We took 2.0 equiv. ¦The base was added.
We took 2.0 equiv. of base. ¦So be it.
It held 5 wt.% Ni and 3 wt. % Fe. ¦Both are metals.
It held 5 wgt. % Ni (anhyd. MgSO4). ¦So be it.
% stood in H2O. ¦It was pure.
The tube had 2 mm i.d. ¦The wall was thin.
Stir at r.t. ¦The oil was kept at r.t. overnight.
Rain fell in Dec. and Jan. 2010. ¦Snow fell on Sept. 5. ¦Hail did not.
Nests were seen from Aug. to Nov. ¦Owls then left.
We met at 5 a.m. ¦Fog was thick.
We met at 5 p.m. on Monday. ¦It was max. 10 K there.
Vials No. 7 and No. B12 broke. ¦The rest held.
"""
BEGINNINGS = """
Growth stopped. ¦mRNA fell and pH rose. ¦pH was 5.
Growth stopped. ¦β-Catenin rose. ¦tert-Butanol did not.
Values differ, i.e. pH was low vs. mRNA levels. ¦So be it.
The run failed.The next one began. ¦The last one worked.
People speak of “a glass floor.” ¦None exists.
People ask “why?” ¦Nobody knows.
It is toxic etc. ¦The limit is low.
(See Fig. 3.) ¦So it is.
See www.site.org. ¦It is free.
"""
HEADINGS = [
    ("Methods\n", "Salt was milled. ", "It was weighed."),
    ("2.1. Sampling\n", "Salt was milled."),
    ("3 Results of milling\n", "Milling and sieving\n", "Salt was milled."),
    ("Salt was milled.\n", "Weighing\n", "It was weighed."),
    ("Mean yields of salt and sand from mills in Peru\n", "Salt was milled."),
    ("2. The mill\n", "Salt was milled."),
    ("IV. Errors of milling\n", "Salt was milled."),
    (" \nMethods\n", "Salt was milled."),
    ("salt mills\nSmartline runs.",),
    ("We milled salt of the\nMerck\nSmartline type.",),
    ("Salt was milled and\nwashed with the\nZeiss method.",),
    ("Salt was milled with\nWater from the tap.",),
    ("The mill was of the Knauer\nSmartline type.",),
    ("The Knauer mill\nSmartline runs.",),
    ("Salt may help\nSmartline mills.",),
    ("Milling salt with\nSmartline mills.",),
    ("Milling\nof salt and sand runs.",),
    ("Salt, sand and eleven other minerals milled by one old machine\nSmartline runs.",),
]


def marked(*tables):
    return [line.split("¦") for table in tables for line in table.strip().split("\n")]


def by_regex(text):
    return re.split(r"(?<=[.!?])\s+", text)


@pytest.mark.parametrize("text", ONE_SENTENCE)
def test_abbreviations_decimals_and_formulas_do_not_split(text):
    assert split_sentences(text) == [text]
    assert split_sentences(f"Water boils. {text} It cools.") == ["Water boils. ", f"{text} ", "It cools."]


def test_a_plain_regular_expression_breaks_most_of_them():
    assert sum(len(by_regex(text)) > 1 for text in ONE_SENTENCE) >= 7


@pytest.mark.parametrize(
    "parts",
    [
        ["It melts at 25 °C. ", "The pH was not measured."],
        ["The yield was 3.5%. ", "We used 2.0 mg/mL."],
        ["Is it stable? ", "Yes."],
        *marked(ORDINARY_WORDS, CITATIONS, NUMBERS, SPECIES, NAMES, UNITS, BEGINNINGS),
        *HEADINGS,
    ],
)
def test_sentences(parts):
    assert split_sentences("".join(parts)) == list(parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        (" \n ", [" \n "]),
        ("...", ["..."]),
        (". A", [". A"]),
        ("One.\n\n—\n\nTwo.", ["One.\n\n—\n\n", "Two."]),
        ("Title\n\n2. Methods\n\nWe used it.", ["Title\n\n", "2. Methods\n\n", "We used it."]),
        ("\n\n One. — \n", ["\n\n One. — \n"]),
        ("No end", ["No end"]),
        ("2.1.\n\nNo end", ["2.1.\n\n", "No end"]),
        ("日本語。テスト", ["日本語。テスト"]),
    ],
)
def test_the_parts_are_the_text(text, parts):
    assert split_sentences(text) == parts


def test_any_text_is_parted_without_loss():
    pieces = [
        *("ab", "A", "K", "5", ".", "..", "?", "—", "\n", "\t", "(", ")", "”", "[3]", "³", "12", ",", "%", "µ"),
        " ",
        "\n\n",
        "low. ",
        "cf. ",
        "2.1. ",
        "J.-P. ",
    ]
    draw = random.Random(21)
    for _ in range(300):
        text = "".join(draw.choices(pieces, k=draw.randint(0, 40)))
        assert "".join(split_sentences(text)) == text


@pytest.mark.parametrize("unit", [". ", "! ", "1. ", "— ! ", "A\n", "low. A ", "J.-P. ", ".[1] A ", " \n"])
def test_long_repetitions_are_parted_without_loss(unit):
    text = unit * (80_000 // len(unit))
    assert "".join(split_sentences(text)) == text


def test_real_papers_are_parted_without_loss():
    wrong = total = 0
    for paper in shared("papers.json"):
        sentences = split_sentences(paper["txt"])
        assert "".join(sentences) == paper["txt"]
        assert all(re.search(r"\w", sentence) for sentence in sentences)
        total += len(sentences)
        wrong += sum(bool(re.search(r"\b(?:et al|[Ff]igs?|Eqs?|Refs?|i\.e|e\.g|vs|cf|ca)\.\s*$", s)) for s in sentences)
    assert total > 3000
    assert wrong <= 3  # a regular expression: several hundred


def test_a_long_word_is_given_to_nupunkt_in_parts(monkeypatch):
    """nupunkt looks ahead to the end of a word at each of its full stops."""
    words = []
    spans = nupunkt.sent_spans
    monkeypatch.setattr(
        nupunkt, "sent_spans", lambda text: words.append(max(map(len, text.split()), default=0)) or spans(text)
    )
    for long in (".[1]" * 3000, "a.B" * 3000, "x" * 9000, "1." * 5000):
        sentences = ["Tin melts at heat. ", f"The word {long} is long. ", "Lead melts as well."]
        assert split_sentences("".join(sentences)) == sentences
    assert max(words) <= 2000
