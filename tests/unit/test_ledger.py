"""Where the time went, on spans small enough to add up by hand; and a corpus extrapolated from it."""

import json

import pytest

from qaray.config import ConfigError, PlanConfig
from qaray.generate.ledger import GAP, Ledger, Spans
from qaray.models.shape import ModelShape
from qaray.observe.plan import plan_corpus, plan_lines


def row(worker, began, prefill, seconds, prompt=1000, output=100, **more):
    known = {"worker": worker, "began": began, "prefill_seconds": prefill, "seconds": seconds}
    return {**known, "prompt_tokens": prompt, "output_tokens": output, "attempt": 1, "reason": None, **more}


ROWS = [
    row("a", 100.0, 2.0, 10.0),  # a: busy 100–112 with one gap of idleness, 120–130
    row("a", 104.0, 1.0, 8.0),
    row("a", 120.0, 1.0, 10.0),
    row("b", 101.0, 3.0, 20.0),
    row("b", 0.0, 0.0, 0.0, reason="engine_error"),  # no times
]


def test_spans_unite():
    spans = Spans()
    spans.add([(5, 7), (1, 2), (6, 9)])
    spans.add([(2 + GAP / 2, 3), (20, 21)])
    assert spans.spans == [(1, 3), (5, 9), (20, 21)]
    assert spans.seconds == 7


def test_busy_shares_and_rates():
    ledger = Ledger.of(ROWS)
    found = ledger.account(2.0, loading=30.0, pairs=20, price=3.6, utilisation={})
    assert found["workers"] == 2
    assert ledger.present_seconds == 30 + 20
    assert found["busy_share"] == round((12 + 10 + 20) / 50, 4)
    assert found["device_seconds"] == 2 * (50 + 2 * 30)
    assert found["prefill_seconds"] == 2 * (2 + 1 + 1 + 3)
    assert found["decode_seconds"] == 2 * (10 + 9 + 17)  # a: 102–112 holds 105–112
    assert found["prompt_tokens_per_device_second"] == round(4000 / 84, 4)
    assert found["decode_tokens_per_second"] == round(400 / 72, 4)
    assert found["written_together"] == round((8 + 7 + 9 + 17) / 36, 4)
    assert found["cost"] == 0.22  # 220 device seconds at 3.6 an hour
    assert found["cost_per_1000_pairs"] == 11.0


def test_sums_do_not_depend_on_how_rows_are_shared_out():
    whole, parts = Ledger.of(ROWS), Ledger()
    for each in reversed(ROWS):
        parts.add(Ledger.of([each]))
    assert parts == whole


def test_rows_of_another_release_are_passed_over():
    assert Ledger.of([{"reason": None, "seconds": 3.0, "prompt_tokens": 1, "output_tokens": 1}]) == Ledger()


def test_utilisation_by_hand():
    shape = ModelShape(parameters=1000, layers=2, width=8, kv_bytes=32, weight_bytes=2000)
    ledger = Ledger.of([row("a", 10.0, 1.0, 5.0, prompt=100, output=10)])
    found = ledger.utilisation(shape, (1e6, 1e5), 1.0)
    flops = 2 * 1000 * 110 + 4 * 2 * 8 * (100 * 100 / 2 + 10 * 105)
    assert found["mfu"] == round(flops / 5e6, 4)
    assert found["mbu_decode"] == round((10 * 2000 + 10 * 105 * 32) / 4e5, 4)
    assert ledger.utilisation(shape, None, 1.0) == {"mfu": None, "mbu_decode": None}


def manifest(tmp_path, price=None):
    ledger = Ledger.of(ROWS).account(1.0, loading=30.0, pairs=40, price=price, utilisation={})
    found = {
        "ledger": ledger,
        "counts": {"papers": 4, "pairs": 40},
        "tokens": {"papers": 4000},
        "engine": {"name": "transformers", "device": "H100"},
        "bytes": 4_000_000,
    }
    (tmp_path / "manifest.json").write_text(json.dumps(found))
    return PlanConfig(output_dir=str(tmp_path), papers=4_000_000, gpus=10)


def test_a_plan_is_proportional(tmp_path):
    plan = plan_corpus(manifest(tmp_path, price=3.6))
    seconds = 50 / 4 * 4_000_000 + 30 * 10
    assert plan["device_hours"] == pytest.approx(seconds / 3600)
    assert plan["hours"] == pytest.approx(seconds / 36000)
    assert plan["cost"] == pytest.approx(seconds / 1000, rel=1e-3)
    assert plan["pairs"] == 40_000_000
    assert plan["gigabytes"] == pytest.approx(4000)
    assert any("4,000,000 papers on 10 × H100" in line for line in plan_lines(plan))


def test_longer_papers_cost_more_reading_only(tmp_path):
    config = manifest(tmp_path).model_copy(update={"paper_tokens": 2000})
    reading = 7 / (7 + 36)
    assert plan_corpus(config)["from"]["device_seconds_per_paper"] == 12.5
    expected = 12.5 * (1 + reading) * 4_000_000 + 300
    assert plan_corpus(config)["device_hours"] == pytest.approx(expected / 3600, rel=1e-4)


def test_a_run_without_times_is_refused(tmp_path):
    config = manifest(tmp_path)
    empty = json.loads((tmp_path / "manifest.json").read_text())
    empty["ledger"] = Ledger().account(1.0, 0.0, 0, None, {})
    (tmp_path / "manifest.json").write_text(json.dumps(empty))
    with pytest.raises(ConfigError, match="no timings"):
        plan_corpus(config)
