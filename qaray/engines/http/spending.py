"""What requests cost, and the limit of it: a request is sent only if its longest answer can still be paid."""

from __future__ import annotations

from collections.abc import Callable

Price = Callable[[float, float], float | None]  # of prompt tokens and output tokens


class Spending:
    """The account of one actor. Costs are in the currency of the prices."""

    def __init__(self, price: Price, most: float | None, spent: float) -> None:
        """``most``: limit of the whole run, None for none; ``spent``: by earlier requests."""
        self.price, self.most, self.spent = price, most, spent
        self.held = 0.0  # for requests in flight: what they cost at most
        self.in_flight = 0

    def most_of(self, prompt_tokens: float, max_tokens: int) -> float:
        """What a request costs at most."""
        return self.price(prompt_tokens, max_tokens) or 0.0

    def allows(self, cost: float) -> bool:
        """Whether a request that costs at most ``cost`` keeps the limit, whatever those in flight cost."""
        return self.most is None or self.spent + self.held + cost <= self.most

    def hold(self, cost: float) -> None:
        """A request starts."""
        self.held += cost
        self.in_flight += 1

    def settle(self, held: float, prompt_tokens: float, output_tokens: float) -> float:
        """A request has ended; returns what it cost. A request without an answer costs nothing."""
        cost = self.price(prompt_tokens, output_tokens) or 0.0
        self.in_flight -= 1
        self.held = self.held - held if self.in_flight else 0.0  # sums of floats leave a rest
        self.spent += cost
        return cost
