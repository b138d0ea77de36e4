"""Sentences of scientific text: what the library gets right where a plain regular expression does not."""

import re

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
TWO_SENTENCES = [
    ("It melts at 25 °C. ", "The pH was not measured."),
    ("The yield was 3.5%. ", "We used 2.0 mg/mL."),
    ("Is it stable? ", "Yes."),
    ("Heating for 30 min. ", "Then it was cooled."),
    ("It was heated for 2 h. ", "The product was at 300 K."),
]


def by_regex(text):
    return re.split(r"(?<=[.!?])\s+", text)


@pytest.mark.parametrize("text", ONE_SENTENCE)
def test_abbreviations_decimals_and_formulas_do_not_split(text):
    assert split_sentences(text) == [text]
    assert split_sentences(f"Water boils. {text} It cools.") == ["Water boils. ", f"{text} ", "It cools."]


def test_a_plain_regular_expression_breaks_most_of_them():
    assert sum(len(by_regex(text)) > 1 for text in ONE_SENTENCE) >= 7


@pytest.mark.parametrize("parts", TWO_SENTENCES)
def test_ends_of_sentences(parts):
    assert split_sentences("".join(parts)) == list(parts)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        (" \n ", [" \n "]),
        ("...", ["..."]),
        ("Title\n\n2. Methods\n\nWe used it.", ["Title\n\n", "2. Methods\n\n", "We used it."]),
        ("\n\n One. — \n", ["\n\n One. — \n"]),
        ("No end", ["No end"]),
        ("日本語。テスト", ["日本語。テスト"]),
    ],
)
def test_the_parts_are_the_text(text, parts):
    assert split_sentences(text) == parts


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
