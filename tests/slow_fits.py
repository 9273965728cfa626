"""What the tests of slow likelihoods share: a short fit of them, and the least executor."""

import concurrent.futures

import jax
import numpy as np
import numpyro.distributions as dist

import qbs
from qbs.inference.nested import Dynesty

METHOD = Dynesty(num_live=40, dlogz=0.5, batch_size=8)
SHORT = Dynesty(num_live=40, dlogz=0.5, batch_size=8, max_calls=300)
PRIORS = {"x": dist.Uniform(0, 1)}
LINE = {"x": dist.Uniform(0, 1), "y": dist.Uniform(0, 1)}


def fit(function, *data, priors=PRIORS, method=METHOD, seed=1, **settings):
    target = qbs.Target(function, priors, name="box")
    return qbs.fit(target, *data, method=method, key=jax.random.key(seed), **settings)


def require_same(found, expected):
    assert found.log_evidence == expected.log_evidence
    assert found.log_evidence_error == expected.log_evidence_error
    assert found.num_likelihood_calls == expected.num_likelihood_calls
    assert found.problems == expected.problems
    np.testing.assert_array_equal(found.log_weights, expected.log_weights)
    for name, values in expected.samples.items():
        np.testing.assert_array_equal(found.samples[name], values)


class AtOnce:
    """The least that looks like an executor, in this process."""

    def submit(self, function, *args):
        future = concurrent.futures.Future()
        future.set_result(function(*args))
        return future
