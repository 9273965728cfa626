"""Log likelihoods in a box whose evidence is known, and what the evidences of many seeds must be like."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import qbs


@functools.cache  # the same target is not compiled again
def box(log_likelihood, dim, low, high):
    """Return the target of a likelihood of an array `x`, uniform in a box."""
    priors = {"x": dist.Uniform(low, high).expand([dim]).to_event(1)}
    return qbs.Target(log_likelihood=lambda p: log_likelihood(p["x"]), priors=priors, name="box")


def fit_in_box(log_likelihood, dim, low, high, method, seed=0, **settings):
    posed, key = box(log_likelihood, dim, low, high), jax.random.key(seed)
    return qbs.fit(posed, method=method, key=key, progress=False, **settings)


def off_by(posterior, truth):
    """Return how many of its errors an evidence is off."""
    return abs(posterior.log_evidence - truth) / posterior.log_evidence_error


def narrow_gaussian(x):
    """Normalized, of standard deviation 0.1."""
    return -0.5 * jnp.sum((x / 0.1) ** 2) - x.size * math.log(0.1 * math.sqrt(2 * math.pi))


def shells(x):
    """Two thin spheres of radius 2: Feroz, Hobson & Bridges (2009), section 6.2."""
    distances = [jnp.linalg.norm(x.at[0].add(-centre)) for centre in (-3.5, 3.5)]
    return jnp.logaddexp(*(dist.Normal(2.0, 0.1).log_prob(distance) for distance in distances))


def rosenbrock(x):
    return -jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def eggbox(x):
    return (2 + jnp.prod(jnp.cos(x / 2))) ** 5


# Name: likelihood, dimension, box, log evidence; by quadrature but for Gaussians.
CLOSED = {
    "shells, 2": (shells, 2, (-6.0, 6.0), -1.7456),
    "shells, 5": (shells, 5, (-6.0, 6.0), -5.6736),
    "Rosenbrock, 2": (rosenbrock, 2, (-5.0, 5.0), -5.8041),
    "Rosenbrock, 3": (rosenbrock, 3, (-5.0, 5.0), -10.4770),
    "eggbox": (eggbox, 2, (0.0, 10 * math.pi), 235.85594),
} | {
    f"narrow Gaussian, {dim}": (narrow_gaussian, dim, (-1.0, 1.0), -dim * math.log(2)) for dim in (2, 3, 5, 8)
}


def require_no_bias(posteriors, truth):
    """Require that evidences of many seeds are right in the mean, and their errors cover."""
    errors = np.array([posterior.log_evidence - truth for posterior in posteriors])
    told = np.array([posterior.log_evidence_error for posterior in posteriors])
    assert abs(errors.mean()) < 3 * math.sqrt(np.mean(told**2) / len(told))
    # Of the standard deviation of so many standard normal numbers, four standard errors.
    assert abs(np.std(errors / told) - 1) < 4 / math.sqrt(2 * len(told))
    assert sum(posterior.problems == [] for posterior in posteriors) >= 0.9 * len(told)
