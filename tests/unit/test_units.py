"""The table of units, and their grammar."""

import math

import pytest

from qaray.metrics.numbers.notation import plain
from qaray.metrics.numbers.unit_text import match_unit
from qaray.metrics.numbers.units import SYMBOLS, WORDS, unit_of


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


@pytest.mark.parametrize(
    "text",
    [
        "in water",
        "for",
        "cells",
        "patients",
        "at",
        "am",
        "a",
        "mine",
        "12",
        "",
        "-",
        "/",
        "mgL2",
        "mgL^0",
        "JVAK-1",
        "cells.A",
        "cells mL",
        "spores per plate",
    ],
)
def test_words_that_are_no_units(text):
    assert match_unit(text, 0) is None


def test_every_unit_of_the_table_converts():
    for name in {name for names in SYMBOLS.values() for name in names} | set(WORDS.values()):
        unit = unit_of(((name, 1),), 1.0)
        assert unit.dimension
        assert math.isfinite(unit.factor)


def unit(text):
    """(rest, "factor dimension" of each reading) of the unit that a text begins with."""
    match = match_unit(f"5 {text}", 2)
    return text[match.end - 2 :], [f"{each.factor:.4g} {each.dimension} {each.kind}".strip() for each in match.readings]


CONCENTRATION = "[length]^-3 [mass]^1"


