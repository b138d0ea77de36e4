"""Units of measurement: the table of symbols and names, and their conversion to base units by pint.

Only names of the table reach pint, never a text. The grammar of units is in ``unit_text``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from math import isfinite
from typing import Any

Factors = tuple[tuple[str, int], ...]  # names of the registry, with their powers

# Units that pint lacks, or would mix up: dimensions of their own, so that 5 % is not the count 0.05 and Gy is not Sv.
DEFINITIONS = """
share = [share]; percent_of = 0.01 share; permille_of = 0.001 share
ppm_of = 1e-6 share; ppb_of = 1e-9 share; ppt_of = 1e-12 share
percent_mass = 0.01 share; percent_volume = 0.01 share; percent_mole = 0.01 share; percent_atom = 0.01 share
revolution_rate = [rotation]; heart_rate = [heart_rate]; frame_rate = [frame_rate]; earth_gravity = [gravity]
angle_degree = [angle]; angle_radian = 57.29577951308232 angle_degree; angle_minute = angle_degree / 60
activity_becquerel = [activity]; activity_curie = 3.7e10 activity_becquerel
dose_gray = [dose]; dose_sievert = [dose_equivalent]; activity_unit = [enzyme_activity]
nucleobase = [nucleobase]; amino_acid = [amino_acid]; data_bit = [data]; data_byte = 8 data_bit
pixel_count = [pixel]; decibel_level = [level]; charge_equivalent = [equivalent]; osmole_amount = [osmole]
normality = charge_equivalent / liter; entity = [entity]; colony = [entity]; decade_step = [decade]
"""

# pint's name (or one of the above) | prefixes | symbols | names in words, without plural
TABLE = """
meter              | k c d m µ n p f     | m              | meter metre
micrometer         |                     |                | micron
angstrom           |                     | Å              | angstrom ångström ångstrom
inch               |                     |                | inch
foot               |                     | ft             | foot
mile               |                     | mi             | mile
parsec             | k M G               | pc             | parsec
light_year         |                     | ly             | light-year
astronomical_unit  |                     | au AU          |
gram               | k K m µ n p f       | g              | gram gramme
gram               |                     | gm             |
microgram          |                     | mcg            |
metric_ton         | k M G               | t              | tonne ton
dalton             | k K M               | Da             | dalton
dalton             |                     | amu u          |
pound              |                     | lb lbs         | pound
ounce              |                     | oz             | ounce
second             | m µ n p f           | s sec secs     | second
minute             |                     | min mins       | minute
hour               |                     | h hr hrs       | hour
day                |                     | d              | day
week               |                     | wk wks         | week
month              |                     | mo             | month
year               | k M G               | yr yrs         | year
year               |                     | y              |
kiloyear           |                     | ka             |
megayear           |                     | Ma             |
gigayear           |                     | Ga             |
liter              | m µ n p d c h f     | L l            | liter litre
cm**3              |                     | cc             |
gallon             |                     | gal            | gallon
hectare            |                     | ha             | hectare
acre               |                     |                | acre
kelvin             | m µ                 | K °K           | kelvin
degC               |                     | °C oC degC C   | celsius
degF               |                     | °F degF F      | fahrenheit
mole               | k m µ n p f         | mol Mol        | mole
molar              | m µ n p f           | M              | molar
normality          | m                   | N              |
charge_equivalent  | m µ                 | Eq eq equiv equivalents |
osmole_amount      | m                   | Osm osm        | osmole
ampere             | k m µ n p f         | A              | ampere amp
coulomb            | m µ n p             | C              | coulomb
volt               | k M m µ n           | V              | volt
ohm                | k M G m µ           | Ω ohm Ohm      | ohm
siemens            | m µ n               | S              | siemens
farad              | m µ n p f           | F              | farad
henry              | m µ n               |                | henry
weber              | m                   | Wb             | weber
tesla              | m µ n               | T              | tesla
gauss              | k m                 | G              | gauss
oersted            | k                   | Oe             | oersted
hertz              | k K M G T m         | Hz             | hertz
newton             | k M m µ n p         | N              | newton
pascal             | k K M G h m µ       | Pa             | pascal
bar                | k m µ               | bar            | bar
atmosphere         |                     | atm            | atmosphere
torr               | m µ                 | Torr torr      | torr
millimeter_Hg      |                     | mmHg           |
centimeter_H2O     |                     | cmH2O          |
psi                |                     | psi            |
joule              | k M G m µ n p f     | J              | joule
electron_volt      | k M G T m µ         | eV             | electronvolt electron-volt
calorie            | k K                 | cal Cal        | calorie
erg                |                     | erg            | erg
ampere*hour        | k m µ               | Ah             | ampere-hour amp-hour
watt*hour          | k M G T m           | Wh             | watt-hour
volt*second        | m                   | Vs             |
meter*kelvin       |                     | mK             |
ohm*centimeter     | k M G m µ           | Ωcm            |
watt               | k M G T m µ n p     | W              | watt
horsepower         |                     | hp             |
poise              | c m                 | P              | poise
stokes             | c                   | St             |
dyne               |                     | dyn            | dyne
debye              |                     | D              | debye
candela            | m                   | cd             | candela
lumen              | k m                 | lm             | lumen
lux                | k                   | lx lux         |
katal              | m µ n               | kat            | katal
barn               | m                   |                | barn
angle_degree       |                     | ° deg          | degree
angle_radian       | m µ n               | rad            | radian
angle_minute       |                     | arcmin         | arcminute
activity_becquerel | k M G T m           | Bq             | becquerel
activity_curie     | k m µ n p           | Ci             | curie
dose_gray          | c m µ k             | Gy             | gray
dose_sievert       | m µ n               | Sv             | sievert
activity_unit      | k m µ n             | U IU           | unit
nucleobase         |                     | bp nt          | base-pair nucleotide
kilonucleobase     |                     | kb kbp         | kilobase
meganucleobase     |                     | Mb Mbp         | megabase
giganucleobase     |                     | Gb Gbp         | gigabase
amino_acid         |                     | aa             |
data_byte          | k K M G T           | B              | byte
data_bit           | k M G               | bit            | bit
pixel_count        | M                   | px             | pixel megapixel
decibel_level      |                     | dB             | decibel
decade_step        |                     | dec            | decade
revolution_rate    | k                   | rpm RPM        | rpm
heart_rate         |                     | bpm            |
frame_rate         |                     | fps            |
earth_gravity      |                     | g xg ×g        |
percent_of         |                     | %              | percent pct
permille_of        |                     | ‰              |
ppm_of             |                     | ppm ppmv ppmw  |
ppb_of             |                     | ppb ppbv       |
ppt_of             |                     | ppt pptv       |
percent_mass       |                     | wt%            |
percent_volume     |                     | vol%           |
percent_mole       |                     | mol%           |
percent_atom       |                     | at%            |
colony             |                     | CFU cfu PFU pfu |
"""
PREFIXES = {
    "T": "tera", "G": "giga", "M": "mega", "k": "kilo", "K": "kilo", "h": "hecto", "d": "deci", "c": "centi",
    "m": "milli", "µ": "micro", "u": "micro", "n": "nano", "p": "pico", "f": "femto",
}  # fmt: skip
# What is counted per something: "10^5 cells/mL" and "10^5 cells per mL" are one unit, "120 cells" is a bare count.
ENTITIES = frozenset(
    noun + ending
    for noun in ("cell", "particle", "molecule", "atom", "ion", "photon", "spore", "count", "event", "cycle", "read")
    for ending in ("", "s")
) | {"copy", "copies"}


def _symbols() -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:  # pragma: no mutate block (at import)
    """(symbol → names of the registry, word in lower case → name of the registry)."""
    symbols: dict[str, tuple[str, ...]] = {}
    words: dict[str, str] = {}
    for line in TABLE.strip().splitlines():
        name, prefixes, own, spelled = (part.strip() for part in line.split("|"))
        for prefix in ("", *prefixes.split(), *("u" for each in prefixes.split() if each == "µ")):
            pint_name = PREFIXES.get(prefix, "") + name
            for symbol in own.split() or ([name[0].upper()] if prefix and name == "henry" else []):
                symbols[prefix + symbol] = (*symbols.get(prefix + symbol, ()), pint_name)
            for word in spelled.split():
                for ending in ("", "s", "es"):
                    words.setdefault(PREFIXES.get(prefix, "") + word + ending, pint_name)
    return symbols, words | {"feet": "foot", "centigrade": "degC"}


SYMBOLS, WORDS = _symbols()


@dataclass(frozen=True)
class Unit:
    """A unit in base units: value · ``factor`` + ``offset``. Values of one ``dimension`` can be compared.

    ``kind`` tells shares by mass, volume or amount apart; it is empty where the text leaves it open.
    """

    dimension: str
    factor: float
    offset: float = 0.0
    kind: str = ""

    def base(self, value: float) -> float:
        """The value in base units."""
        return value * self.factor + self.offset


def unit_names(written: str) -> tuple[str, ...] | None:
    """pint's names of a symbol or a spelled unit with its prefix: several if it is ambiguous, None if it is no unit."""
    if written in SYMBOLS:
        return SYMBOLS[written]
    if written in ENTITIES:
        return ("entity",)
    if written.lower() in ("degree", "degrees"):
        return ("angle_degree", "degC")
    name = WORDS.get(written.lower())
    return None if name is None else (name,)


