"""What surrounds the answer in a model's output: reasoning, turn tokens, invisible characters.

Reasoning is written as ``<think>…</think>``, ``[THINK]…[/THINK]``, ``◁think▷…◁/think▷``,
``<|begin_of_thought|>…<|end_of_thought|>``, ``<|START_THINKING|>…<|END_THINKING|>``, as the channels of gpt-oss, and
with the closing tag alone if the prompt has opened it.
"""

from __future__ import annotations

import re

_NAMES = (
    r"(?:(?:chain[ _-]?of[ _-]?)?th(?:ink(?:ing)?|oughts?)(?:[ _-]?fast)?|reason(?:ing|s)?|reflection|analysis|"
    r"scratch[ _-]?pad|(?:inner[ _-])?monologue|plan(?:ning)?|internal)"
)
_LEFT, _RIGHT = r"[<◁]\s?[|｜]?", r"[|｜]?\s?[>▷]"
_OPENS = re.compile(
    rf"{_LEFT}(?:(?:begin|start)[ _-](?:of[ _-])?|\w{{1,12}}[:_])?{_NAMES}(?:\s[^<>\n]{{0,40}})?{_RIGHT}|"
    r"\[(?:THINK(?:ING)?|thinking|THOUGHTS?)\]",
    re.I,
)
_CLOSES = re.compile(
    rf"{_LEFT}(?:/\s?(?:\w{{1,12}}[:_])?|end[ _-](?:of[ _-])?){_NAMES}{_RIGHT}|\[/(?:THINK(?:ING)?|THOUGHTS?)\]", re.I
)
# A tag that is quoted within a sentence ("the </think> tag ends it") is text: the sentence goes on in lower case.
_GOES_ON = re.compile(r"[ \t]*(?:[a-z]{2,}\b(?!\s*[:=(])|[,;.)`'\"’”])")
# gpt-oss: <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…; without its special
# tokens: analysis…assistantfinal…
_FINAL = re.compile(
    r"<\|channel\|>\s*final\b[^<\n]{0,40}<\|message\|>|\bassistant\s?final\s?(?=\S)|(?<=\n)final\s*\n", re.I
)
_CHANNEL = re.compile(r"<\|channel\|?>\s*(?:analysis|commentary|thought)\b", re.I)
_CHANNEL_ENDS = re.compile(r"<\|?(?:end|channel)\|>(?!\s*(?:analysis|commentary|thought)\b)", re.I)
_BARE_CHANNEL = re.compile(r"\s*analysis(?=[A-Z]|\s*\n)")
# Phrases of models without tags: Granite, and Ollama's terminal.
_PHRASES = re.compile(
    r"\A\s*(?:<unused\d+>thought.*?<unused\d+>|here is my thought process:.*?here is my response:|"
    r"thinking\.\.\.[^\S\n]*\n.*?\n[^\S\n]*\.\.\.\s?done thinking\.)",
    re.I | re.S,
)

_TURN_ENDS = re.compile(
    r"<[|｜](?:im_end|eot_id|eom_id|end|endoftext|end_of_text|end▁of▁sentence|return|end_of_solution|END_OF_TURN_TOKEN|"
    r"END_RESPONSE|end_of_turn|eos|user|system|call)[|｜]>|<(?:end_of_turn|eos|turn\|)>(?=\s*(?:\n|\Z|<))|"
    r"<[|｜][\w▁]{2,40}[|｜]>(?=\s*\Z)|</s>(?=\s*(?:\n|\Z|<|\[INST))|<[|｜](?:im_start|start|start_header_id)[|｜]>\s*(?:user|system|tool)\b|"
    r"<start_of_turn>\s*user\b|\[INST\]"
)
_TURN_BEGINS = re.compile(
    r"<[|｜](?:im_start|start|start_header_id)[|｜]>\s*(?:assistant|model)?\s*(?:<[|｜](?:end_header_id|message)[|｜]>)?|"
    r"<[|｜]start_of_role[|｜]>\s*+\w*+\s*+<[|｜]end_of_role[|｜]>|"
    r"<[|｜](?:begin_of_text|begin▁of▁sentence|assistant|Assistant|message|START_RESPONSE|begin_of_solution|"
    r"START_OF_TURN_TOKEN|CHATBOT_TOKEN)[|｜]>|<(?:bos|s|pad)>(?=\s*(?:\n|Q|<|\Z))|"
    r"\[gMASK\]|<sop>|\A\s*<[|｜][\w▁]{2,40}[|｜]>|<start_of_turn>\s*(?:model)?"
)

_ECHOED_PROMPT = re.compile(r"\A\s*(?:<s>\s*)?\[INST\].*?\[/INST\]", re.S)
# Byte-order marks, zero-width blanks, direction marks, soft hyphens. Joiners count as invisible beside ASCII only:
# Persian, Indic scripts and emoji need them.
_INVISIBLE = re.compile(
    "[\ufeff\u200b\u2060\u180e\u200e\u200f\u202a-\u202e\u00ad]|[\u200c\u200d](?=[\x00-\x7f]|$)|(?<=[\x00-\x7f])[\u200c\u200d]"
)


def reasoning_spans(text: str) -> list[tuple[int, int]]:
    """The spans of the reasoning in ``text``, in order. The last one reaches the end if the reasoning is unfinished."""
    final = next(reversed(list(_FINAL.finditer(text))), None)
    if final and (final[0].startswith("<") or _CHANNEL.search(text, 0, final.start()) or _BARE_CHANNEL.match(text)):
        return [(0, final.end())]
    spans: list[tuple[int, int]] = []
    end = 0
    if phrase := _PHRASES.match(text):
        end = phrase.end()
        spans.append((0, end))
    for closed in _CLOSES.finditer(text, end):
        if not _GOES_ON.match(text, closed.end()):
            opened = _OPENS.search(text, end, closed.start())
            spans.append((opened.start() if opened else end, closed.end()))
            end = closed.end()
    while channel := _CHANNEL.search(text, end):
        close = _CHANNEL_ENDS.search(text, channel.end())
        end = close.end() if close else len(text)
        spans.append((channel.start(), end))
    seen = 0  # the end of the tag before: another one in the same line stands within a sentence
    for opened in _OPENS.finditer(text, end):
        newline = text.rfind("\n", seen, opened.start())
        line = text[max(newline + 1, seen) : opened.start()]
        if (newline >= 0 or seen == 0) and not line.strip(" \t*#>`-\ufeff\u200b"):
            return [*spans, (opened.start(), len(text))]
        seen = opened.end()
    return spans


def answer_text(text: str) -> str:
    """The answer in a model's output: without reasoning, turn tokens and what follows them, and invisible characters.

    Line ends become ``\\n``. The empty string if the text ends within reasoning.
    """
    spans = reasoning_spans(text)
    starts, ends = [0, *(end for _, end in spans)], [*(start for start, _ in spans), len(text)]
    text = "\n".join(text[start:end] for start, end in zip(starts, ends, strict=True))
    text = _ECHOED_PROMPT.sub("", text)
    text = _INVISIBLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    start = 0
    for turn in _TURN_ENDS.finditer(text):
        if turn[0].endswith((">", "]")) and _GOES_ON.match(text, turn.end()):
            continue
        if answer := _TURN_BEGINS.sub("", text[start : turn.start()]).strip("\n"):
            return answer
        start = turn.end()
    return _TURN_BEGINS.sub("", text[start:])
