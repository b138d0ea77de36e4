"""Numbers of answers in papers, and questions that stand alone."""

import pytest

from qaray.metrics.grounding import is_in_paper, mentions, overlap, paper_reference, quantities


def found(answer, paper):
    known = quantities(paper)
    return [is_in_paper(number, known) for number in mentions(answer)]


@pytest.mark.parametrize(
    ("answer", "paper"),
    [
        ("1,000 cells", "about 1000 cells"),
        ("1000 cells", "about 1,000 cells"),
        ("2 × 10^-3 mol/L", "a concentration of 2.0 × 10−3 mol L−1"),
        ("0.002 mol/L", "a concentration of 2.0 x 10-3 mol L-1"),
        ("10^-3 M", "10−3 M"),
        ("10⁻³ M", "10-3 M"),
        ("1.6 × 10⁵ cells", "1.6e5 cells"),
        ("5%", "5 %"),
        ("5 %", "5%"),
        ("5–10 nm", "between 5 and 10 nm"),
        ("10 nm", "5–10 nm"),
        ("5 nm", "5–10 nm"),
        ("20 °C", "from 20°C up"),
        ("-80 °C", "stored at −80 °C"),
        ("0.50 g", "0.5 g"),
        ("3 mL", "3 ml"),
        ("12 µg", "12 μg"),
        ("300 K", "T/K: 300, 310, 320"),
        ("100 mg/L", "100 mg L−1"),
    ],
)
def test_formats_that_are_the_same(answer, paper):
    assert found(answer, paper) == [True] * len(mentions(answer))
    assert mentions(answer)


@pytest.mark.parametrize(
    ("answer", "paper"),
    [
        ("5%", "15%"),
        ("5 mg", "5 g"),
        ("0.02 mol/L", "0.002 mol/L"),
        ("1000", "10000"),
        ("7.4", "7.45"),
        ("10^-3 M", "10^-4 M"),
        ("2 × 10^3", "2 × 10^-3"),
        ("-5 °C", "5 °C"),
        ("42", ""),
    ],
)
def test_numbers_that_are_not_there(answer, paper):
    assert found(answer, paper) == [False]


def test_digits_in_names_are_no_numbers():
    assert mentions("CO2, H2O, sp3 carbon, PM2.5, Fe3+ and SmB6") == []
    assert [m.text for m in mentions("pH 7.4 in 0.1 M NaCl, n = 3")] == ["7.4", "0.1 M", "3"]


def test_both_ends_of_a_range_must_be_there():
    assert found("5–10 nm", "5 to 8 nm") == [False]


@pytest.mark.parametrize(
    "question",
    [
        "What did this study find?",
        "What does the paper say about iron?",
        "How did the authors measure it?",
        "What is shown in Figure 3?",
        "What does Table 2 list?",
        "Which values are given in Fig. 4b?",
        "As shown above, what follows?",
        "What is the aim of the present work?",
        "How were rats treated in the study?",
        "What is the role of the aforementioned enzyme?",
    ],
)
def test_questions_that_lean_on_their_paper(question):
    assert paper_reference(question)


@pytest.mark.parametrize(
    "question",
    [
        "What is the melting point of iron at 1 bar?",
        "How is the study of proteins by NMR limited?",
        "What are paper-based sensors made of?",
        "How does filter paper chromatography separate dyes?",
        "What does the periodic table order elements by?",
    ],
)
def test_questions_that_stand_alone(question):
    assert paper_reference(question) is None


def test_overlap():
    assert overlap("Iron melts at high temperature", "The temperature at which iron melts is high") == 1
    assert overlap("Iron melts", "Copper conducts") == 0
    assert overlap("of the and", "x") is None
    assert overlap("", "x") is None
