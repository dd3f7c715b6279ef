"""A comparison from its first run to its exit code: simulated programs and a simulated clock."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.compare.book import Kept, VerdictBook
from dtf_lightning.farm.compare.measuring import Run, RunFailed
from dtf_lightning.farm.compare.session import Outcome, compare
from dtf_lightning.farm.verdicts.metrics import Metric
from dtf_lightning.farm.verdicts.pairs.comparison import Comparison
from dtf_lightning.farm.verdicts.pairs.plan import Plan, Side, first_of_pair
from dtf_lightning.farm.verdicts.pairs.verdict import ReplayDiffers, State, judge

TIME = Metric.parse("time")
SEED = "seed"


class Simulated:
    """Two programs on a machine whose load goes up and down; it is the clock, too."""

    def __init__(
        self, ratio: float = 1.0, sigma: float = 0.02, seed: int = 0, **metrics: Callable[[Side], float]
    ) -> None:
        self.ratio, self.sigma, self.metrics = ratio, sigma, metrics
        self.random = np.random.default_rng(seed)
        self.now = 0.0
        self.ran: list[Side] = []
        self.fail_at: int | None = None
        self.interrupt_at: int | None = None

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def __call__(self, side: Side) -> Run:
        if len(self.ran) == self.fail_at:
            raise RunFailed(f"the {side.value} ended with exit code 1")
        if len(self.ran) == self.interrupt_at:
            raise KeyboardInterrupt
        self.ran.append(side)
        load = 1 + 0.5 * math.sin(self.now / 7)
        seconds = (
            0.1 * load * (self.ratio if side is Side.CANDIDATE else 1) * math.exp(self.random.normal(0, self.sigma))
        )
        self.now += seconds
        reported = {name: value(side) for name, value in self.metrics.items()}
        return Run(process=str(len(self.ran)), metrics={"time": seconds, "cpu": seconds, **reported})


def run(simulated: Simulated, *metrics: Metric, plan: Plan = Plan(), budget: float | None = None, **fields) -> Outcome:  # noqa: B008  (it has no state)
    return compare(simulated, metrics or [TIME], plan, seed=SEED, budget=budget, clock=simulated, **fields)


@pytest.mark.parametrize(("ratio", "state"), [(1.0, State.SAME), (1.05, State.SLOWER), (0.95, State.FASTER)])
def test_pairs_are_bought_until_it_is_decided(ratio, state):
    """Under a load of 50 to 150 %; runs go in the order that was drawn, after one warm-up of each."""
    simulated = Simulated(ratio)
    outcome = run(simulated)
    (one,) = outcome.compared
    assert one.verdict.state is state
    assert one.verdict.num_pairs == len(simulated.ran) // 2 - 1 < 100
    assert [sample.side for sample in one.comparison.samples] == simulated.ran[2:]
    assert simulated.ran[2::2] == [first_of_pair(SEED, pair) for pair in range(one.verdict.num_pairs)]
    assert outcome.seconds == simulated.now


def test_the_budget_ends_it():
    """Before a pair that would go beyond; the sentence's reason says so."""
    simulated = Simulated(sigma=0.1)
    (one,) = run(simulated, budget=3.0).compared
    assert simulated.now <= 3.0
    assert (one.verdict.state, one.verdict.reason) == (State.GAVE_UP, "the budget of 3 s is spent")
    assert one.verdict.num_pairs > 3


def test_a_difference_that_was_seen_is_told_though_the_budget_ended():
    """2 % at noise of 1 %: seen at 16 pairs; whether it is more than the 3 % that matter was to be measured on."""
    (one,) = run(Simulated(1.025, 0.012), budget=6.0).compared
    assert one.verdict.state is State.SLOWER
    assert one.verdict.look.estimate < math.log(1.03)


def test_several_metrics():
    """One is decided later than the other; alpha is shared between them."""
    random = np.random.default_rng(1)
    simulated = Simulated(
        1.0,
        memory=lambda side: 100 * (1.2 if side is Side.CANDIDATE else 1),
        latency=lambda _: math.exp(random.normal(0, 0.06)),
    )
    metrics = [Metric.parse("memory:MiB"), Metric.parse("latency:ms")]
    memory, latency = run(simulated, *metrics).compared
    assert memory.verdict.state is State.SLOWER
    assert latency.verdict.state is State.SAME
    assert memory.comparison.plan.alpha == latency.comparison.plan.alpha == 0.005
    assert memory.verdict.num_pairs == latency.verdict.num_pairs > 25
    assert judge(memory.comparison) == memory.verdict


