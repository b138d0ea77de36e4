"""Numbers of a text with their units: what is one, what is none, and what joins them."""

import random

import pytest

from qaray.metrics.grounding import is_in_paper, mentions, quantities
from qaray.metrics.numbers.unit_text import match_unit
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
        ("minus 3", [-3]),
        ("±3", [3]),
        ("4 × 10^-3", [0.004]),
        ("4x10-3", [0.004]),
        ("4 × 10 −3", [0.004]),
        ("4·10⁻³", [0.004]),
        ("4*10**3", [4000]),
        ("4 × 10³", [4000]),
        ("4.0E+003", [4000]),
        ("10⁻³", [0.001]),
        ("10−3", [0.001]),
        ("10 −3", [0.001]),
        ("$4 \\times 10^{-3}$", [0.004]),
        ("4&times;10<sup>3</sup>", [4000]),
        ("1.5 million", [1.5e6]),
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


SHORT = {
    match_unit(name, 0).readings[0]: name
    for name in ("mg", "mL", "mm", "K", "°C", "s", "h", "day", "mM", "V", "Pa", "%", "°", "A", "S", "B")
}


def read(text):
    """The mentions of a text with their readings: "5mg" a quantity, "/" alternatives, "&" several numbers of one."""
    return [
        f"{mention.text}: "
        + " | ".join(" & ".join("/".join(map(shortly, part)) for part in reading) for reading in mention.readings)
        for mention in mentions(text)
    ]


