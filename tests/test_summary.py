"""The table of a posterior, against NumPy and ArviZ."""

import numpy as np
import pytest
import scipy.stats as st
from rich.table import Table

from qbs.inference.results.summary import Summary, moments, render, summarise

SEED = 20240229


def test_unweighted_moments_are_numpys():
    draws = np.random.default_rng(SEED).gamma(2.0, size=(4, 333)).astype(np.float32)
    found = moments(draws, None)
    wide = draws.astype(np.float64)
    expected = [wide.mean(), wide.std(), *np.quantile(wide, [0.05, 0.5, 0.95])]
    assert list(found) == ["mean", "sd", "q05", "q50", "q95"]
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-12)


def test_weighted_quantiles_are_those_of_the_weighted_steps():
    values = np.array([[3.0, 1.0, 2.0, 100.0]])
    found = moments(values, np.log([[0.45, 0.3, 0.25, 1e-12]]))
    assert [found[q] for q in ("q05", "q50", "q95")] == [1.0, 2.0, 3.0]
    np.testing.assert_allclose(found["mean"], 2.15, rtol=1e-9)


def test_integer_weights_count_copies():
    rng = np.random.default_rng(SEED)
    values, counts = rng.normal(size=(1, 200)), rng.integers(1, 9, (1, 200))
    found = moments(values, np.log(counts) - 77)
    copies = np.repeat(values[0], counts[0])
    expected = [copies.mean(), copies.std(), *np.quantile(copies, [0.05, 0.5, 0.95], method="inverted_cdf")]
    np.testing.assert_allclose(list(found.values()), expected, rtol=1e-9)


@pytest.mark.parametrize("extreme", [1e300, np.inf, -np.inf, np.nan])
def test_draws_of_weight_zero_do_not_count(extreme):
    found = moments(np.array([[1.0, extreme, 2.0]]), np.array([[0.0, -np.inf, 0.0]]))
    assert list(found.values()) == [1.5, 0.5, 1.0, 1.0, 2.0]


def test_weighted_quantiles_of_a_known_law():
    """Draws from N(0, 2) weighted to N(1, 1), each quantile within four of its standard errors."""
    x = np.random.default_rng(SEED).normal(0, 2, (1, 20_000))
    log_weights = st.norm(1, 1).logpdf(x) - st.norm(0, 2).logpdf(x)
    found, weights = moments(x, log_weights), np.exp(log_weights)
    weights /= weights.sum()
    for name, q in {"q05": 0.05, "q50": 0.5, "q95": 0.95}.items():
        truth = st.norm(1, 1).ppf(q)
        error = np.sqrt(np.sum(weights**2 * ((x < truth) - q) ** 2)) / st.norm(1, 1).pdf(truth)
        assert abs(found[name] - truth) < 4 * error
        assert error < 0.05


def test_infinite_and_nan_draws_do_not_warn():
    assert np.isnan(moments(np.array([[1.0, np.nan, 2.0]]), None)["mean"])
    assert moments(np.array([[1.0, np.inf, 2.0]]), None)["mean"] == np.inf
    both = moments(np.array([[-np.inf, np.inf, 2.0, 3.0]]), None)
    assert np.isnan(both["mean"])


def test_diagnostics_are_those_of_arviz():
    import arviz_stats

    from qbs import Posterior

    samples = {"x": np.random.default_rng(SEED).normal(size=(4, 200)).cumsum(axis=1)}
    found, tree = summarise(samples, None).rows["x"], Posterior(samples).to_datatree()
    table = arviz_stats.summary(tree, round_to="none").loc["x"]
    for column in ("mcse_mean", "ess_bulk", "r_hat"):
        np.testing.assert_allclose(found[column], float(table[column]), rtol=1e-10)
    tail = arviz_stats.ess(tree, method="tail", prob=(0.05, 0.95))["x"]  # the summary's are 5.5 and 94.5 %
    np.testing.assert_allclose(found["ess_tail"], float(tail), rtol=1e-10)
    assert found["r_hat"] > 1.05


def test_weighted_rows_have_no_chain_diagnostics():
    rows = summarise({"x": np.zeros((1, 9))}, np.zeros((1, 9))).rows
    assert list(rows["x"]) == ["mean", "sd", "q05", "q50", "q95"]


def test_frame():
    samples = {"a": np.arange(8.0).reshape(2, 4), "v": np.arange(16.0).reshape(2, 4, 2)}
    frame = summarise(samples, None).frame
    assert list(frame.index) == ["a", "v[0]", "v[1]"]
    assert frame.loc["a", "mean"] == 3.5
    assert frame.loc["v[1]", "q50"] == 8.0
    html = summarise(samples, None)._repr_html_()
    assert "v[1]" in html
    assert "3.5" in html


@pytest.mark.parametrize(
    ("mean", "sd", "shown"),
    [
        (3.14159265, 0.01, "3.1416"),
        (3.14159265, 0.5, "3.142"),
        (1234.5678, 35.0, "1234.6"),
        (1234.5678, 3500.0, "1235"),
        (0.000123456, 2e-6, "0.00012346"),
        (1e12, 1e9, "1e+12"),
        (5.0, 0.0, "5"),
        (5.0, float("nan"), "5"),
        (-2.0, 1.0, "-2.00"),
        (float("nan"), 1.0, "-"),
        (float("inf"), float("nan"), "-"),
    ],
)
def test_digits_follow_the_standard_deviation(mean, sd, shown):
    text = repr(Summary({"x": {"mean": mean, "sd": sd}}))
    assert text.splitlines()[3].split("│")[2].strip() == shown


def test_diagnostic_columns_are_short():
    row = {"mean": 0.0, "sd": 1.0, "mcse_mean": 0.01234, "ess_bulk": 1234.56, "r_hat": 1.00049}
    cells = [cell.strip() for cell in repr(Summary({"x": row})).splitlines()[3].split("│")[4:7]]
    assert cells == ["0.01", "1235", "1.000"]


def test_title_and_names_are_no_markup():
    text = repr(Summary({"b[red]": {"mean": 0.0, "sd": 1.0}}, "model [bold]x[/bold]"))
    assert "model [bold]x[/bold]" in text
    assert "b[red]" in text


def test_an_empty_table():
    assert "parameter" in repr(summarise({"none": np.zeros((2, 5, 0))}, None))


def test_render_to_a_width():
    table = Table("one", "two")
    table.add_row("a" * 80, "b" * 80)
    assert max(map(len, render(table, width=60).splitlines())) <= 60