_DIFFERENCES = {"degC": "kelvin", "degF": "delta_degF"}  # in a product, a degree is a difference


@cache
def _registry() -> Any:
    import pint

    registry: Any = pint.UnitRegistry()
    for line in re.split(r"[;\n]", DEFINITIONS.strip()):
        registry.define(line.strip())
    return registry


@cache
def dimension_of(name: str) -> str:
    """Dimension of a unit of the registry."""
    return str(_registry().get_dimensionality(name))


@lru_cache(maxsize=20_000)
def unit_of(factors: Factors, scale: float) -> Unit | None:
    """The product of the factors · ``scale``; None if it is no positive number of base units.

    A ``dimension`` keeps what cancels out, so that mg/kg is neither a bare number nor mL/L.
    """
    if len(factors) == 1 and factors[0] in (("degC", 1), ("degF", 1)):
        kelvin = [_registry().Quantity(value, factors[0][0]).to("kelvin").magnitude for value in (0.0, 1.0)]
        return Unit("[temperature]^1", kelvin[1] - kelvin[0], kelvin[0])
    if len(factors) > 1 and "earth_gravity" in dict(factors):
        return None  # "g" is centrifugal only alone
    text = " * ".join(f"({_DIFFERENCES.get(name, name)}) ** {power}" for name, power in factors)
    base = _registry().parse_expression(text).to_base_units()
    factor = float(base.magnitude) * scale
    if not isfinite(factor) or factor <= 0:
        return None
    signs: dict[str, set[bool]] = {}
    for name, power in factors:
        signs.setdefault(dimension_of(name), set()).add(power > 0)
    cancelled = [f"{own} per {own}" for own, both in signs.items() if len(both) == 2]
    powers = [f"{name}^{power:g}" for name, power in base.dimensionality.items()]
    dimension = " ".join(sorted(powers) + sorted(cancelled))
    kind = factors[0][0].removeprefix("percent_") if factors[0][0].startswith("percent_") else ""
    return Unit(dimension, factor, kind="" if kind == "of" else kind)