@pytest.mark.parametrize(
    ("text", "rest", "readings"),
    [
        # powers
        ("cm^2", "", ["0.0001 [length]^2"]),
        ("cm^(2)", "", ["0.0001 [length]^2"]),
        ("cm**-1", "", ["100 [length]^-1"]),
        ("cm -1", "", ["100 [length]^-1"]),
        ("cm 2", "", ["0.0001 [length]^2"]),
        ("cm 2, and", ", and", ["0.0001 [length]^2"]),
        ("cm 2 .", " .", ["0.0001 [length]^2"]),
        ("cm 3)", ")", ["1e-06 [length]^3"]),
        ("cm 2.5", " 2.5", ["0.01 [length]^1"]),
        ("cm 2 mm", " 2 mm", ["0.01 [length]^1"]),
        ("cm 5,", " 5,", ["0.01 [length]^1"]),
        ("mg 2,", " 2,", ["1e-06 [mass]^1"]),
        ("cm2.5", "2.5", ["0.01 [length]^1"]),
        ("cm-1.5", "-1.5", ["0.01 [length]^1"]),
        ("cm4", "", ["1e-08 [length]^4"]),
        ("cm^5", "^5", ["0.01 [length]^1"]),
        ("cm^1", "", ["0.01 [length]^1"]),
        ("cm^0", "^0", ["0.01 [length]^1"]),
        ("mg^2", "^2", ["1e-06 [mass]^1"]),
        ("mol^-6", "", ["1 [substance]^-6"]),
        ("mol^-7", "^-7", ["1 [substance]^1"]),
        ("K-1", "", ["1 [temperature]^-1"]),
        ("°C-1", "-1", ["1 [temperature]^1"]),
        ("°F-1", "-1", ["0.5556 [temperature]^1"]),
        ("%2", "2", ["0.01 [share]^1"]),
        ("‰^-1", "^-1", ["0.001 [share]^1"]),
        ("°^2", "^2", ["1 [angle]^1"]),
        ("mm-1 cm", "-1 cm", ["0.001 [length]^1"]),
        ("mm-1cm", "-1cm", ["0.001 [length]^1"]),
        ("mm-1 mg", " mg", ["1000 [length]^-1"]),
        ("mm-1 x", " x", ["1000 [length]^-1"]),
        ("mm^-1 cm", " cm", ["1000 [length]^-1"]),
        ("mm-1 cm-1", "", ["1e+05 [length]^-2"]),
        ("square cm", "", ["0.0001 [length]^2"]),
        ("Square cm", "", ["0.0001 [length]^2"]),
        ("cubic cm", "", ["1e-06 [length]^3"]),
        ("m/s Squared", "", ["1 [length]^1 [time]^-2"]),
        ("meters cubed", "", ["1 [length]^3"]),
        # products and quotients
        ("mg / mL", "", [f"1 {CONCENTRATION}"]),
        ("mg PER mL", "", [f"1 {CONCENTRATION}"]),
        ("mg/20 mL", "", [f"0.05 {CONCENTRATION}"]),
        ("mg/0 mL", "", [f"1 {CONCENTRATION}"]),
        ("mg·20 mL", "·20 mL", ["1e-06 [mass]^1"]),
        ("mg.mL-1", "", [f"1 {CONCENTRATION}"]),
        ("mg-mL-1", "", [f"1 {CONCENTRATION}"]),
        ("mg*mL-1", "", [f"1 {CONCENTRATION}"]),
        ("mg mL", " mL", ["1e-06 [mass]^1"]),
        ("mgmL-1", "", [f"1 {CONCENTRATION}"]),
        ("kgm-3", "", [f"1 {CONCENTRATION}"]),
        ("mAcm-2", "", ["10 [current]^1 [length]^-2"]),
        ("Wm-1K-1", "", ["1 [length]^1 [mass]^1 [temperature]^-1 [time]^-3"]),
        ("mAhg-1", "", ["3600 [current]^1 [mass]^-1 [time]^1"]),
        ("cm2L-1", "", ["0.1 [length]^-1"]),
        ("cm2g", "g", ["0.0001 [length]^2"]),
        ("N m", "", ["1000 [equivalent]^1 [length]^-2", "1 [length]^2 [mass]^1 [time]^-2"]),
        ("g m", " m", ["0.001 [mass]^1", "1 [gravity]^1"]),
        ("g/L", "", [f"1 {CONCENTRATION}"]),
        (
            "g/mol·K",
            "",
            ["0.001 [mass]^1 [substance]^-1 [temperature]^-1", "0.001 [mass]^1 [substance]^-1 [temperature]^1"],
        ),
        ("g/(mol·K)", "", ["0.001 [mass]^1 [substance]^-1 [temperature]^-1"]),
        ("g/(mol K) x", " x", ["0.001 [mass]^1 [substance]^-1 [temperature]^-1"]),
        ("g/(mol K)/s", "", ["0.001 [mass]^1 [substance]^-1 [temperature]^-1 [time]^-1"]),
        ("g/mol/K", "", ["0.001 [mass]^1 [substance]^-1 [temperature]^-1"]),
        ("g/mol K-1", "", ["0.001 [mass]^1 [substance]^-1 [temperature]^-1"]),
        ("mL/min A", " A", ["1.667e-08 [length]^3 [time]^-1"]),
        ("mL/A min", "", ["1.667e-08 [current]^-1 [length]^3 [time]^-1", "6e-05 [current]^-1 [length]^3 [time]^1"]),
        ("J/kg/K/s/m/V/A", "/A", ["1 [current]^1 [length]^-1 [mass]^-1 [temperature]^-1"]),
        ("kg/kg", "", ["1 [mass] per [mass]"]),
        ("× g", "", ["1 [gravity]^1"]),
        ("kg per square meter", "", ["1 [length]^-2 [mass]^1"]),
        ("mL/(min A)", "", ["1.667e-08 [current]^-1 [length]^3 [time]^-1"]),
        ("g/(mol/K)", "/K)", ["0.001 [mass]^1 [substance]^-1"]),
        ("Wm-1K", "", ["1 [length]^1 [mass]^1 [temperature]^1 [time]^-3"]),
        # counts
        ("cells/mL", "", ["1e+06 [entity]^1 [length]^-3"]),
        ("cells mL-1", "", ["1e+06 [entity]^1 [length]^-3"]),
        ("cells·mL-1", "", ["1e+06 [entity]^1 [length]^-3"]),
        ("mg/cell", "", ["1e-06 [entity]^-1 [mass]^1"]),
        # several words
        ("degrees Celsius", "", ["1 [temperature]^1"]),
        ("degrees C per min", "", ["0.01667 [temperature]^1 [time]^-1"]),
        ("degrees", "", ["1 [angle]^1", "1 [temperature]^1"]),
        ("Degree", "", ["1 [angle]^1", "1 [temperature]^1"]),
        ("parts per billion", "", ["1e-09 [share]^1"]),
        ("wt. % clay", " clay", ["0.01 [share]^1 mass"]),
        ("% (v/v) x", " x", ["0.01 [share]^1 volume"]),
        ("mol%", "", ["0.01 [share]^1 mole"]),
        ("atomic percent", "", ["0.01 [share]^1 atom"]),
        ("%/h", "", ["2.778e-06 [share]^1 [time]^-1"]),
        ("mm Hg", "", ["133.3 [length]^-1 [mass]^1 [time]^-2"]),
        ("°c", "", ["1 [temperature]^1"]),
        ("Milligrams", "", ["1e-06 [mass]^1"]),
        ("C", "", ["1 [temperature]^1", "1 [current]^1 [time]^1"]),
        ("mT", "", ["0.001 [current]^-1 [mass]^1 [time]^-2"]),
    ],
)
def test_readings_of_a_unit(text, rest, readings):
    assert unit(text) == (rest, readings)
