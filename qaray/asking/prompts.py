"""Builds prompts from papers, for both training and inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qaray.asking.budget import Budget
from qaray.asking.request import INSTRUCTION, Request, default_request
from qaray.asking.templates import Template, Tokenizer, prompt_ids
from qaray.config import ConfigError, GenerateConfig
from qaray.schema import Failure, Paper, Prompt, RejectReason


@dataclass(frozen=True)
class PromptBuilder:
    """Builds the prompts of a paper: one, or one per window if ``overlength`` is "split"."""

    template: Template
    tokenizer: Tokenizer
    budget: Budget
    overlength: str = "truncate"
    structured: bool = False  # request the answer as JSON
    request: Request = field(default_factory=default_request)

    @classmethod
    def of(
        cls,
        config: GenerateConfig,
        template: Template,
        tokenizer: Tokenizer,
        seq_len: int,
        request: Request | None = None,
    ) -> PromptBuilder:
        """The builder of a run. Raises ConfigError if fewer than 64 tokens are left for a paper."""
        budget = Budget(seq_len, config.sampling.max_gen_len, config.asking.num_qas)
        builder = cls(
            template,
            tokenizer,
            budget,
            config.asking.overlength,
            config.asking.structured,
            request or default_request(),
        )
        empty = builder._tokens("", [], config.asking.num_qas)
        if budget.longest_prompt < empty + 64:
            raise ConfigError(
                f"seq_len {seq_len} leaves no room for a paper: the prompt without a paper takes {empty} tokens, "
                f"{budget.reserve} are reserved for the output, and a paper needs at least 64. Raise --seq_len (and "
                f"--context_size) to at least {empty + 64 + budget.reserve}, or lower --max_gen_len or --num_qas"
            )
        return builder

    def __call__(self, paper: Paper, shard: str) -> list[Prompt]:
        """The first-attempt prompts of a paper, one per window.

        An over-length paper that cannot be truncated or split gives one row with a failure, so every paper has a row.
        """
        keywords = [self._literal(keyword) for keyword in paper["keywords"]]
        paper = Paper(**{**paper, "txt": self._literal(paper["txt"]), "keywords": keywords})
        whole = self._prompt(paper, shard, 0, self.budget.num_qas, (0, len(paper["txt"])))
        if whole["prompt_tokens"] <= self.budget.longest_prompt:
            return [whole]
        if self.overlength == "skip":
            detail = f"the prompt has {whole['prompt_tokens']} tokens, {self.budget.longest_prompt} fit"
            return [_without_text(whole, Failure.of(RejectReason.OVER_LENGTH, detail))]
        spans = self.tokenizer.spans(paper["txt"])
        room = self.budget.longest_prompt - self._tokens("", paper["keywords"], self.budget.num_qas)
        if room < 16:
            detail = f"the keywords leave {room} tokens for the text"
            return [_without_text(whole, Failure.of(RejectReason.OVER_LENGTH, detail))]
        if self.overlength == "truncate":
            prompt, kept = self._fit(paper, shard, 0, self.budget.num_qas, spans, 0, room)
            return [Prompt(**{**prompt, "truncated_tokens": len(spans) - kept})]
        return self._windows(paper, shard, spans, room)

    def safely(self, paper: Paper, shard: str) -> list[Prompt]:
        """Like calling the builder, but an exception of the tokenizer or the template becomes a row with a failure.

        One such paper does not affect the others.
        """
        try:
            return self(paper, shard)
        except Exception as error:
            empty = Paper(**{**paper, "txt": "", "keywords": []})
            row = self._prompt(empty, shard, 0, self.budget.num_qas, (0, 0))
            return [_without_text(row, Failure.of(RejectReason.ENGINE_ERROR, f"{type(error).__name__}: {error}"))]

    def _windows(self, paper: Paper, shard: str, spans: Sequence[tuple[int, int]], room: int) -> list[Prompt]:
        """Splits the text into windows of nearly equal length and divides the pairs among them, at least one each."""
        count = -(-len(spans) // room)
        while True:
            target = -(-len(spans) // count)
            share = [self.budget.num_qas // count + (w < self.budget.num_qas % count) for w in range(count)]
            prompts, first = [], 0
            for window in range(count):
                prompt, after = self._fit(paper, shard, window, max(1, share[window]), spans, first, target)
                prompts.append(prompt)
                first = after
            if first >= len(spans):
                return [Prompt(**{**p, "windows": count}) for p in prompts]
            count += 1  # a window held fewer tokens than planned: use one more

    def _fit(
        self,
        paper: Paper,
        shard: str,
        window: int,
        num_qas: int,
        spans: Sequence[tuple[int, int]],
        first: int,
        room: int,
    ) -> tuple[Prompt, int]:
        """The prompt for at most ``room`` tokens of the text from token ``first``, and the index of the next token."""
        after = min(first + room, len(spans))
        while True:
            start = spans[first][0] if first else 0
            end = spans[after - 1][1] if after < len(spans) else len(paper["txt"])
            prompt = self._prompt(paper, shard, window, num_qas, (start, end))
            excess = prompt["prompt_tokens"] - self.budget.longest_prompt
            if excess <= 0:
                return prompt, after
            after = max(first + 1, after - excess)  # tokens merge differently at the cut

    def _prompt(self, paper: Paper, shard: str, window: int, num_qas: int, span: tuple[int, int]) -> Prompt:
        start, end = span
        keywords = paper["keywords"]
        request = self.request.render(paper["txt"][start:end], keywords, num_qas, self.structured)
        text = self.template.render(INSTRUCTION, request)
        ids = prompt_ids(text, self.tokenizer)
        prompt_tokens = len(ids) or self.tokenizer.count([text])[0]
        paper_start = text.index(request) + self.request.paper_start(keywords, num_qas, self.structured)
        return Prompt(
            doi=paper["doi"],
            shard=shard,
            row=paper["row"],
            window=window,
            windows=1,
            attempt=1,
            num_qas=num_qas,
            start=start,
            end=end,
            paper_start=paper_start,
            paper_end=paper_start + end - start,
            prompt=text,
            token_ids=ids,
            opening=self.template.opening,
            prompt_tokens=prompt_tokens,
            truncated_tokens=0,
            max_tokens=self.budget.answer_cap(prompt_tokens),
            reason=None,
            detail=None,
        )

    def _literal(self, text: str) -> str:
        return self.template.literal(text, self.tokenizer)

    def _tokens(self, text: str, keywords: Sequence[str], num_qas: int) -> int:
        rendered = self._render(text, keywords, num_qas)
        return len(prompt_ids(rendered, self.tokenizer)) or self.tokenizer.count([rendered])[0]

    def _render(self, text: str, keywords: Sequence[str], num_qas: int) -> str:
        return self.template.render(INSTRUCTION, self.request.render(text, keywords, num_qas, self.structured))

    def text(self, paper: Paper, start: int, end: int, num_qas: int) -> str:
        """The rendered prompt for ``txt[start:end]``, as sent to the engine, without the answer's opening."""
        window = self._literal(paper["txt"])[start:end]
        keywords = [self._literal(keyword) for keyword in paper["keywords"]]
        return self._render(window, keywords, num_qas).removesuffix(self.template.opening)


def _without_text(prompt: Prompt, failure: Failure) -> Prompt:
    return Prompt(
        **{**prompt, "prompt": "", "token_ids": [], "max_tokens": 0, "reason": failure.reason, "detail": failure.detail}
    )
