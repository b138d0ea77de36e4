"""Time against length, for every function that reads foreign text: files, papers, answers, requests.

    ratio lengths_FUNCTION_SHAPE   processor time for twice the length / for the length: 2 is linear, 4 is the square

A shape repeats a piece that a reader may look ahead from or back to. Its length is doubled until one call takes
--seconds; then the smallest of up to three doublings counts, since a step is not growth. A shape that stays faster up
to --longest characters has no ratio. Only ratios above --shown, and the worst of each function, are printed, unless
--all. Exit code 1 if a ratio is above --limit.

    python benchmarks/lengths.py [--functions answer,doi_key] [--shapes newlines] [--seconds 0.1] [--all]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from qaray.asking.grammar import answer_end, no_pairs, parse_answer, question_key
from qaray.asking.parsing.json_pairs import json_pairs
from qaray.asking.parsing.marked import begins_marked
from qaray.asking.parsing.reasoning import answer_text
from qaray.asking.request import Request, default_request
from qaray.asking.templates import Template, WordTokenizer
from qaray.config import ConfigError
from qaray.corpus.doi import doi_key
from qaray.corpus.readers.json_lines import json_lines
from qaray.corpus.readers.json_list import json_values
from qaray.corpus.records import Problem, paired_fields, paper_fields
from qaray.corpus.sentences import split_sentences
from qaray.engines.endings import is_repetitive
from qaray.metrics.grounding import is_in_paper, mentions, overlap, quantities
from qaray.metrics.self_contained import paper_reference
from qaray.schema import FinishReason

LINEAR = 2.3  # a ratio that needs no further doubling
LIMIT_SECONDS = 30  # of processor time: a call that takes longer is counted as infinitely long

# Pieces that are repeated.
PIECES = {
    "newlines": "\n", "carriage_returns": "\r\n", "blanks": " ", "tabs": "\t", "wide_blanks": "\u00a0",
    "blank_lines": " \n", "separators": "\u2028", "zero_width": "\u200b", "nul": "\0", "combining": "\u0301",
    "quotes": '"', "single_quotes": "'", "curly_quotes": "“", "backslashes": "\\", "escapes": '\\"', "slashes": "/",
    "square": "[", "square_ends": "]", "braces": "{", "brace_ends": "}", "round": "(", "round_ends": ")",
    "angle": "<", "angle_ends": ">", "digits": "9", "zeros": "0", "dots": ".", "commas": ",", "colons": ":",
    "semicolons": ";", "dashes": "-", "stars": "*", "hashes": "#", "underscores": "_", "pipes": "|", "backticks": "`",
    "tildes": "~", "percents": "%", "carets": "^", "dollars": "$", "ampersands": "&", "question_marks": "? ",
    "exclamations": "! ", "lower_case": "a", "upper_case": "A", "greek": "α", "chinese": "问", "emoji": "🧪",
    "words": "a ", "capitals": "A. ", "thoughts": "<think>", "thought_ends": "</think>",
    "closed_thoughts": "<think>a</think>\n", "analysis": "analysis", "channels": "<|channel|>analysis<|message|>",
    "finals": "<|channel|>final<|message|>", "bare_finals": "final\n", "assistant_finals": "assistantfinal a",
    "turns": "<|im_start|>", "turn_ends": "<|im_end|>", "ends": "</s>", "instructions": "[INST]",
    "instruction_ends": "[/INST]", "end_lines": "\nEND", "goes_on": "</think> a ", "objects": '{"', "keys": '{"Q": "',
    "values": '{"Q": "a?", "A": "b."}', "broken_objects": '{"a": ,}', "item_list": '[{"Q": "a?", "A": "b."}, ',
    "object_commas": "}, {", "object_lines": "}\n{", "bracket_keys": "{a:", "bracket_quotes": '["',
    "triple_quotes": '"""', "comments": "{/*", "single_keys": "{'a': 'b', ", "curly_keys": "{“a”: ",
    "fences": "```\n", "json_fences": "```json ", "tilde_fences": "~~~\n", "questions": "Q1: a?\n",
    "answers": "A1: b.\n", "pairs": "Q1: a?\nA1: b.\n", "pairs_on_a_line": "Q1: a? A1: b. ", "bare_markers": "Q: A: ",
    "empty_pairs": "Q1:\nA1:\n", "bold_markers": "**Q1:** ", "next_questions": "\nQ4: ",
    "second_questions": "\nQ3: a?", "question_words": "Question ", "markers_alone": "Question\n",
    "headings": "Results\n", "hash_headings": "# a?\n", "numbered_questions": "1. a?\n", "numbers_and_stops": "1. ",
    "bullets": "- a\n", "bold": "**a** ", "bold_lines": "**a?**\n", "rules": "---\n", "arrows": "→ ",
    "fields": "Source: a.\n", "long_fields": "Explanation: a\n", "options": "A. a\nB. b\n",
    "farewells": "I hope this helps\n\n", "tables": "| Q | A |\n", "table_rows": "| a | ", "tags": "<question>",
    "tag_pairs": "<q>a?</q><a>b</a>", "tag_ends": "</answer>", "html": "<p>Q ", "wrapped": "<answer>",
    "keywords": "Keywords: ", "refusals": "Unfortunately, ", "sorry": "I'm ", "unable": "I am a ",
    "user_lines": "User: a?\nAssistant: b\n", "numbers": "1 ", "ranges": "1-", "thousands": "1,000",
    "groups": "1 000 ", "decimals": "1.", "powers": "10^", "times": "3 × 10", "exponents": "1e", "errors": "5 ± ",
    "bracket_errors": "(5 ± ", "uncertain": "1(", "units": "5 mg kg", "unit_powers": "m^-1 ", "unit_slashes": "m/",
    "unit_dots": "m·", "superscripts": "⁻¹", "degrees": "°C ", "tex": "\\frac{", "tex_times": "\\times ",
    "tex_words": "\\mathrm{a}", "subscripts": "_{2}", "lists_of_numbers": "1, 2, ", "percent_numbers": "5% ",
    "minus": "−", "stops": ". A", "stops_and_digits": ".1", "citations": ".[1]", "citation_blanks": ". [1, ",
    "initials": "J. ", "abbreviations": "et al. ", "figures": "Fig. 1 ", "words_and_newlines": "a\n", "dois": "doi:",
    "resolvers": "doi.org/", "percent_dois": "doi.org/%25", "urls": "https://", "entities": "&amp;",
    "entity_starts": "&#a", "in_study": "in this study ", "the_authors": "the authors' ", "capital_words": "The ",
    "slots": "{keywords}", "sections": "[[", "section_slots": "[[ {language} ", "section_ends": "]]",
    "surrogates": "\udcff", "slot_inputs": "{input}", "the_study": "What is the study of the ", "hyphens": "a-",
    "apostrophes": "a's ",
}  # fmt: skip


