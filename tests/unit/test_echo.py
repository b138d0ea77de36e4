from qaray.engines.echo import echo_pairs
from tests.conftest import make_paper, shared


def test_pairs_are_questions_and_sentences_of_the_paper():
    text = make_paper(3)["txt"]
    pairs = echo_pairs(text, 3)
    assert len(pairs) == 3
    assert len({pair["Q"] for pair in pairs}) == 3
    assert all(pair["Q"].endswith("?") and pair["A"] in text for pair in pairs)
    assert pairs[0]["Q"] == "What is the melting point of compound 3-0?"
    assert pairs == echo_pairs(text, 3)


def test_text_without_sentences_gives_what_there_is():
    assert echo_pairs("word", 3) == [{"Q": "What is stated about “word”?", "A": "word"}]
    assert echo_pairs("", 3) == []
    assert len(echo_pairs("word " * 1000, 3)) == 1


def test_real_papers_give_all_pairs():
    for paper in shared("papers.json"):
        pairs = echo_pairs(paper["txt"], 10)
        assert len(pairs) == 10
        assert all(len(pair["Q"]) < 200 for pair in pairs)
