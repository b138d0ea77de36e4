"""Token budget of a prompt and its answer.

seq_len = prompt + reserve for the answer;  reserve = min(max_gen_len, max(256, 150 · num_qas))
A prompt longer than seq_len − reserve is over-length. The answer is limited to min(max_gen_len, seq_len − prompt).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """Token budget of a run."""

    seq_len: int
    max_gen_len: int
    num_qas: int

    @property
    def reserve(self) -> int:
        """Tokens reserved for the answer."""
        return min(self.max_gen_len, max(256, 150 * self.num_qas))

    @property
    def longest_prompt(self) -> int:
        """Maximum length of a prompt, in tokens."""
        return self.seq_len - self.reserve

    def answer_cap(self, prompt_tokens: int) -> int:
        """Maximum length of the answer to such a prompt, in tokens; negative if the prompt exceeds seq_len."""
        return min(self.max_gen_len, self.seq_len - prompt_tokens)
