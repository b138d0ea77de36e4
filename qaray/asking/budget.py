"""The lengths of a prompt and its answer, in tokens.

seq_len = prompt + room for the answer;  reserve = min(max_gen_len, max(256, 150 · num_qas))
a prompt beyond seq_len − reserve is over-length; the answer is capped at min(max_gen_len, seq_len − prompt)
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Lengths of one run, in tokens."""

    seq_len: int
    max_gen_len: int
    num_qas: int

    @property
    def reserve(self) -> int:
        return min(self.max_gen_len, max(256, 150 * self.num_qas))

    @property
    def longest_prompt(self) -> int:
        return self.seq_len - self.reserve

    def answer_cap(self, prompt_tokens: int) -> int:
        return min(self.max_gen_len, self.seq_len - prompt_tokens)
