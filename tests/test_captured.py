"""Models that read data from outside their arguments: globals, closures, containers, helper functions."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import qbs
from qbs.inference.mcmc import NUTS
from qbs.inference.nested import Dynesty

SHORT = NUTS(num_chains=2, num_warmup=100, num_draws=100)
TRUTH = -4.779674893729401  # log evidence of y = 1, 2, 0.5 with unit noise under theta ~ N(0, 4)
OBSERVED = np.array([1, 2, 0.5])
TABLE = {"y": np.array([1, 2, 0.5])}


def _from_global():
    numpyro.sample("y", dist.Normal(numpyro.sample("theta", dist.Normal(0, 2)), 1), obs=OBSERVED)


def _from_dictionary():
    numpyro.sample("y", dist.Normal(numpyro.sample("theta", dist.Normal(0, 2)), 1), obs=TABLE["y"])


def _residuals(theta):
    return OBSERVED - theta


def _from_helper():
    theta = numpyro.sample("theta", dist.Normal(0, 2))
    numpyro.factor("y", jnp.sum(dist.Normal(0, 1).log_prob(_residuals(theta))))


def _from_closure(y):
    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("theta", dist.Normal(0, 2)), 1), obs=y)

    return model


def _by_keyword(*, y):
    numpyro.sample("y", dist.Normal(numpyro.sample("theta", dist.Normal(0, 2)), 1), obs=y)


@pytest.mark.parametrize(
    "model",
    [
        _from_global,
        pytest.param(_from_dictionary, marks=pytest.mark.slow),
        pytest.param(_from_helper, marks=pytest.mark.slow),
        _from_closure(np.array([1, 2, 0.5])),
        pytest.param(functools.partial(_by_keyword, y=np.array([1, 2, 0.5])), marks=pytest.mark.slow),
    ],
    ids=["global", "dictionary", "helper", "closure", "partial"],
)
def test_float32_then_float64_then_float32(model, key):
    """JAX 0.10 keeps the float32 form of a captured NumPy array alive; it must not reach a float64 fit."""
    first = qbs.fit(model, method=SHORT, key=key)
    posterior = qbs.fit(model, method=Dynesty(num_live=100, dlogz=0.2), key=key)
    assert abs(posterior.log_evidence - TRUTH) < 3 * posterior.log_evidence_error
    theta = posterior.samples["theta"]
    expected = sum(-0.5 * (y - theta) ** 2 - 0.5 * math.log(2 * math.pi) for y in (1, 2, 0.5))
    np.testing.assert_allclose(posterior.stats["log_likelihood"], expected, atol=1e-10)  # truly float64
    again = qbs.fit(model, method=SHORT, key=key)
    np.testing.assert_array_equal(first.samples["theta"], again.samples["theta"])


def test_a_program_is_fitted_as_the_model_that_it_came_from(key, compile_events):
    program = qbs.reify(_from_global)
    ours, models = (
        qbs.fit(model, method=SHORT, precision="float64", key=key) for model in (program, _from_global)
    )
    np.testing.assert_array_equal(ours.samples["theta"], models.samples["theta"])
    assert ours.provenance["model"] == "_from_global"
    with compile_events() as events:
        qbs.fit(program, method=SHORT, precision="float64", key=key)
    assert events == []


def test_float32_of_the_user_does_not_reach_us(key):
    y = np.array([0.1, 0.7])
    users = jax.jit(lambda scale: scale * y)
    users(1.0)

    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("theta", dist.Normal(0, 2)), 1), obs=y)

    posterior = qbs.fit(model, method=Dynesty(num_live=100, dlogz=0.5), key=key)
    theta = posterior.samples["theta"]
    expected = sum(-0.5 * (value - theta) ** 2 - 0.5 * math.log(2 * math.pi) for value in (0.1, 0.7))
    np.testing.assert_allclose(posterior.stats["log_likelihood"], expected, atol=1e-10)
    assert users(2.0).dtype == np.float32


scale = 1.0
observed = np.zeros(5)


def _reads_globals():
    numpyro.sample("y", dist.Normal(numpyro.sample("theta", dist.Normal(0, 10)), scale), obs=observed)


@pytest.mark.parametrize("method", [SHORT, Dynesty(num_live=100, dlogz=0.5)])
def test_changed_globals_are_seen(method, key, monkeypatch, compile_events):
    """A notebook cell that sets data anew, and fits the same function again."""
    near_zero = qbs.fit(_reads_globals, method=method, key=key)
    with compile_events() as events:
        same = qbs.fit(_reads_globals, method=method, key=key)
    assert events == []
    np.testing.assert_array_equal(near_zero.samples["theta"], same.samples["theta"])
    monkeypatch.setitem(globals(), "observed", np.full(5, 7.0))
    near_seven = qbs.fit(_reads_globals, method=method, key=key)
    monkeypatch.setitem(globals(), "scale", 0.01)
    narrow = qbs.fit(_reads_globals, method=method, key=key)
    monkeypatch.undo()
    observed[:] = 3.0  # the original array, changed in place
    in_place = qbs.fit(_reads_globals, method=method, key=key)
    observed[:] = 0.0
    for posterior, mean, sd in ((near_zero, 0, 1), (near_seven, 7, 1), (narrow, 7, 0.01), (in_place, 3, 1)):
        error = sd / math.sqrt(5) / math.sqrt(min(posterior.ess, 40))
        assert abs(posterior.mean("theta") - mean) < 5 * error
        assert abs(posterior.sd("theta") - sd / math.sqrt(5)) < 5 * error
    hashes = {fit.provenance["program_sha256"] for fit in (near_zero, near_seven, in_place)}
    assert len(hashes) == 3


def test_what_cannot_be_reached_is_explained(key):
    class Table:
        y = np.array([0.1, 0.7])

    def model():
        numpyro.sample("y", dist.Normal(numpyro.sample("theta", dist.Normal(0, 2)), 1), obs=Table.y)

    users = jax.jit(lambda scale: scale * Table.y)
    users(1.0)
    with pytest.raises(qbs.errors.ModelError, match="pass it as an argument"):
        qbs.fit(model, method=Dynesty(num_live=100, dlogz=0.5), key=key)
