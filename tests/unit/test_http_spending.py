"""What requests to an endpoint cost, and the limit of it."""

import random

import pytest

from qaray.config import ConfigError, GenerateConfig
from qaray.engines.http.spending import Spending


def config(**more):
    return GenerateConfig(
        file_path="p", output_dir="o", engine="http", base_url="http://x/v1", input_price=2.0, output_price=10.0, **more
    )


def test_the_price_of_tokens():
    assert config().endpoint.cost(1_000_000, 0) == 2.0
    assert config().endpoint.cost(500_000, 100_000) == 2.0
    assert GenerateConfig(file_path="p", output_dir="o", engine="echo").endpoint.cost(1, 1) is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"input_price": 1.0}, "--input_price requires --output_price"),
        ({"output_price": 1.0}, "--output_price requires --input_price"),
        ({"max_cost": 1.0}, "--max_cost requires --input_price and --output_price"),
    ],
)
def test_prices_come_together(flags, words):
    with pytest.raises(ConfigError, match=words):
        GenerateConfig(file_path="p", output_dir="o", engine="http", base_url="http://x/v1", **flags)


def test_the_limit_holds_whatever_the_answers_cost():
    """Requests in any order, answers up to their longest: never more than the limit, and little less."""
    numbers = random.Random(0)
    spending = Spending(config().endpoint.cost, 1.0, 0.25)
    flying = []
    for _ in range(10_000):
        prompt, longest = numbers.randrange(100, 5000), 1000
        most = spending.most_of(prompt, longest)
        if spending.allows(most):
            spending.hold(most)
            flying.append((most, prompt, numbers.randrange(0, longest + 1)))
        elif flying:
            spending.settle(*flying.pop(numbers.randrange(len(flying))))
        assert spending.spent + spending.held <= 1.0 + 1e-9
    assert spending.spent > 0.9


def test_a_request_without_an_answer_costs_nothing():
    spending = Spending(config().endpoint.cost, 1.0, 0.0)
    spending.hold(0.5)
    assert not spending.allows(0.6)
    assert spending.settle(0.5, 0, 0) == 0.0
    assert spending.allows(0.6)


def test_without_a_limit_everything_is_allowed():
    assert Spending(config().endpoint.cost, None, 1e9).allows(1e9)