def test_ctrl_c_and_a_program_that_fails_later_end_it():
    """What was measured stays; the pair that was not complete does not count."""
    simulated = Simulated()
    simulated.interrupt_at = 9
    (one,) = run(simulated).compared
    assert (one.verdict.state, one.verdict.num_pairs) == (State.GAVE_UP, 3)
    assert one.verdict.reason == "it was ended by Ctrl-C"
    simulated = Simulated()
    simulated.fail_at = 8
    (one,) = run(simulated).compared
    assert one.verdict.reason.startswith("pair 4 failed: the ")
    simulated = Simulated()
    simulated.fail_at = 3
    with pytest.raises(RunFailed, match="ended with exit code 1"):
        run(simulated)


def test_a_metric_that_is_not_reported():
    """Says what was, and how to report."""
    with pytest.raises(
        SettingsError, match=r"the base reported no metric 'latency': it reported nothing. A program reports by"
    ):
        run(Simulated(), Metric.parse("latency:ms"))
    with pytest.raises(SettingsError, match="no metric 'latency': it reported loss"):
        run(Simulated(loss=lambda _: 1.0), Metric.parse("latency:ms"))
    with pytest.raises(SettingsError, match="metric 'loss of the base' is nan"):
        run(Simulated(loss=lambda _: math.nan), Metric.parse("loss:1"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency", "'latency' has no unit"),
        ("latency:parsec", "unknown unit 'parsec'"),
        (":ms", "cannot be read; expected NAME:UNIT"),
        ("a:ms:s", "cannot be read"),
    ],
)
def test_metrics_that_cannot_be_read(text, message):
    with pytest.raises(SettingsError, match=message):
        Metric.parse(text)


def test_metrics():
    assert Metric.parse("items:1/s").higher_is_better
    assert not Metric.parse("items:1/s:lower").higher_is_better
    assert Metric.parse("score:higher:1") == Metric(name="score", unit="1", higher_is_better=True)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_a_newer_book_is_not_to_be_deleted(tmp_path):
    """A coordinator's results can be made anew; verdicts cannot, and the message must not say so."""
    path = tmp_path / "verdicts.duckdb"
    with VerdictBook(path) as book:
        book._database.connection.execute("INSERT INTO dtf_farm_schema VALUES (999, now()::TIMESTAMP)")
    with pytest.raises(SettingsError, match="use a newer dtf-lightning; its verdicts are nowhere else"):
        VerdictBook(path)


@pytest.mark.parametrize("budget", [None, 3.0, 0.3])
def test_a_verdict_is_replayed_from_the_database(tmp_path, budget):
    """Decided, given up, and without a single pair: every bit is the same; a changed sample is noticed."""
    outcome = run(Simulated(sigma=0.1), budget=budget)
    (one,) = outcome.compared
    kept = Kept(verdict="0192-id", made=5.0, base="a", candidate="b", machine="{}", sentence="told", compared=one)
    with VerdictBook(tmp_path / "home" / "verdicts.duckdb") as book:
        book.keep(kept)
    with VerdictBook(tmp_path / "home" / "verdicts.duckdb") as book:
        assert book.replay("0192") == (one.comparison, one.verdict, "told")
        assert [row["state"] for row in book.verdicts()] == [one.verdict.state.value]
        for unknown in ("1", ""):
            with pytest.raises(SettingsError, match="`dtf farm verdict list` shows those"):
                book.replay(unknown)
        stored, told, _ = book.read("0192")
        assert Comparison.from_json(stored) == one.comparison
        assert told == one.verdict.to_json()
        if one.verdict.look is not None:
            book._database.connection.execute("UPDATE farm.samples SET value = value * 1.1 WHERE place = 3")
            with pytest.raises(ReplayDiffers):
                book.replay("0192")
