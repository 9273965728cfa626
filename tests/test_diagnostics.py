"""Diagnostics: numbers against ArviZ and closed forms, sentences against what was planted."""

import numpy as np
import pytest

from qbs.inference.results.diagnostics import (
    chain_problems,
    chain_statistics,
    is_constant,
    kish_ess,
    scalars,
    weight_problems,
)

SEED = 20240229
STATISTICS = ("mcse_mean", "ess_bulk", "ess_tail", "r_hat")


@pytest.fixture
def good():
    return np.random.default_rng(SEED).normal(size=(4, 500))


# Numbers


def test_scalars_are_named_by_their_index():
    values = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    flat = scalars({"a": np.zeros((2, 3)), "m": values, "e": np.zeros((2, 3, 0))})
    assert list(flat) == ["a", "m[0,0]", "m[0,1]", "m[1,0]", "m[1,1]"]
    np.testing.assert_array_equal(flat["m[1,0]"], values[:, :, 1, 0])


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([1, 1, 1, 1], 4), ([1, 0, 0], 1), ([1, 1, 0], 2), ([3, 1], 1.6), ([1e-300, 1e-300], 2)],
)
@pytest.mark.parametrize("offset", [0.0, -1e6, 1e6])
def test_kish_ess(weights, expected, offset):
    with np.errstate(divide="ignore"):
        found = kish_ess(np.log(weights) + offset)
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_statistics_of_independent_draws(good):
    found = chain_statistics(good)
    assert 0.99 < found["r_hat"] < 1.01
    # The ESS of 2000 independent draws is 2000; its own relative error is about sqrt(2 * 2 / 2000).
    assert abs(found["ess_bulk"] / 2000 - 1) < 4 * np.sqrt(4 / 2000)
    np.testing.assert_allclose(found["mcse_mean"], good.std() / np.sqrt(2000), rtol=0.1)


def test_statistics_of_an_autoregression():
    """The ESS of AR(1) with coefficient 0.8 is N (1 - 0.8) / (1 + 0.8)."""
    rng = np.random.default_rng(SEED)
    chains = np.zeros((4, 20_000))
    chains[:, 0] = rng.normal(size=4)
    for t in range(1, 20_000):
        chains[:, t] = 0.8 * chains[:, t - 1] + 0.6 * rng.normal(size=4)
    np.testing.assert_allclose(chain_statistics(chains)["ess_bulk"], 80_000 * 0.2 / 1.8, rtol=0.1)


def test_statistics_are_those_of_arviz(good):
    import arviz_stats

    from qbs import Posterior

    chains = good.cumsum(axis=1) + np.arange(4)[:, None]
    tree = Posterior({"x": chains}).to_datatree()
    table = arviz_stats.summary(tree, round_to="none").loc["x"].to_dict()
    table["ess_tail"] = arviz_stats.ess(tree, method="tail", prob=(0.05, 0.95))["x"]
    found = chain_statistics(chains)
    np.testing.assert_allclose(
        [found[s] for s in STATISTICS], [float(table[s]) for s in STATISTICS], rtol=1e-10
    )


@pytest.mark.parametrize(
    "draws",
    [
        np.ones((4, 100)),
        np.array([[1.0, np.nan, 2.0, 3.0, 4.0]]),
        np.array([[1.0, np.inf, 2.0, 3.0, 4.0]]),
        np.array([[1.0, 2.0, 3.0]]),
        np.array([[1.0]]),
    ],
    ids=["constant", "NaN", "inf", "three draws", "one draw"],
)
def test_no_statistics_where_there_are_none(draws):
    found = chain_statistics(draws)
    assert tuple(found) == STATISTICS
    assert np.all(np.isnan(list(found.values())))


def test_chains_that_stand_still_apart_have_infinite_r_hat():
    assert chain_statistics(np.repeat([[1.0], [2.0]], 10, axis=1))["r_hat"] == np.inf


