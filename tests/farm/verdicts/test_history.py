"""What a history tells: the acceptance figures of the detector, the drift, incidents, and the relocation of steps.

The figures are those of the generator of histories (tests/support/farm/histories.py), on the seeds that are held out.
"""

from __future__ import annotations

import numpy as np
import pytest

from dtf_lightning.farm.verdicts.history.alarms import Alarm, scan, scan_series
from dtf_lightning.farm.verdicts.history.drift import drift
from dtf_lightning.farm.verdicts.history.incidents import incidents
from dtf_lightning.farm.verdicts.history.noise import NoiseFloor, floors
from dtf_lightning.farm.verdicts.history.relocation import level_starts, relocate
from dtf_lightning.farm.verdicts.series import Series
from support.farm.histories import HELD_OUT, SIGMAS, TUNED, draw_sigma, histories, noise, score


def naive_rule(costs: np.ndarray) -> list[list[tuple[int, int]]]:
    """z > 2.5 on the 7 points before: a common rule."""
    before = np.lib.stride_tricks.sliding_window_view(costs, 7, axis=1)[:, :-1]
    z = (costs[:, 7:] - before.mean(axis=2)) / before.std(axis=2, ddof=1)
    return [[(int(at) + 7, int(np.sign(row[at]))) for at in np.flatnonzero(np.abs(row) > 2.5)] for row in z]


def told(costs: np.ndarray) -> list[list[tuple[int, int]]]:
    alarms = [[] for _ in costs]
    for alarm in scan(costs).alarms:
        alarms[alarm.series].append((alarm.seen_at, 1 if alarm.log_ratio > 0 else -1))
    return alarms


@pytest.mark.parametrize("kind", SIGMAS)
@pytest.mark.parametrize("seeds", [TUNED, HELD_OUT], ids=["tuned", "held out"])
def test_steps_are_found_and_clean_points_left_alone(kind, seeds):
    """300 histories of 370 points: few false alarms, most steps, soon; the naive rule cries wolf on the same points."""
    drawn = [one for seed in seeds for one in histories(seed, kind)]
    costs = np.stack([one.costs for one in drawn])
    scored = score(drawn, told(costs))
    assert scored.num_steps > 300
    assert scored.num_clean > 90_000
    assert scored.false_per_1000 <= 1.5
    assert scored.recall >= 0.85
    assert scored.median_delay <= 3
    assert score(drawn, naive_rule(costs)).false_per_1000 > 50


def test_a_step_in_a_quiet_series():
    """5 % at sigma < 1 %: found within 5 points in at least 95 of 100."""
    random = np.random.default_rng(1)
    costs = np.stack([noise(random, 60, random.uniform(0.001, 0.01)) for _ in range(400)])
    costs[:, 40:] += np.log(1.05)
    found = {alarm.series for alarm in scan(costs).alarms if 40 <= alarm.seen_at < 45 and alarm.log_ratio > 0}
    assert len(found) / len(costs) >= 0.95


def test_a_single_spike_is_no_step():
    """+50 % once, in 1,000 series: suspect, and no alarm."""
    random = np.random.default_rng(2)
    costs = np.stack([noise(random, 60, draw_sigma(random, "one machine"), spikes=0) for _ in range(1000)])
    before = scan(costs)
    costs[:, 40] += np.log(1.5)
    scanned = scan(costs)
    assert scanned.suspects[:, 40].mean() > 0.99
    assert [alarm for alarm in scanned.alarms if alarm not in before.alarms] == []


def test_a_step_is_relocated():
    """The segmentation has the onset of nearly all labelled steps within one point."""
    drawn = [one for seed in HELD_OUT for one in histories(seed, "one machine", 5)]
    away = []
    for number, alarm in enumerate(scan(np.stack([one.costs for one in drawn])).alarms):
        assert alarm.seen_at >= alarm.onset, number
        one = drawn[alarm.series]
        near = [step.onset for step in one.steps if step.labelled and abs(step.onset - alarm.onset) < 8]
        before = one.costs[None, max(alarm.onset - 30, 0) : alarm.onset]
        _, (sigma,) = floors(before.copy(), np.array([before.shape[1]]))
        away += [abs(relocate(alarm, one.costs, float(sigma)).onset - onset) for onset in near[:1]]
    assert len(away) > 60
    assert np.mean(np.array(away) <= 1) >= 0.97


def test_segmentation_sees_what_the_alarm_cannot():
    """5 % in middling series (sigma 1 to 3 %): most, with few false levels."""
    random = np.random.default_rng(3)
    found, false, trials = 0, 0, 60
    for _ in range(trials):
        costs, onset = noise(random, 120, random.uniform(0.01, 0.03)), int(random.integers(30, 90))
        _, (sigma,) = floors(costs[None, :30].copy(), np.array([30]))
        false += len(level_starts(costs, float(sigma)))
        costs[onset:] += np.log(1.05)
        found += any(abs(start - onset) <= 3 for start in level_starts(costs, float(sigma)))
    assert found / trials >= 0.8
    assert false / trials <= 0.1


def test_segmentation_against_all_divisions():
    """The quick division is the best of all, tried one by one on short series."""
    random = np.random.default_rng(4)

    def cost(points):
        return float(((points - points.mean()) ** 2).sum())

    for _ in range(30):
        points = random.normal(size=11).round(2)
        points[int(random.integers(3, 8)) :] += 8
        penalty = 10 * np.log(11)
        options = [[]] + [[a] for a in range(3, 9)] + [[a, b] for a in range(3, 9) for b in range(a + 3, 9)]
        best = min(
            options,
            key=lambda starts: sum(map(cost, np.split(points, starts))) + penalty * (len(starts) + 1),
        )
        assert level_starts(points, 1.0) == best


