"""Any text and any bytes: the parser and the reader give rows or reasons. `python -m tests.fuzz` tries a million."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.inputs import ANSWERS, FILES, PAPERS, PIECES, check_answer, check_file, check_paper, damaged, mutated

pytestmark = pytest.mark.long
SETTINGS = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]}
TEXTS = st.one_of(
    st.text(),
    st.lists(st.sampled_from(PIECES), max_size=60).map("".join),
    st.builds(lambda seed, text: mutated(random.Random(seed), text), st.integers(0, 2**32), st.sampled_from(ANSWERS)),
)
CONTENTS = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from(PIECES), max_size=60).map(lambda parts: "".join(parts).encode("utf-8", "surrogatepass")),
    st.builds(
        lambda seed, text: damaged(random.Random(seed), mutated(random.Random(seed), text).encode("utf-8", "replace")),
        st.integers(0, 2**32),
        st.sampled_from([text for texts in FILES.values() for text in texts]),
    ),
)


PAPER_TEXTS = st.one_of(
    TEXTS,
    st.builds(lambda seed, text: mutated(random.Random(seed), text), st.integers(0, 2**32), st.sampled_from(PAPERS)),
)


@settings(max_examples=2500, **SETTINGS)
@given(text=TEXTS, num_qas=st.integers(1, 12))
def test_any_text_is_parsed(text, num_qas):
    check_answer(text, num_qas)


@settings(max_examples=1000, **SETTINGS)
@given(text=PAPER_TEXTS)
def test_any_text_of_a_paper_is_measured(text):
    check_paper(text)


@settings(max_examples=1500, **SETTINGS)
@given(content=CONTENTS, ending=st.sampled_from(sorted(FILES)))
def test_any_file_is_read(tmp_path, content, ending):
    check_file(tmp_path / f"file{ending}", content)
