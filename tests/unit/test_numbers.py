"""The grammar of numbers and units: what a text's numbers are, and what is none."""

import math
import random

import pytest

from qaray.metrics.grounding import is_in_paper, mentions, quantities
from qaray.metrics.numbers.notation import plain
from qaray.metrics.numbers.unit_text import match_unit
from qaray.metrics.numbers.units import SYMBOLS, WORDS, unit_of
from tests.fuzz.inputs import PIECES


def written(text):
    return [mention.text for mention in mentions(text)]


def value(text):
    """The first reading of a text's only number, without its unit."""
    (mention,) = mentions(text)
    return [float(part[0].value) for part in mention.readings[0]]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("rinsed with 2-butanol and 1,3-dioxolane", []),
        ("2,4-dinitrophenol, N-(3-aminopropyl) and 5'-ATG-3'", []),
        ("IL-8, Bcl-2, SARS-CoV-1, T4 ligase, CYP3A4*22", []),
        ("1H NMR, 13C NMR, 15N and 18F-FDG", []),
        ("BALB/3 mice and line B6", []),
        ("see Fig. 5, Table 3b, Eqs. (2) and (7), Scheme 1", []),
        ("Sections 3.2 and 4.1; refs 8-10; [7]; [2, 9-11]", []),
        ("as shown before^14,15 and later.¹²", []),
        ("strain No. 9027, ATCC 6538, ISO 4287, Tween 80 was used", []),
        ("type 1 diabetes, phase 3, grade 2, vitamin B12", []),
        ("(Okada et al., 1987), in 2014, between 1971 and 1983, the 1960s", []),
        ("on 7 June 2003, June 7, 1999-12-31, 11/12/2004, at 10:30 am", []),
        ("doi:10.1234/x.2001.45, www.site.org/77, CAS 64-17-5", []),
        ("1. Mix them.\n2. Heat them.\n3) Stop.", []),
        ("(1) the first and (2) the second", []),
        ("(2R,3S)-3-hydroxy, 3D models, Fe 3+", []),
        ("one of the two main types", []),
        ("2000 mice", ["2000"]),
        ("in 40 mice, 30 mL", ["40", "30 mL"]),
        ("type 2 error of 5%", ["5%"]),
        ("the 785-nm line", ["785-nm"]),
        ("a 96-well plate", ["96"]),
        ("a sixfold or 6-fold rise", ["sixfold", "6-fold"]),
        ("twice, thirty-one times", ["twice", "thirty-one times"]),
        ("5 to 9 nm", ["5 to 9 nm"]),
        ("4 and 9 nm", ["4", "9 nm"]),
        ("7.0 (SD 2)", ["7.0", "2"]),
        ("pH 6.8", ["6.8"]),
    ],
)
def test_what_is_a_number(text, shown):
    assert written(text) == shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12,500", [12500]),
        ("12 500", [12500]),
        ("12'500", [12500]),
        ("1,20,000", [120000]),
        ("1,250.5", [1250.5]),
        ("1.250,5", [1250.5]),
        ("1.250.000", [1250000]),
        ("0,25", [0.25]),
        ("2,5", [2.5]),
        ("2·5", [2.5]),
        (".75", [0.75]),
        ("-3", [-3]),
        ("minus 3", [-3]),
        ("negative 3", [-3]),
        ("±3", [3]),
        ("4 × 10^-3", [0.004]),
        ("4x10-3", [0.004]),
        ("4 × 10 −3", [0.004]),
        ("4·10⁻³", [0.004]),
        ("4*10**3", [4000]),
        ("4 × 10³", [4000]),
        ("4.0E+003", [4000]),
        ("4e-3", [0.004]),
        ("10⁻³", [0.001]),
        ("10−3", [0.001]),
        ("10 −3", [0.001]),
        ("10^4", [10000]),
        ("$4 \\times 10^{-3}$", [0.004]),
        ("4&times;10<sup>3</sup>", [4000]),
        ("1.5 million", [1.5e6]),
        ("3 billion", [3e9]),
        ("2 trillion", [2e12]),
        ("4 thousand", [4000]),
        ("a hundred", [100]),
        ("two hundred", [200]),
        ("a dozen", [12]),
        ("forty-two", [42]),
        ("nineteen", [19]),
        ("٣", [3]),
        ("４．５", [4.5]),
        ("2-4", [2, 4]),
        ("2 up to 4", [2, 4]),
        ("2~4", [2, 4]),
        ("(2-4) × 10³", [2000, 4000]),
    ],
)
def test_values(text, expected):
    assert value(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "base", "dimension"),
    [
        ("mg", 1e-6, "[mass]^1"),
        ("Kg", 1, "[mass]^1"),
        ("micrograms", 1e-9, "[mass]^1"),
        ("ug", 1e-9, "[mass]^1"),
        ("kilometres", 1000, "[length]^1"),
        ("Å", 1e-10, "[length]^1"),
        ("cm²", 1e-4, "[length]^2"),
        ("square centimeters", 1e-4, "[length]^2"),
        ("cm³", 1e-6, "[length]^3"),
        ("ml", 1e-6, "[length]^3"),
        ("h", 3600, "[time]^1"),
        ("weeks", 604800, "[time]^1"),
        ("mol dm−3", 1000, "[length]^-3 [substance]^1"),
        ("mM", 1, "[length]^-3 [substance]^1"),
        ("millimolar", 1, "[length]^-3 [substance]^1"),
        ("µmol per liter", 1e-3, "[length]^-3 [substance]^1"),
        ("mg/100 mL", 0.01, "[length]^-3 [mass]^1"),
        ("mgL−1", 1e-3, "[length]^-3 [mass]^1"),
        ("m s⁻²", 1, "[length]^1 [time]^-2"),
        ("meters per second squared", 1, "[length]^1 [time]^-2"),
        ("cells/mL", 1e6, "[entity]^1 [length]^-3"),
        ("mA h g−1", 3600, "[current]^1 [mass]^-1 [time]^1"),
        ("mAhg−1", 3600, "[current]^1 [mass]^-1 [time]^1"),
        ("mg/kg/day", 1e-6 / 86400, "[time]^-1 [mass] per [mass]"),
        ("%", 0.01, "[share]^1"),
        ("per cent", 0.01, "[share]^1"),
        ("parts per million", 1e-6, "[share]^1"),
        ("kGy", 1000, "[dose]^1"),
        ("rpm", 1, "[rotation]^1"),
        ("× g", 1, "[gravity]^1"),
    ],
)
def test_units(text, base, dimension):
    unit = match_unit(plain(text), 0)
    assert unit.end == len(plain(text))
    assert unit.readings[0].factor == pytest.approx(base)
    assert unit.readings[0].dimension == dimension