@pytest.mark.parametrize("parity", [0, 1], ids=["tuned", "held out"])
def test_a_slow_drift(parity):
    """10 % over 60 points: at least 80 % are found, with at most 2 % false ones."""
    found = false = trials = 0
    for kind in SIGMAS:
        random = np.random.default_rng([7, parity])
        for _ in range(250):
            costs = noise(random, 60, draw_sigma(random, kind))
            false += drift(costs).found
            told = drift(costs + np.linspace(0, np.log(1.1), 60))
            found += told.found and told.log_ratio > 0
            trials += 1
    assert found / trials >= 0.8
    assert false / trials <= 0.02


def test_a_drift_needs_points_and_constant_series_have_none():
    with pytest.raises(ValueError, match="drift was looked for in 9 points; at least 10"):
        drift(np.zeros(9))
    assert drift(np.zeros(60)).sentence == "no drift over 60 points"
    assert "drifted slower by 10.5 % over 60 points" in drift(np.linspace(0, 0.1, 60)).sentence


def test_alarms_of_one_commit_are_one_incident():
    """Onsets that are one apart belong together, those further away do not; each alarm is in one incident."""
    onsets = [10, 11, 11, 12, 30, 50, 51]
    alarms = [
        Alarm(series=s, onset=onset, seen_at=onset + 3, log_ratio=0.05 * (s + 1)) for s, onset in enumerate(onsets)
    ]
    gathered = incidents(alarms)
    assert [[alarm.onset for alarm in one.alarms] for one in gathered] == [[10, 11, 11, 12], [30], [50, 51]]
    assert (gathered[0].first, gathered[0].last) == (11, 11)
    assert gathered[0].sentence == "4 series at point 11; the most: 22 % slower"
    assert gathered[2].sentence.startswith("2 series at points 50 to 51")


def test_noise_floor_is_robust():
    """Spikes leave it alone; a constant series has none, and its smallest visible change is 2 %."""
    random = np.random.default_rng(5)
    values = np.exp(random.normal(0, 0.02, 200))
    values[[180, 190]] *= 5
    floor = NoiseFloor.of(Series.of("time", list(values), "ms"))
    assert floor.sigma == pytest.approx(0.02, rel=0.5)
    assert floor.num_points == 30
    constant = NoiseFloor.of(Series.of("size", [7.0] * 10, "MiB"))
    assert constant.is_constant
    assert constant.smallest_visible == pytest.approx(0.02)


def test_noise_that_alternates_and_noise_that_wanders():
    """Each of the two estimates sees what the other does not."""
    alternating, counts = np.array([[0.0, 0.0, 0.1] * 10]), np.array([30])
    assert floors(alternating.copy(), counts)[1][0] > 0.05
    wandering = np.linspace(0, 0.3, 30)[None]
    assert floors(wandering.copy(), counts)[1][0] > 0.1


def test_series_of_different_lengths_are_scanned_as_each_alone():
    random = np.random.default_rng(6)
    series = []
    for length in (20, 60, 120):
        costs = noise(random, length, 0.01)
        costs[length // 2 + 2 :] += 0.2
        series.append(Series.of("time", list(np.exp(costs)), "s"))
    together = scan_series(series)
    assert [alarm.series for alarm in together.alarms] == [0, 1, 2]
    for number, one in enumerate(series):
        alone = scan_series([one])
        assert [(a.onset, a.seen_at) for a in alone.alarms] == [
            (a.onset, a.seen_at) for a in together.alarms if a.series == number
        ]
        assert (alone.suspects[0] == together.suspects[number, : len(one.values)]).all()
    assert scan_series([]).alarms == ()


def one_by_one(values: list[float]) -> tuple[set[int], list[tuple[int, int]]]:
    """The rule as it is said, for one series, without a thought for speed: suspects, and (onset, seen at) of alarms."""

    def sigma_of(points):
        factor = 1.4826 * len(points) / (len(points) - 0.8)
        spread = factor * np.median(np.abs(points - np.median(points)))
        steps = np.abs(np.diff(points))
        return max(spread, 1.4826 * len(points) / (len(points) - 0.8) * np.median(steps) / np.sqrt(2))

    suspects, alarms, start = set(), [], 0
    for now in range(len(values)):
        accepted = np.array(values[start : max(now - 4, start)][-30:])
        if len(accepted) < 8:
            continue
        floor = max(3 * sigma_of(accepted), np.log(1.02))
        away = [value - np.median(accepted) for value in values[now - 4 : now + 1]]
        if abs(away[-1]) > floor:
            suspects.add(now)
        for sign in (1, -1):
            beyond = [sign * one > floor for one in away]
            if sum(beyond) >= 4:
                start = now - 4 + beyond.index(True)
                alarms.append((start, now))
    return suspects, alarms


def test_the_scan_of_many_is_that_of_each_one_by_one():
    """Against the rule as it is said, on histories with steps and spikes."""
    drawn = [one.costs for one in histories(3, "continuous integration", 12, 150)]
    scanned = scan(np.stack(drawn))
    for number, costs in enumerate(drawn):
        suspects, alarms = one_by_one(list(costs))
        assert set(np.flatnonzero(scanned.suspects[number])) == suspects
        assert [(alarm.onset, alarm.seen_at) for alarm in scanned.alarms if alarm.series == number] == alarms
    assert scanned.alarms
    assert scanned.suspects.any()


def test_after_a_step_the_floor_begins_anew():
    """A second step is found as the first; a return to the old level too."""
    costs = np.random.default_rng(8).normal(0, 0.005, 90)
    costs[30:60] += 0.1
    assert [(alarm.onset, round(alarm.log_ratio, 1)) for alarm in scan(costs[None]).alarms] == [(30, 0.1), (60, -0.1)]