def counted(line: str) -> Callable[[int], str]:
    """Lines with their number, from 1."""
    return lambda n: "".join(line.format(i) for i in range(1, n // len(line) + 1))


SHAPES: dict[str, Callable[[int], str]] = {
    **{name: lambda n, piece=piece: piece * (n // len(piece)) for name, piece in PIECES.items()},  # type: ignore[misc]
    "nested_lists": lambda n: "[" * (n // 2) + "]" * (n // 2),
    "nested_objects": lambda n: '{"a":' * (n // 6) + "1" + "}" * (n // 6),
    "nested_round": lambda n: "(" * (n // 2) + ")" * (n // 2),
    "stars_then_blanks": lambda n: "*" * (n // 2) + " " * (n // 2),
    "numbered_pairs": counted("Q{0}: a{0}?\nA{0}: b{0}.\n"),
    "numbered_then_answers": lambda n: counted("Q{0}: a{0}?\n")(n // 2) + counted("A{0}: b{0}.\n")(n // 2),
    "numbered_list": counted("{0}. a{0}?\nb{0}\n"),
    "numbered_statements": counted("{0}. a{0}\n"),
    "json_items": lambda n: "[" + counted('{{"Q": "a{0}?", "A": "b{0}."}},')(n)[:-1] + "]",
    "json_keys": lambda n: "{" + counted('"Q{0}": "a{0}?", "A{0}": "b{0}.",')(n)[:-1] + "}",
    "distinct_numbers": counted("{0} mg "),
    "distinct_words": counted("w{0} "),
}


def chunks(text: str, size: int = 1 << 16) -> Iterator[bytes]:
    content = text.encode("utf-8", "surrogateescape")
    return (content[start : start + size] for start in range(0, len(content), size))


def accepted(read: Callable[[Any], Any], value: Any) -> None:
    """Calls a reader that may refuse the value."""
    with contextlib.suppress(Problem, ConfigError):
        read(value)


def within(text: str) -> str:
    return f"Q1: a?\nA1: b{text}x\nQ2: c?\nA2: d."


def paper(**fields: Any) -> dict[str, Any]:
    return {"doi": "10.1/a", "txt": "Iron melts.", **fields}


def grounded(text: str) -> None:
    known = quantities(text)
    for mention in mentions(text):
        is_in_paper(mention, known)


FUNCTIONS: dict[str, Callable[[str], object]] = {
    "json_values": lambda t: sum(1 for _ in json_values(chunks(t))),
    "json_values_after_an_error": lambda t: sum(1 for _ in json_values(chunks('{"a": oops' + t + 'x\n{"a": 1}'))),
    "json_values_in_a_list": lambda t: sum(1 for _ in json_values(chunks('[{"a": oops' + t + 'x}, {"a": 1}]'))),
    "json_values_of_text": lambda t: sum(1 for _ in json_values(chunks(json.dumps([{"txt": t}])))),
    "json_lines": lambda t: sum(1 for _ in json_lines(chunks(t))),
    "json_lines_of_text": lambda t: sum(1 for _ in json_lines(chunks(json.dumps({"txt": t})))),
    "txt": lambda t: accepted(paper_fields, paper(txt=t)),
    "optional_fields": lambda t: accepted(paper_fields, paper(title=[t], abstract=t, **{t: t, t + "x": t})),
    "keywords": lambda t: accepted(paper_fields, paper(keywords=t)),
    "unknown_keys": lambda t: accepted(paper_fields, {t + str(i): [t] for i in range(3)}),
    "given_pairs": lambda t: accepted(paired_fields, paper(**{"Q&A": [{"Q": t, "A": t}, {t: t}]})),
    "doi": lambda t: accepted(paper_fields, paper(doi=t)),
    "doi_key": doi_key,
    "doi_key_after_a_doi": lambda t: doi_key("10.1000/" + t),
    "sentences": split_sentences,
    "sentences_after_a_word": lambda t: split_sentences("Iron melts at 5 K." + t + "x. It does."),
    "answer": lambda t: parse_answer(t, 3),
    "answer_within": lambda t: parse_answer(within(t), 3, FinishReason.LENGTH),
    "answer_unended": lambda t: parse_answer("Q1: a?\nA1: b" + t, 3, FinishReason.LENGTH),
    "answer_in_json": lambda t: parse_answer(json.dumps([{"Q": "a?", "A": "b" + t + "x"}]), 3),
    "answer_in_broken_json": lambda t: parse_answer('[{"Q": "a?", "A": "b' + t + 'x"}]', 3),
    "no_pairs": no_pairs,
    "answer_end": lambda t: answer_end(t, 3),
    "answer_end_within": lambda t: answer_end(within(t), 3),
    "answer_end_at_the_end": lambda t: answer_end(within(t) + "\nQ3: a?\nA3: b.\nQ4:", 3),
    "is_repetitive": lambda t: is_repetitive([], t),
    "answer_text": answer_text,
    "json_pairs": json_pairs,
    "begins_marked": begins_marked,
    "question_key": question_key,
    "mentions": mentions,
    "grounded": grounded,
    "overlap": lambda t: overlap(t, t),
    "paper_reference": paper_reference,
    "paper_reference_after": lambda t: paper_reference("What did the authors of this study find" + t + "x?"),
    "rendered": lambda t: default_request().render(t, [t, t], 3),
    "request": lambda t: accepted(lambda text: Request(text).render("a", ["b"], 3), "{paper}{format}" + t + "x"),
    "request_matches": lambda t: default_request().matches(default_request().render(t, ["a"], 3)),
    "template": lambda t: Template("file", "{instruction}{input}" + t).render(t, t) if "{input}" not in t else None,
    "spans": WordTokenizer().spans,
}


def seconds(work: Callable[[str], object], text: str) -> float:
    """Processor time of one call; infinite above LIMIT_SECONDS."""
    signal.setitimer(signal.ITIMER_PROF, LIMIT_SECONDS)
    begun = time.process_time()
    try:
        work(text)
    except TimeoutError:
        return math.inf
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return time.process_time() - begun


def ratio(work: Callable[[str], object], make: Callable[[int], str], least: float, longest: int) -> float | None:
    """Time for twice the length / for the length, at lengths that take at least ``least`` seconds; None below it.

    The smallest of three doublings: a step, such as a deeper way that begins at some length, is not growth.
    """
    length, before, found = 1 << 10, 0.0, []
    while length <= longest and len(found) < 3:
        took = seconds(work, make(length))
        if before >= least:
            found.append(took / before)
            if found[-1] <= LINEAR or took == math.inf:
                break
        length, before = 2 * length, took
    return min(found, default=None)


def too_long(*_: Any) -> None:
    raise TimeoutError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", default=",".join(FUNCTIONS))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--seconds", type=float, default=0.1, help="of one call, from which a ratio is measured")
    parser.add_argument("--longest", type=int, default=1 << 20, help="characters")
    parser.add_argument("--shown", type=float, default=2.6)
    parser.add_argument("--limit", type=float, default=3.0)
    parser.add_argument("--all", action="store_true", help="print every ratio")
    options = parser.parse_args()
    signal.signal(signal.SIGPROF, too_long)
    for prepare in (grounded, split_sentences, json_pairs):  # they load tables and models, once
        prepare('[{"Q": "5 mg"')
    above = fast = 0
    for function in options.functions.split(","):
        found = []
        for shape in options.shapes.split(","):
            value = ratio(FUNCTIONS[function], SHAPES[shape], options.seconds, options.longest)
            fast += value is None
            if value is not None:
                found.append((value, shape))
                if options.all or value > options.shown:
                    print(f"ratio lengths_{function}_{shape} {value:.2f}", flush=True)
        above += sum(value > options.limit for value, _ in found)
        worst = f"worst {max(found)[0]:.2f}, {max(found)[1]}" if found else "all too fast"
        print(f"{function}: {len(found)} of {len(options.shapes.split(','))} shapes measured, {worst}", flush=True)
    print(f"{above} ratios above {options.limit:g}; {fast} too fast for a ratio at {options.longest:,} characters")
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