def test_a_solidus_before_a_product_has_two_readings():
    first, second = match_unit("W/m·K", 0).readings
    assert first == match_unit("W/(m·K)", 0).readings[0] == match_unit("W m-1 K-1", 0).readings[0]
    assert second == match_unit("W·K/m", 0).readings[0]


@pytest.mark.parametrize("text", ["in water", "for", "cells", "patients", "at", "am", "a", "mine", "12", "", "-", "/"])
def test_words_that_are_no_units(text):
    assert match_unit(text, 0) is None


def test_every_unit_of_the_table_converts():
    for name in {name for names in SYMBOLS.values() for name in names} | set(WORDS.values()):
        unit = unit_of(((name, 1),), 1.0)
        assert unit.dimension
        assert math.isfinite(unit.factor)


def test_degrees_in_any_spelling():
    spellings = ["25 °C", "25ºC", "25 ˚C", "25∘C", "25 ◦C", "25⁰C", "25 ⁰C", "25℃", "25 oC", "25 degrees Celsius"]
    spellings += [
        "25 deg C",
        "25 ° C",
        "$25^{\\circ}$C",
        "$25\\,^\\circ\\mathrm{C}$",
        "\\SI{25}{\\celsius}",
        "25&deg;C",
    ]
    known = quantities("25 °C")
    assert [text for text in spellings if not is_in_paper(mentions(text)[0], known)] == []
    assert is_in_paper(mentions("90⁰")[0], quantities("an angle of 90°"))


HOSTILE = ["9" * 5000, "1e999999", "10^99999", "9" * 41 + " mg", "5 million " * 50, "1" + ",111" * 999, "&#99999999;"]
HOSTILE += [
    "5" + "⁹" * 999,
    "٣" * 99,
    "\ud800 5",
    "(" * 99 + "5 ± ",
    "5 " + "m/" * 99,
    "1-" * 99,
    "\\SI{5}{" * 9,
    "½ ³ Ⅷ",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_raises(text):
    known = quantities(text)
    assert all(is_in_paper(mention, known) for mention in mentions(text))


def test_no_mixture_raises():
    parts = [
        *PIECES,
        "10",
        "⁻³",
        "^",
        "−",
        "×",
        "e",
        "1,5",
        "°",
        "C",
        "mg",
        "/",
        "per ",
        "±",
        "(",
        ")",
        "[3]",
        "9" * 60,
    ]
    draw = random.Random(5)
    for _ in range(400):
        text = "".join(draw.choices(parts, k=draw.randrange(1, 25)))
        known = quantities(text)
        assert all(is_in_paper(mention, known) for mention in mentions(text)), text
