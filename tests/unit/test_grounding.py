"""Numbers of answers in papers."""

from decimal import Decimal

import pytest

from qaray.evaluate.grounding import _Numbers
from qaray.metrics.grounding import PaperNumbers, content_words, is_in_paper, mentions, overlap, quantities
from qaray.metrics.numbers.mentions import Quantity


def found(answer, paper):
    known = quantities(paper)
    return [is_in_paper(number, known) for number in mentions(answer)]


@pytest.mark.parametrize(
    ("answer", "paper"),
    [
        ("1,000 cells", "about 1000 cells"),
        ("1000 cells", "about 1 000 cells"),
        ("2 × 10^-3 mol/L", "a concentration of 2.0 × 10−3 mol L−1"),
        ("0.002 mol/L", "a concentration of 2.0 x 10-3 mol L-1"),
        ("10⁻³ M", "10 −3 M"),
        ("1.6 × 10⁵ cells", "1.6e5 cells"),
        ("10⁵ CFU/mL", "105 CFU mL−1"),
        ("5%", "5 per cent"),
        ("5–10 nm", "between 5 and 10 nm"),
        ("5 nm", "5–10 nm"),
        ("5 nm", "5 to 10 nm"),
        ("3000 Pa", "(3–6) × 10³ Pa"),
        ("3–6 × 10³ Pa", "3 × 10³ to 6 × 10³ Pa"),
        ("2 µm", "2 µm–1 mm"),
        ("20 °C", "from 20°C up"),
        ("-80 °C", "stored at − 80 °C"),
        ("minus 80 °C", "stored at −80 °C"),
        ("8 mL", "volumes of 4, 8 and 12 mL"),
        ("8 mL", "4-, 8- and 12-mL volumes"),
        ("1.2 mg", "1.2 ± 0.3 mg"),
        ("0.3 mg", "1.2 ± 0.3 mg"),
        ("0.03 mg", "1.22(3) mg"),
        ("1.2 mg", "(1.2 ± 0.3) mg"),
        ("25 °C", "25 (±2) °C"),
        ("7 mm", "7 × 30 mm"),
        ("640 and 480", "640x480"),
        ("washed five times", "washed (5 × 20 mL)"),
        ("20 mL", "washed (5 × 20 mL)"),
        ("310 K", "T/K: 300, 310, 320"),
        ("310 K", "Temperature (K) 300 310 320"),
        ("day 9", "after 9 days"),
        ("ninety mice", "90 mice"),
        ("fourfold", "4-fold"),
        ("half an hour", "30 min"),
        ("100 mg/L", "100 mg L−1"),
        ("0.4 W/mK", "0.4 W m−1 K−1"),
        ("40%", "40 wt.% of clay"),
        ("40 wt%", "40% by weight"),
        ("20 °C", "20°–30 °C"),
        ("3 V", "±3 V"),
        ("-3 V", "±3 V"),
    ],
)
def test_formats_that_are_the_same(answer, paper):
    assert mentions(answer)
    assert found(answer, paper) == [True] * len(mentions(answer))


@pytest.mark.parametrize(
    ("answer", "paper"),
    [
        ("0.5 g", "500 mg"),
        ("500 mg", "0.50 g"),
        ("2 h", "120 min"),
        ("0.1 M", "0.1 mol L−1"),
        ("1 mL", "1 cm³"),
        ("25 °C", "298 K"),
        ("298.15 K", "25 °C"),
        ("37 °C", "98.6 °F"),
        ("1 atm", "101 kPa"),
        ("1 year", "365 days"),
        ("12 months", "1 year"),
        ("1 MPa", "10 bar"),
        ("0.1%", "1000 ppm"),
        ("0 mg", "0 g"),
        ("25 °C", "298.65 K"),  # half of the last place
        ("25.0 °C", "298.20 K"),
        ("50 °C", "323.55 K"),
        ("10 atm", "983 kPa"),  # 3 % of the larger value
        ("983 kPa", "10 atm"),
        ("40 wt%", "40 vol%, 40% and 40 wt%"),
    ],
)
def test_conversions(answer, paper):
    assert found(answer, paper) == [True]


