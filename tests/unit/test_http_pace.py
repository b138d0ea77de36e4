"""The pace of requests, simulated: an endpoint in virtual time, and the controller's own clock."""

import asyncio
import heapq
import random

import pytest

from qaray.engines.http.pace import FIRST_WINDOW, Gate, Pace


def simulate(pace, latency, seconds, allows):
    """(times of answers, times of refusals, most requests in flight). ``allows(now)``: whether the endpoint answers."""
    numbers, now, events, number, most = random.Random(0), 0.0, [], 0, 0
    answers, refusals = [], []
    while now < seconds:
        wait = pace.wait(now)
        if wait is not None and (not events or now + wait <= events[0][0]):
            now += wait
            pace.start(now)
            number, most = number + 1, max(most, pace.in_flight)
            allowed = allows(now)
            took = latency * numbers.uniform(0.5, 1.5) if allowed else 0.02
            heapq.heappush(events, (now + took, number, allowed, took))
            continue
        now, _, allowed, took = heapq.heappop(events)
        if allowed:
            pace.answered(now, took)
            answers.append(now)
        else:
            pace.refused(now)
            refusals.append(now)
    return answers, refusals, most


def bucket(rate):
    """An endpoint that lets ``rate`` requests a second through."""
    state = {"left": float(rate), "at": 0.0}

    def allows(now):
        state["left"] = min(rate, state["left"] + (now - state["at"]) * rate)
        state["at"] = now
        if state["left"] < 1:
            return False
        state["left"] -= 1
        return True

    return allows


@pytest.mark.parametrize("latency", [0.05, 0.3, 1.0, 3.0])
def test_an_unknown_limit_is_found_and_kept(latency):
    answers, refusals, _ = simulate(Pace(128), latency, 240, bucket(20))
    assert len([at for at in answers if at > 60]) >= 0.9 * 20 * 180
    assert len(refusals) < 0.05 * (len(answers) + len(refusals))


def test_requests_in_flight_double_until_the_limit():
    answers, refusals, most = simulate(Pace(64), 1.0, 60, lambda now: True)
    assert refusals == []
    assert most == 64
    assert len([at for at in answers if at > 10]) >= 0.9 * 64 * 50


def test_a_limit_of_the_user_is_never_exceeded():
    pace = Pace(64, 5.0)
    answers, _, most = simulate(pace, 2.0, 100, lambda now: True)
    assert 490 <= len(answers) <= 505
    assert most <= FIRST_WINDOW + 64


def test_an_overload_shrinks_the_window_once_a_round():
    pace = Pace(64)
    for _ in range(10):
        pace.start(0.0)
    before = pace.window
    pace.overloaded(1.0)
    after = pace.window
    pace.overloaded(1.1)
    assert after < before
    assert pace.window == after
    pace.overloaded(9.0)
    assert pace.window < after


def test_retry_after_is_obeyed():
    pace = Pace(8)
    for _ in range(4):
        pace.start(0.0)
    for _ in range(2):
        pace.answered(0.9, 0.9)
    pace.refused(1.0, retry_after=30.0)
    pace.refused(1.1, retry_after=5.0)
    assert pace.wait(1.1) == pytest.approx(29.9)
    assert pace.wait(31.0) == 0.0


def test_the_window_is_never_below_one():
    pace = Pace(1)
    for now in range(100):
        assert pace.wait(float(now)) == 0.0
        pace.start(float(now))
        pace.overloaded(now + 0.9)


def test_the_gate_keeps_to_its_limits():
    async def run():
        gate, inside, most, begun = Gate(Pace(3, 200.0)), 0, 0, []

        async def one():
            nonlocal inside, most
            async with gate.passing():
                begun.append(asyncio.get_running_loop().time())
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.02)
                inside -= 1
                gate.pace.answered(gate.clock(), 0.02)

        await asyncio.gather(*(one() for _ in range(12)))
        return most, begun

    most, begun = asyncio.run(run())
    assert most == 3
    assert begun[-1] - begun[0] >= 11 / 200 - 1e-3  # the limit of the rate
