"""An example {instruction, input, output} as the tokens of its prompt, its answer and EOS, as in LongLoRA."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from operator import itemgetter

from qaray.asking.templates import Template, prompt_ids, with_bos
from qaray.config import FineTuneConfig
from qaray.corpus.records import Problem
from qaray.models.tokenizer import HFTokenizer, load_tokenizer
from qaray.schema import Example, RejectReason

FIELDS = ("instruction", "input", "output")
KEPT_END = 512  # tokens at the end of an input that shortening keeps, because they contain the query


@dataclass(frozen=True)
class Encoder:
    """Tokenizes examples: the prompt as in inference, then the answer and EOS, which carry the loss."""

    template: Template
    tokenizer: HFTokenizer
    eos_id: int
    max_length: int  # tokens
    overlength: str = "truncate"

    def __call__(self, fields: dict[str, str], name: str) -> Example:
        """Tokenizes an example. Raises Problem (over_length) if no answer token fits, or the policy rejects it."""
        instruction, text, answer = (self.template.literal(fields[field], self.tokenizer) for field in FIELDS)
        ids, prompt_tokens = self._encode(instruction, text, answer)
        total = len(ids)
        if total > self.max_length and self.overlength == "reject":
            raise Problem(RejectReason.OVER_LENGTH, f"{total} tokens, the maximum is {self.max_length}")
        if total > self.max_length and self.overlength == "shorten":
            ids, prompt_tokens = self._shortened(instruction, text, answer)
        if prompt_tokens >= self.max_length:
            raise Problem(
                RejectReason.OVER_LENGTH,
                f"the prompt alone has {prompt_tokens} tokens, the maximum is {self.max_length}: "
                "no answer would be left",
            )
        ids = ids[: self.max_length]
        return Example(id=name, input_ids=ids, prompt_tokens=prompt_tokens, truncated_tokens=total - len(ids))

    def _encode(self, instruction: str, text: str, answer: str) -> tuple[list[int], int]:
        """(ids of prompt, answer and EOS, [T]; how many of them are the prompt's), as LongLoRA's fine-tuning has them.

        Prompt and answer are one text: alone, the answer would begin with the blank of a SentencePiece tokenizer. If
        its punctuation merges into the prompt's last token, as in ``](``, that token is the prompt's. They are
        tokenized apart if more of the prompt changes, or if its last blank would take in the answer's first word.
        """
        prompt = self.template.render(instruction, text)
        without_bos, spans = self.tokenizer.encode_with_spans(prompt + answer)
        ids = with_bos(without_bos, self.tokenizer)
        begun = bisect_left(spans, len(prompt), key=itemgetter(0))
        ended = bisect_right(spans, len(prompt), key=itemgetter(1))
        if begun == ended and not prompt[-1].isspace():  # no token holds characters of both: those before are its own
            return [*ids, self.eos_id], begun + len(ids) - len(without_bos)
        own = prompt_ids(prompt, self.tokenizer)
        merged = ids[: len(own)] != own
        if merged and (prompt[-1].isspace() or ids[: len(own) - 1] != own[:-1]):
            ids = [*own, *self.tokenizer.encode(answer)]
        return [*ids, self.eos_id], len(own)

    def _shortened(self, instruction: str, text: str, answer: str) -> tuple[list[int], int]:
        """Like _encode, with the middle of the input removed. Raises Problem if it does not fit."""
        spans = self.tokenizer.spans(text)
        ids, prompt_tokens = self._encode(instruction, " ", answer)
        room = self.max_length - (len(ids) - prompt_tokens)
        end = min(KEPT_END, len(spans) // 2)
        kept = min(len(spans), self.max_length - len(ids)) - end
        while kept > 0:
            cut = text[: spans[kept - 1][1]] + "\n" + text[spans[len(spans) - end][0] :]
            ids, prompt_tokens = self._encode(instruction, cut, answer)
            if len(ids) <= self.max_length:
                return ids, prompt_tokens
            kept -= len(ids) - self.max_length
        raise Problem(RejectReason.OVER_LENGTH, f"only {room} tokens are left for the prompt")


@dataclass(frozen=True)
class EncoderFactory:
    """Builds the run's Encoder in any process."""

    config: FineTuneConfig
    template: Template

    def __call__(self) -> Encoder:
        config = self.config
        tokenizer = load_tokenizer(
            config.model_name_or_path, config.cache_dir, config.trust_remote_code, add_special=True
        )
        eos = tokenizer.hf.eos_token_id
        return Encoder(self.template, tokenizer, eos, config.model_max_length, config.overlength)


def template_for_training(template: Template) -> Template:
    """The template without the answer's opening: in training, the examples define how an answer begins."""
    return replace(template, opening="")