@pytest.mark.parametrize(
    ("answer", "paper"),
    [
        ("5%", "15%"),
        ("5 mg", "5 g"),
        ("5 mg", "5"),
        ("5", "5 mg"),
        ("5 mg", "as in Fig. 5"),
        ("5 mg", "as in [5]"),
        ("5 mg", "see Fig. 5 and 8 mg"),
        ("1996 mg", "in 1996"),
        ("3 mm", "3-hexanol"),
        ("0.02 mol/L", "0.002 mol/L"),
        ("1000", "10000"),
        ("7.4", "7.45"),
        ("10^-3 M", "10^-4 M"),
        ("2 × 10^3", "2 × 10^-3"),
        ("-5 °C", "5 °C"),
        ("5 °C", "−5 °C"),
        ("25 °C", "25 K"),
        ("24 °C", "298 K"),
        ("1 atm", "95 kPa"),
        ("1 year", "300 days"),
        ("0.5 g", "512 mg"),
        ("2 h", "121 min"),
        ("2 kg", "2010000000 µg"),
        ("50 °C", "323.75 K"),
        ("10 atm", "982 kPa"),
        ("5 µm", "5 nm"),
        ("40 wt%", "40 vol%"),
        ("0.05", "5%"),
        ("5 mg/kg", "5 mL/L"),
        ("5 Gy", "5 Sv"),
        ("20 mL", "10, 30 and 40 mL"),
        ("10 mL", "10 mice and 40 mL"),
        ("5 mL", "washed (5 × 20 mL)"),
        ("60 min", "6 min"),
        ("42", ""),
    ],
)
def test_numbers_that_are_not_there(answer, paper):
    assert found(answer, paper) == [False]


def test_both_ends_of_a_range_must_be_there():
    assert found("5–10 nm", "5 to 8 nm") == [False]
    assert found("5–10 nm", "8 to 10 nm") == [False]


def test_has_unit():
    assert [m.has_unit for m in mentions("10, 20 and 30 mL of 5 solutions at pH 7")] == [True, True, True, False, False]


def test_numbers_of_other_papers():
    texts = [["2 mg", "seven"], ["8 kg"], [], ["1 h and 2 h"]]
    numbers = _Numbers([{"pairs": [{"A": answer} for answer in answers]} for answers in texts])
    assert [[number.text for number in numbers.of_others(position)] for position in range(4)] == [
        ["8 kg", "1 h", "2 h"],
        ["1 h", "2 h", "2 mg"],
        ["1 h", "2 h", "2 mg", "8 kg"],
        ["2 mg", "8 kg"],
    ]
    assert [[m.text for m in answer] for answer in numbers.of(0)] == [["2 mg"], ["seven"]]
    many = _Numbers([{"pairs": [{"A": f"7 mg; {n} g; {n} kg; {n} h; {n} s; {n} K"}]} for n in range(30)])
    assert [number.text for number in many.of_others(28)][:6] == ["7 mg", "29 g", "29 kg", "29 h", "0 g", "0 kg"]
    assert len(many.of_others(0)) == 50
    assert _Numbers([{"pairs": [{"A": "5 mg"}]}]).of_others(0) == []


def test_overlap():
    def shared(answer, *sentences):
        return overlap(answer, [content_words(sentence) for sentence in sentences])

    assert shared("Iron melts at high temperature", "The temperature is high", "at which iron melts") == 1
    assert shared("Iron melts", "Copper conducts") == 0
    assert shared("Iron melts") == 0
    assert shared("of the and", "x") is None
    assert shared("", "x") is None
    assert shared("Ti B", "Ti") == 1  # single characters do not count
    assert shared("Ti-6Al, it's", "ti") == 0


def test_values_beyond_floats_are_not_found():
    milligram = mentions("1 mg")[0].readings[0][0][0].unit
    huge = Quantity(Decimal("1e400"), milligram)
    assert huge not in PaperNumbers.of([huge])
