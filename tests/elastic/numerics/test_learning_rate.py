"""Rules, ramps, and what one optimizer step sees of them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.elastic.numerics.adascale import GainEstimate
from dtf_lightning.elastic.numerics.learning_rate import RULES, Ramp, checked_factor, resolve_rule, scaled
from dtf_lightning.errors import SettingsError

FACTORS = st.floats(0.01, 100)


def test_linear_from_4_workers_at_001():
    """0.02 at 8, 0.005 at 2, 0.0125 at 5, 0.01 at 4."""
    rates = {world: 0.01 * resolve_rule("linear")(world, 4) for world in (8, 2, 5, 4)}
    assert rates == pytest.approx({8: 0.02, 2: 0.005, 5: 0.0125, 4: 0.01}, rel=1e-15)


def test_sqrt_from_4_to_16_doubles():
    assert 0.01 * resolve_rule("sqrt")(16, 4) == 0.02


@pytest.mark.parametrize("name", RULES)
def test_every_rule_is_1_at_its_reference(name):
    assert [RULES[name](world, world) for world in (1, 3, 4, 7)] == [1.0] * 4


def test_unknown_rule_lists_the_known_ones():
    with pytest.raises(SettingsError, match=r"'linaer' is unknown.*'linear', 'sqrt', 'adam_sde', 'adascale', 'none'"):
        resolve_rule("linaer")


@pytest.mark.parametrize("factor", [0, -1.0, math.nan, math.inf, "2", None, True])
def test_no_factor_at_all(factor):
    """A user's rule that returns what no learning rate can be multiplied by is named with the worlds it was asked."""

    def mine(world_size, reference):
        return factor

    with pytest.raises(SettingsError, match=r"mine returned .* for world size 3 and reference 2"):
        checked_factor(mine, 3, 2)


@given(start=FACTORS, target=FACTORS, steps=st.integers(1, 30), shape=st.sampled_from(["linear", "exponential"]))
def test_ramp(start, target, steps, shape):
    """The first step has the old factor, the one after `steps` steps has the new one, in between it is monotonic."""
    ramp, values = Ramp(start=start, target=target, steps=steps, shape=shape), []
    for _ in range(steps + 3):
        values.append(ramp.value)
        ramp = ramp.stepped()
    assert (values[0], values[steps:]) == (start, [target] * 3)
    assert values == sorted(values, reverse=target < start)


def test_ramp_to_another_world_starts_where_it_is():
    """2 -> 4 over 4 steps, half way the world changes again: from 3."""
    ramp = Ramp(start=2.0, target=4.0, steps=4).stepped().stepped().toward(1.0)
    assert ramp == Ramp(start=3.0, target=1.0, steps=4)
    assert ramp.toward(1.0) is ramp


def test_ramp_at_once():
    assert Ramp(start=1.0, target=2.0).value == 2.0


def parameter_groups(**values):
    return [{"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, **values}, {"lr": 0.01, "betas": (0.5, 0.9), "eps": 1e-6}]


def test_step_sees_the_factor_in_every_group_and_leaves_no_trace():
    groups = parameter_groups()
    with scaled(groups, 2.0):
        assert [group["lr"] for group in groups] == [0.2, 0.02]
        assert groups[0]["betas"] == (0.9, 0.999)
    assert groups == parameter_groups()


def test_adam_sde_scales_betas_and_eps():
    """Four times the batch: lr x 2, 1 - beta x 4, eps / 2 (Malladi et al. 2022, definition 5.2)."""
    groups = parameter_groups()
    with scaled(groups, 2.0, adam_sde=True):
        assert groups[0]["lr"] == 0.2
        assert groups[0]["betas"] == pytest.approx((0.6, 0.996))
        assert groups[0]["eps"] == 5e-9
    assert groups == parameter_groups()


def test_adam_sde_says_which_beta_cannot_follow(caplog):
    groups = parameter_groups()
    with scaled(groups, 4.0, adam_sde=True):
        assert groups[0]["betas"] == pytest.approx((0.0, 0.984))
    assert "beta 0.9 cannot follow a batch 16 times as large" in caplog.text


def test_a_step_that_raises_leaves_no_trace():
    groups = parameter_groups()
    with pytest.raises(RuntimeError), scaled(groups, 3.0, adam_sde=True):
        raise RuntimeError
    assert groups == parameter_groups()


def test_a_learning_rate_set_inside_a_step_is_kept():
    groups = parameter_groups()
    with scaled(groups, 3.0):
        groups[0]["lr"] = 7.0
    assert [group["lr"] for group in groups] == [7.0, 0.01]


def test_a_tensor_stays_the_same_object():
    """A captured optimizer holds its learning rate by reference."""
    rate = torch.tensor(0.5)
    groups = [{"lr": rate}]
    with scaled(groups, 2.0):
        assert groups[0]["lr"] is rate
        assert rate == 1.0
    assert groups[0]["lr"] is rate
    assert rate == 0.5


def test_adascale_gain_is_the_scale_for_pure_noise_and_1_without_noise():
    """Equation 3's two ends, and one in the middle."""
    noise, signal, mixed = GainEstimate(), GainEstimate(), GainEstimate()
    noise.observe(mean_square=1.0, square_of_mean=0.25, num_gradients=4)
    signal.observe(mean_square=1.0, square_of_mean=1.0, num_gradients=4)
    mixed.observe(mean_square=2.0, square_of_mean=1.25, num_gradients=4)  # variance 1, norm 1
    gains = [estimate.gain(4.0, 1) for estimate in (noise, signal, mixed)]
    assert gains == pytest.approx([4.0, 1.0, 1.6])


@given(data=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1)), min_size=1, max_size=5), scale=st.floats(0.1, 16))
def test_adascale_gain_lies_between_1_and_the_scale(data, scale):
    estimate = GainEstimate()
    for mean_square, share in data:
        estimate.observe(mean_square=mean_square, square_of_mean=mean_square * share, num_gradients=4)
    low, high = sorted((1.0, scale))
    assert low - 1e-9 <= estimate.gain(scale, 2) <= high + 1e-9


def test_adascale_learns_nothing_from_one_gradient_and_travels():
    one, other = GainEstimate(), GainEstimate()
    one.observe(mean_square=1.0, square_of_mean=1.0, num_gradients=1)
    assert one.gain(4.0, 1) == 1.0
    one.observe(mean_square=2.0, square_of_mean=1.0, num_gradients=2)
    other.load_state_dict(one.state_dict())
    assert other == one
