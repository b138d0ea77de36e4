"""Plain notation of what Unicode, LaTeX, HTML and PDFs write."""

import pytest

from qaray.metrics.numbers.notation import _Plain, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2ﬁ ％ ㎎ 𝑚 ﹪ ４ ٤", "2fi % mg m % 4 4"),
        ("7 º 7 ˚ 7 ∘C ℃ ℉ \u212a", "7 ° 7 ° 7 °C °C °F K"),
        ("a\u00adb\u200bc\u00a0d\u2009e", "abc d e"),
        ("2–3 −4 ‒5", "2-3 -4 -5"),
        ("\u03bcm \u2126 \u212b A\u030a", "µm Ω Å Å"),
        ("2∼3 ∓ 4 ⁄ 5 ∙ 6 ’", "2~3 ± 4 / 5 · 6 '"),
        ("cm⁻¹ H₂O x₋₁ 2²", "cm^-1 H2O x-1 2^2"),
        ("30⁰ 30⁰C 30⁰ F 30⁰ x", "30° 30°C 30°F 30° x"),
        ("3 × 10⁰ C", "3 × 10^0 C"),
        ("3·10⁻⁴ K", "3·10^-4 K"),
        ("cm² K", "cm^2 K"),
        ("at − 7, (− 7, 7 − 7, at − x, °C − .7", "at -7, (-7, 7 - 7, at - x, °C -.7"),
        ("3x4 3 x 4 ax4 3xb 3X4", "3×4 3 x 4 ax4 3xb 3×4"),
        ("10--20, 5 mg -- 7 mg, a--b, 10---20", "10-20, 5 mg - 7 mg, a--b, 10---20"),
        ("a  b   c", "a b c"),
        ("3&nbsp;mg &plusmn; &lt;b &bogus; a & b", "3 mg ± <b &bogus; a & b"),
        ("&#176;C &#xb0;C &#xB0;", "°C °C °"),
        ("&#xd7ff;&#xd800;&#xdfff;&#xe000;&#x20000;", "\ud7ff \ue000\U00020000"),
        ("m<sup>2</sup> <SUP> -1 </SUP> H<sub>2</sub>O <b>3</b>", "m^2 ^-1 H2O 3"),
        ("<sub>3</sub>&deg;", "3°"),
        ("m</sup> 5", "m 5"),
        ("3 &micro;m", "3 µm"),
        ("$3.5 \\times 10^{-2}$", "3.5 ×10^-2"),
        ("10^{ -3 } 10^{−3} x_a^{2}", "10^-3 10^-3 x_a^2"),
        ("1{,}500", "1,500"),
        ("US$40 and $40$", "US 40 and 40"),
        ("3\\,mg 3\\;mg 3\\ mg 3\\!mg \\% \\$", "3 mg 3 mg 3 mg 3mg % "),
        ("3~\\AA", "3 Å"),
        ("3~m", "3~m"),
        ("3^{\\circ}C 3^\\circ C 3^ \\circ", "3°C 3°C 3°"),
        ("\\frac{3}{4} \\dfrac{x}{s}", "3/4 x/s"),
        ("\\SI{3}{\\milli\\gram}", "3 milligram "),
        ("\\qty{3}{\\kilo\\pascal\\per\\micro\\metre}", "3 kilopascal per micrometre "),
        ("\\SIrange{3}{4}{\\celsius}", "3 to 4 °C"),
        ("3 \\micro m, \\mu m, \\unknown{3}", "3 µm, µm, unknown 3"),
        ("\\mathrm{mg}", "mg"),
        ("{} a", "{} a"),
        ("\\SI{3}{m}", "3 m"),
        ("a − 7", "a -7"),
        ("㎀ ！ ｝ 𝐀", "pA ! } A"),
    ],
)
def test_plain_notation(text, shown):
    assert plain(text) == shown


@pytest.mark.parametrize(
    ("char", "shown"),
    [
        ("٤", "4"),
        ("４", "4"),
        ("㎀", "pA"),
        ("㏿", "㏿"),
        ("！", "!"),
        ("｝", "}"),
        ("𝐀", "A"),
        ("﹪", "%"),
        ("ﬁ", "fi"),
        ("½", "½"),
    ],
)
def test_characters_are_looked_up_once(char, shown):
    characters = _Plain()
    assert characters[ord(char)] == shown
    assert dict(characters) == {ord(char): shown}