def shortly(quantity):
    return f"{quantity.value}{SHORT.get(quantity.unit, '?') if quantity.unit else ''}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        # joined numbers
        ("4, 5 and 6 mL", ["4: 4mL", "5: 5mL", "6 mL: 6mL"]),
        ("4 or 6 mL", ["4: 4mL", "6 mL: 6mL"]),
        ("4 vs. 6 mL", ["4: 4mL", "6 mL: 6mL"]),
        ("4; 5; 6 mL", ["4: 4mL", "5: 5mL", "6 mL: 6mL"]),
        ("4, 6 mL", ["4: 4mL/4", "6 mL: 6mL"]),
        ("4, and 6 mL", ["4: 4mL", "6 mL: 6mL"]),
        ("4/6 mL", ["4: 4mL/4", "6 mL: 6mL"]),
        ("4 mL and 6", ["4 mL: 4mL", "6: 6"]),
        ("4,6 mL", ["4,6 mL: 4.6mL | 4mL/4 & 6mL"]),
        ("4-6 mL", ["4-6 mL: 4mL & 6mL"]),
        ("4--6 mL", ["4-6 mL: 4mL & 6mL"]),
        ("4 °C-6", ["4 °C-6: 4°C & 6°C"]),
        ("-4 up to 6 °C", ["-4 up to 6 °C: -4°C & 6°C"]),
        ("−4–−6 °C", ["-4--6 °C: -4°C & -6°C"]),
        ("4 ± 6 mL", ["4: 4mL", "6 mL: 6mL"]),
        ("4 mL ± 6", ["4 mL: 4mL", "6: 6mL"]),
        ("±4 V", ["±4 V: 4V/-4V"]),
        ("+/-4 V", ["+/-4 V: 4V/-4V"]),
        ("±4", ["±4: 4/-4"]),
        ("10-3 s", ["10-3 s: 0.001s | 10s/10 & 3s"]),
        ("20°-30 °C", ["20°-30 °C: 20°/20°C & 30°C"]),
        ("20 s-30 °C", ["20 s-30 °C: 20s & 30°C"]),
        ("20°, 30 °C", ["20°: 20°", "30 °C: 30°C"]),
        ("2.46(5) mM", ["2.46(5) mM: 2.46mM", "2.46(5) mM: 0.05mM"]),
        ("2.46(5) and 8 mM", ["2.46(5): 2.46mM", "2.46(5): 0.05mM", "8 mM: 8mM"]),
        ("2.46(5) × 10^2 Pa", ["2.46(5) × 10^2 Pa: 246Pa", "2.46(5) × 10^2 Pa: 5Pa"]),
        ("46(5) mM", ["46(5) mM: 46mM"]),
        ("5-20 × 10^2 Pa", ["5-20 × 10^2 Pa: 5Pa & 2.0E+3Pa | 5E+2Pa & 2.0E+3Pa"]),
        ("5-20 × 10 -2 Pa", ["5-20 × 10 -2 Pa: 5Pa & 0.20Pa | 0.05Pa & 0.20Pa"]),
        ("5 × 10^2-20 × 10^2 Pa", ["5 × 10^2-20 × 10^2 Pa: 5E+2Pa & 2.0E+3Pa"]),
        ("(5-20) × 10^2 Pa", ["5-20) × 10^2 Pa: 5E+2Pa & 2.0E+3Pa"]),
        ("( 5-20 ) mM", ["5-20 ) mM: 5mM & 20mM"]),
        ("(5, 6 and 20) × 10^2", ["5: 5E+2", "6: 6E+2", "20) × 10^2: 2.0E+3"]),
        ("(5-20) mice, 8 mL", ["5-20: 5 & 20", "8 mL: 8mL"]),
        ("(5 s-20) mM", ["5 s-20) mM: 5s & 20mM"]),
        ("5 (±2) mM", ["5: 5mM", "2) mM: 2mM"]),
        ("(5-20) × 10^100 Pa", ["5-20: 5 & 20", "10^100 Pa: 1E+99Pa"]),
        ("5-20) mM", ["5-20: 5 & 20"]),
        # extents and counts
        ("3 × 4 mm", ["3: 3mm/3", "4 mm: 4mm"]),
        ("3 by 4 × 5 mm", ["3: 3mm/3", "4: 4mm/4", "5 mm: 5mm"]),
        ("3 × 40 mL", ["3: 3", "40 mL: 40mL"]),
        ("640x480", ["640: 640", "480: 480"]),
        # heads
        ("T/K: 300, 310", ["300: 300K", "310: 310K"]),
        ("temperature in K: 300", ["300: 300K"]),
        ("temperature in K 300", ["300: 300"]),
        ("temperature [K] 300 5 mg 20", ["300: 300K", "5 mg: 5mg", "20: 20"]),
        ("volume, mL: 5 10", ["5: 5mL", "10: 10mL"]),
        ("heads (mL x): 5", ["5: 5"]),
        ("(mL) 5", ["5: 5"]),
        ("patient(s) 12, panel (A) 14", ["12: 12", "14: 14"]),
        ("current (A): 12", ["12: 12A"]),
        ("Days 7 and 14", ["7: 7day/7", "14: 14"]),
        ("the 7 day", ["7 day: 7day"]),
        # labels and years in chains
        ("Fig. 2, 5 mg", ["5 mg: 5mg"]),
        ("Fig. 2 and 5 mg", ["5 mg: 5mg"]),
        ("Figs. 2-5, Fig. 2A and Fig. seven", []),
        ("Fig. 2 mg", ["2 mg: 2mg"]),
        ("in 2010, 5 mg", ["5 mg: 5mg"]),
        ("in 2010, 2011 and 2012", []),
        ("seven types, two main and 7 types", ["7: 7"]),
        ("seven mice of two strains", ["seven: 7", "two: 2"]),
        ("one mg, one mouse", ["one mg: 1mg"]),
        ("zero °C, zero mice", ["zero °C: 0°C"]),
        (".5 of 7", [".5: 0.5", "7: 7"]),
        # what follows a number
        ("half an hour, half a day, half a mouse, half the day", ["half an hour: 0.5h", "half a day: 0.5day"]),
        ("5-mg, 5-well, 5-propanol, 5-year-old", ["5-mg: 5mg", "5: 5", "5-year: 5?"]),
        ("5-(a and 6'-A and 7' ends and 8--the and 9-[a and 4-'a", ["7: 7", "8: 8"]),
        ("5a, 6_a, 7x, 8xy, 9é, 4X", ["7: 7", "4: 4"]),
        ("5mgL-1", ["5mgL-1: 5?"]),
        ("for 5 h cells, 5 V cells", ["5 h: 5h", "5: 5"]),
        ("(2R, 3S) of, 3S of", ["3S: 3S"]),
        ("Fe 3+, Na2+ and 3+ of", ["3: 3"]),
        ("the 1990s, 1990 s, 20s", ["1990 s: 1990s", "20s: 20s"]),
        ("13C, 25C, 13 °C", ["25C: 25°C/25?", "13 °C: 13°C"]),
        ("2-C, 19-C, 20-C, 100-C", ["20-C: 20°C/20?", "100-C: 100°C/100?"]),
        ("2 B cells, 2 B, 2B-a", ["2: 2", "2 B: 2B"]),
        ("(2S,3R)-x, (3S)-x, 3S-x, 3 S cm-1", ["3 S cm-1: 3?"]),
        ("3 S; 4S of", ["3 S: 3S", "4S: 4S"]),
        ("4,300 spores per plate", ["4,300: 4300 | 4.300"]),
        ("IL-6, C57BL/6, x_5, )-5, 6:5", ["6: 6"]),
        ("B-5", []),
        ("2001-12-31, 5 mg and 2001-12-31", ["5 mg: 5mg"]),
        ("mass in mg = 5", ["5: 5mg"]),
        ("mass, mg | 5", ["5: 5mg"]),
        ("Fig. 2, 5-7 mg, 8", ["5-7 mg: 5mg & 7mg"]),
        ("of 2013, 5 mg", ["5 mg: 5mg"]),
        ("rose from 5 to 2013", ["5: 5"]),
    ],
)
def test_readings_of_mentions(text, shown):
    assert read(text) == shown


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
    "dayſ 5 thouſand",
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
