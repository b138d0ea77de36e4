"""Digits that are no quantities."""

import re

import pytest

from qaray.metrics.numbers.labels import identifier_end, is_isotope, is_label, is_year, mask


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://a.org/12 or ftp://b.org/3.", "at ___ or ___"),
        ("www.a.org/7 b", "___ b"),
        ("10.1234/x.5 b, 1.10.1234/x", "___ b, 1.10.1234/x"),
        ("me@x.org 5 @ 7", "me___ 5 @ 7"),
        ("a [7], [2, 9-11], [ 3a; 4b ]", "a ___, ___, ___"),
        ("[3 mg], [3] × 2, [3] m/s", "[3 mg], [3] × 2, [3] m/s"),
        ("word^12 word^2 12^3 .^7-9 )^5 mg^23", "word___ word^2 12^3 .___ )___ mg___"),
        ("word^-1 x^1234", "word^-1 x^1234"),
    ],
)
def test_mask(text, shown):
    masked = mask(text)
    assert len(masked) == len(text)
    assert re.sub("_+", "___", masked) == shown


@pytest.mark.parametrize(
    "text",
    [
        "2001-12-31", "50-00-0", "978-0-306-40615-7", "3/12/2001", "1.2.3", "3.2.1.17", "9:45 am", "23:59:59 p.m.",
        "9 May", "9th May, 2001", "9 Sept. 2001",
    ],
)  # fmt: skip
def test_identifiers(text):
    assert identifier_end(f"of {text} x", 3) == 3 + len(text)


@pytest.mark.parametrize(
    "text", ["12-3", "1/2", "1.2", "1.234.567", "9:45", "25:10 am", "9 Mays", "9 mg", "1-2-3a", ""]
)
def test_no_identifiers(text):
    assert identifier_end(text, 0) is None


@pytest.mark.parametrize(
    "text",  # the number between two bars
    [
        "x\n|12|. mix", "x\n### |2.1| Methods", "to |12|) b", "Chap. |2|",
        "Fig. |2|", "figures |2|", "Table (|2|", "No. |2|", "strain no. |2|", "#|2|", "§ |2|", "Q|2|",
        "in May |2001|", "May 7, |2001|", "as (|3|) b", "as (|333|) b", "|3|. Mix", "x\n|3|) Mix", "x\n**|3|**. Mix",
        "x\n|2.1| Methods", "x\n|12345| Methods", "to |3|) b", "x\n|3|) b", "ISO |4287|", "to ATCC |6538|",
        "to ATCC-|6538|", "to Tween |20|", "Tween |20| was", "to Tween |2000| mice", "Tween |20|", "end. Tween |20|",
    ],
)  # fmt: skip
def test_labels(text):
    assert is_label(*text.split("|"))


@pytest.mark.parametrize(
    "text",
    [
        "of 8 (|3|) b", "to Tween |200| mice",
        "the |2|", "no |2|", "p |2|", "pre-grade |2|", "may |2|", "a|7|. Mix", "8 (|3|) b", "8 (|3| mg",
        "as (|1234|) b", "as (|3.5|) b", "a |3|. Mix", "x\n|3|.5", "x\n|123|. mix", "x. |2.1| Methods",
        "x\n|2.1| methods", "x\n|123456| Me", "(to |3|) b", "to|3|) b", "to |333|) b", "BMI |25|", "=ISO |9001|",
        "ISO |9.1|", "A |12|", "to Tween |20| mice", "to tween |20|", "to About |20|", "to Nearly |20|",
        "Tween |2000| mice", "About |20|", "x Tween|20|", "|5| mg",
    ],
)  # fmt: skip
def test_no_labels(text):
    assert not is_label(*text.split("|"))


def test_without_a_number_only_the_words_before_decide():
    assert is_label("Fig. ")
    assert is_label("in May ")
    assert not is_label("ISO ")
    assert not is_label("(")


@pytest.mark.parametrize(
    ("text", "year"),
    [
        ("in |1805|", True),
        ("of |1805|", False),
        ("in |1405|", False),
        ("in |2071|", True),
        ("of |2071|", False),
        ("of |2013|", True),
        ("= |2013|", False),
        ("about |2013|", False),
        ("of |2013| mice", False),
        ("of |2013| was", True),
        ("In |2013| mice", True),
        ("(Ito, |1805|)", True),
        ("Ito et al., |1805|", True),
        ("of |20130|", False),
    ],
)
def test_years(text, year):
    assert is_year(*text.split("|")) is year


@pytest.mark.parametrize(
    ("number", "symbol", "isotope"),
    [
        ("13", "C", True),
        ("16", "C", False),
        ("2", "D", True),
        ("18", "F", True),
        ("1.3", "C", False),
        ("13", "X", False),
    ],
)
def test_isotopes(number, symbol, isotope):
    assert is_isotope(number, symbol) is isotope
