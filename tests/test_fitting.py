"""`qbs.fit` itself: the choice of method, names, precision, provenance, and no leaked tracers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import qbs
from qbs.inference import fitting
from qbs.inference.mcmc import NUTS
from qbs.inference.nested import Dynesty

SHORT = NUTS(num_chains=2, num_warmup=50, num_draws=50)
COARSE = Dynesty(num_live=50, dlogz=0.5)
Y = np.array([1, 2, 0.5])


def normal(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("theta", dist.Normal(0, 2)), 1), obs=y)


def counts(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("k", dist.Poisson(2.0)), 1), obs=y)


@pytest.mark.parametrize(
    ("model", "chosen", "because"),
    [
        (normal, "NUTS", "continuous"),
        (counts, "Dynesty", "discrete"),
        (
            qbs.Target(lambda p, y: -float(((y - p["theta"]) ** 2).sum()), {"theta": dist.Normal(0, 2)}),
            "Dynesty",
            "not written in JAX",
        ),
    ],
)
def test_default_method_is_chosen_and_said(model, chosen, because, key, capsys, monkeypatch):
    for name, quick in (("NUTS", SHORT), ("Dynesty", COARSE)):
        monkeypatch.setattr(fitting, name, lambda quick=quick: quick)
    posterior = qbs.fit(model, Y, key=key)
    said = capsys.readouterr().err
    assert f"is fitted by {chosen} (" in said
    assert because in said
    assert posterior.provenance["method"] == chosen
    assert (posterior.log_evidence is None) == (chosen == "NUTS")


def test_precision_is_what_the_method_needs_and_the_flag_is_untouched(key):
    for method, precision, dtype in (
        (SHORT, None, "float32"),
        (SHORT, "float64", "float64"),
        (COARSE, None, "float64"),
        (COARSE, "float32", "float32"),
    ):
        posterior = qbs.fit(normal, Y, method=method, precision=precision, key=key)
        assert posterior.provenance["precision"] == dtype
        assert posterior.samples["theta"].dtype == dtype
        assert jnp.zeros(()).dtype == np.float32
    with jax.enable_x64(True):
        posterior = qbs.fit(normal, Y, method=SHORT, key=key)
    assert posterior.samples["theta"].dtype == np.float64


def test_provenance_says_how_to_repeat_it(key):
    record = qbs.fit(normal, Y, method=SHORT, key=key, name="three points").provenance
    assert record["model"] == "three points"
    assert record["method"] == "NUTS"
    assert record["settings"]["num_draws"] == 50
    assert record["seed"] == [int(word) for word in jax.random.key_data(key)]
    assert record["versions"]["numpyro"] == numpyro.__version__
    assert record["wall_seconds"] >= record["compile_seconds"] >= 0
    other = qbs.fit(normal, Y + 1, method=SHORT, key=key).provenance
    assert other["data_sha256"] != record["data_sha256"]
    assert other["program_sha256"] == record["program_sha256"]


def test_model_kwargs_reach_the_model(key):
    def model(y, *, scale=1.0):
        numpyro.sample("y", dist.Normal(numpyro.sample("theta", dist.Normal(0, 100)), scale), obs=y)

    narrow, wide = (
        qbs.fit(model, Y, model_kwargs={"scale": scale}, method=COARSE, key=key).sd("theta")
        for scale in (0.1, 1.0)
    )
    assert 5 < wide / narrow < 20


@pytest.mark.slow
@pytest.mark.parametrize("method", [SHORT, COARSE])
def test_no_tracer_leaks(method, key):
    def model(y):  # a new function, so that everything is traced here
        theta = numpyro.sample("theta", dist.Gamma(2.0, 1.0))
        numpyro.deterministic("double", 2 * theta)
        with numpyro.plate("data", 3):
            numpyro.sample("y", dist.Normal(theta, 1), obs=y)

    with jax.checking_leaks():
        posterior = qbs.fit(model, Y, method=method, key=key)
    np.testing.assert_allclose(posterior.samples["double"], 2 * posterior.samples["theta"], rtol=1e-6)


def test_draws_outlive_saving(key, tmp_path):
    posterior = qbs.fit(normal, Y, method=COARSE, key=key)
    loaded = qbs.load(posterior.save(tmp_path / "normal.qbs"))
    np.testing.assert_array_equal(loaded.samples["theta"], posterior.samples["theta"])
    assert loaded.log_evidence == posterior.log_evidence
    assert repr(loaded) == repr(posterior)


def test_a_model_that_observes_nothing_says_so(key):
    posterior = qbs.fit(normal, None, method=COARSE, key=key)
    assert "this is its prior" in posterior.problems[-1]
    assert set(posterior.samples) == {"theta", "y"}
    assert not qbs.fit(normal, Y, method=COARSE, key=key).problems[1:]