def test_is_constant():
    assert is_constant(np.full((2, 3), 7))
    assert not is_constant(np.array([[7, 7], [7, 8]]))


# Sentences


def test_good_chains_have_no_problems(good):
    stats = {"diverging": np.zeros((4, 500), bool), "reached_max_depth": np.zeros((4, 500), bool)}
    assert chain_problems({"x": good, "v": np.stack([good, 2 * good], -1)}, stats) == []


def test_chains_apart(good):
    (sentence, ess) = chain_problems({"x": good, "far": good + 3 * np.arange(4)[:, None]}, {})
    assert "R-hat is above 1.01 for far (" in sentence
    assert " x (" not in sentence
    assert "below 400 for far (" in ess


def test_the_worst_come_first_and_few_are_listed(good):
    shifts = {f"p{i}": good + 0.5 * i * np.arange(4)[:, None] for i in range(9)}
    sentence = chain_problems(shifts, {})[0]
    assert sentence.index("p8 (") < sentence.index("p7 (") < sentence.index("p4 (")
    assert "p3 (" not in sentence
    assert "and 3 more" in sentence


def test_few_effective_draws(good):
    slow = np.repeat(good[:, :25], 20, axis=1)
    found = chain_problems({"slow": slow, "x": good}, {})
    (sentence,) = [one for one in found if "effective" in one]
    assert "below 400 for slow (" in sentence
    number = float(sentence.split("slow (")[1].split(")")[0])
    statistics = chain_statistics(slow)
    assert number == round(min(statistics["ess_bulk"], statistics["ess_tail"]))


def test_a_single_chain(good):
    (sentence,) = chain_problems({"x": good[:1]}, {})
    assert "single chain" in sentence


def test_stuck_chains(good):
    stuck = good.copy()
    stuck[[1, 3]] = 0.5
    found = chain_problems({"x": stuck, "v": np.stack([stuck] * 2, -1)}, {})
    assert "Chain 1, 3 did not move at all" in found[0]
    assert not any("did not move" in one for one in chain_problems({"x": stuck, "other": good}, {}))


def test_a_constant_parameter_is_no_problem(good):
    assert chain_problems({"x": good, "constant": np.ones((4, 500))}, {}) == []


def test_divergences_and_depth(good):
    diverging, deep = np.zeros((4, 500), bool), np.zeros((4, 500), bool)
    diverging[0, :5] = True
    deep[:, :10] = True
    found = chain_problems({"x": good}, {"diverging": diverging, "reached_max_depth": deep})
    assert "5 divergent transitions (0.2% of the draws)" in found[0]  # 0.25 %, to even
    assert "2% of the trajectories reached the maximum tree depth" in found[1]
    deep[:, 1:] = False
    assert len(chain_problems({"x": good}, {"reached_max_depth": deep})) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_draws_that_are_not_finite_are_told(good, bad):
    derived = good.copy()
    derived[0, :7] = bad
    (sentence,) = chain_problems({"x": good, "log_ratio": derived}, {})
    assert "NaN or infinite draws" in sentence
    assert "log_ratio (7)" in sentence


@pytest.mark.parametrize("count", [1, 2, 3])
def test_too_few_draws_to_judge(good, count):
    found = chain_problems({"x": good[:, :count]}, {})
    assert found == [f"Only {count} draws per chain: too few to judge convergence."]


def test_empty_parameters():
    assert "no number" in chain_problems({"e": np.zeros((2, 5, 0))}, {})[0]


def test_weight_problems():
    assert weight_problems(np.zeros(100)) == []
    (sentence,) = weight_problems(np.zeros(99))
    assert "is 99:" in sentence
    assert weight_problems(np.zeros(99), min_ess=50.0) == []
    (sentence,) = weight_problems(np.r_[np.zeros(3), np.full(5000, -np.inf)])
    assert "is 3:" in sentence
