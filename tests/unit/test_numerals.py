"""Numerals: every reading of a number, and where it ends."""

import re

import pytest

from qaray.metrics.numbers.numerals import match_numeral, values_of


def numeral(text):
    """(readings, rest) of the numeral that has a text's first digit, or that the text begins with."""
    digit = re.search(r"\d", text)
    match = match_numeral(text, digit.start() if digit else 0)
    found = values_of(match) if match else None
    return found and (" | ".join(" & ".join(map(str, reading)) for reading in found[0]), text[found[1] :])


@pytest.mark.parametrize(
    ("text", "readings"),
    [
        ("8", "8"),
        ("8.25", "8.25"),
        (".25", "0.25"),
        ("4,300", "4300 | 4.300"),
        ("0,300", "0.300"),
        ("4,30", "4.30 | 4 & 30"),
        ("4321,300", "4321.300 | 4321 & 300"),
        ("4,300,250", "4300250 | 4 & 300 & 250"),
        ("0,300,250", "0 & 300 & 250"),
        ("4,30,250", "430250 | 4 & 30 & 250"),
        ("4,30,25", "4 & 30 & 25"),
        ("4,3,250", "4 & 3 & 250"),
        ("4.300.250", "4300250"),
        ("4 300", "4300 | 4 & 300"),
        ("4 300.5", "4300.5"),
        ("4'300", "4300"),
        ("4'300'250", "4300250"),
        ("4,300.5", "4300.5"),
        ("4.300,5", "4300.5"),
        ("4.3,5.25", "4.3 & 5.25"),
        ("4,3.5,25", "4 & 3.5 & 25"),
        ("4,30.5", "4 & 30.5"),
        ("4.300,250.5", "4.300 & 250.5"),
        ("4·5", "4.5 | 4 & 5"),
        ("4·5·6", "4 & 5 & 6"),
        ("-4", "-4"),
        ("- 4", "-4"),
        ("+4", "4"),
        ("+/-4", "4"),
        ("Minus 4", "-4"),
        ("negative 4", "-4"),
        ("-4,5", "-4.5 | -4 & 5"),
        ("4 × 10^-3", "0.004"),
        ("4 × 10 -3", "0.004"),
        ("4 × 10 - 3", "0.004"),
        ("4e3", "4E+3"),
        ("4,5 × 10^3", "4.5E+3 | 4 & 5E+3"),
        ("4·10^3", "4E+3"),
        ("4 × 106", "4E+6 | 4 & 106"),
        ("4 × 10 6", "4E+6 | 4 & 10"),
        ("10^8", "1E+8"),
        ("10^-8", "1E-8"),
        ("10^300", "1E+99"),
        ("10^-300", "1E-99"),
        ("12^1", "12"),
        ("12^2", "12 | 144"),
        ("12^6", "12 | 2985984"),
        ("12^7", "12"),
        ("999999^2", "999999 | 999998000001"),
        ("1000000^2", "1000000"),
        ("103", "103 | 1E+3"),
        ("1015", "1015 | 1E+15"),
        ("102", "102"),
        ("10-7", "1E-7 | 10 & 7"),
        ("10 -7", "1E-7 | 10 & 7 | 10 & -7"),
        ("10-30", "1E-30 | 10 & 30"),
        ("10-31", "10 & 31"),
        ("4 million", "4000000"),
        ("-4 million", "-4000000"),
        ("4,5 Billion", "4500000000.0 | 4 & 5000000000"),
        ("103 million", "103000000 | 1.000000E+9"),
        ("10^3 million", "1.000000E+9"),
        ("4e3 million", "4.000000E+9"),
        ("4 dozen", "48"),
        ("4e99", "4E+99"),
        ("4e-99", "4E-99"),
        ("4 × 10^3 thousand", "4.000E+6"),
        ("eleven", "11"),
        ("Thirty", "30"),
        ("sixty-four", "64"),
        ("sixty four", "64"),
        ("a thousand", "1000"),
        ("a\nthousand", "1000"),
        ("nine hundred thousand", "900000"),
        ("Twice", "2"),
        ("thrice", "3"),
        ("half an hour", "0.5"),
    ],
)
def test_readings_of_a_numeral(text, readings):
    shown, rest = numeral(text)
    assert shown == readings
    assert rest in ("", " an hour")


@pytest.mark.parametrize(
    ("text", "readings", "rest"),
    [
        ("4 30", "4", " 30"),
        ("4 3000", "4", " 3000"),
        ("4 × 102.5", "4", " × 102.5"),
        ("10-7%", "10", "-7%"),
        ("10-7.5", "10", "-7.5"),
        ("10 million-7", "10000000", "-7"),
        ("4.25(5) mg", "4.25", " mg"),
        ("4'3", "4", "'3"),
        ("twenty-fifth", "20", "-fifth"),
        ("sixfold", "6", "fold"),
        ("5 milli", "5", " milli"),
        ("5 thouſand", "5", " thouſand"),  # without regard to case, "ſ" is an s
        ("5 mıllion", "5", " mıllion"),
    ],
)
def test_where_a_numeral_ends(text, readings, rest):
    assert numeral(text) == (readings, rest)


@pytest.mark.parametrize("text", ["9" * 41, "1" + ",234" * 40, "4e100", "4e-100", "1.2.3", "1.2.3,4.5.6"])
def test_digits_of_no_quantity(text):
    assert numeral(text) is None


def test_as_many_digits_as_a_quantity_may_have():
    assert numeral("9" * 40) == ("9" * 40, "")
    assert numeral("1" + ",234" * 39)[0].startswith("1234234")
