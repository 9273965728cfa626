"""Problems whose log evidence is known, by algebra, quadrature or sampling; `nested.py` runs them."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist

import qbs
from qbs.models.cosmology import Analysis

DATA = ("cc", "desi_dr2", "bbn", "pantheon_plus")
# Log evidences and their standard errors, by `reference_evidences.py`.
REFERENCE = {"LCDM": (-719.5567, 0.0004), "CPL": (-722.5053, 0.0010), "oCPL": (-724.1048, 0.0016)}


class Known(NamedTuple):
    """A problem.

    Attributes:
        model: What `qbs.fit` takes.
        truth: Its log evidence, in nats.
    """

    model: Any
    truth: float


def gaussian(x):
    return jnp.sum(dist.Normal(0.0, 1.0).log_prob(x))


def narrow(x):
    return jnp.sum(dist.Normal(0.0, 0.1).log_prob(x))


def shells(x):
    """Two spheres of radius 2 and thickness 0.1: Feroz, Hobson & Bridges (2009), section 6.2."""
    distances = [jnp.linalg.norm(x.at[0].add(-centre)) for centre in (-3.5, 3.5)]
    return jnp.logaddexp(*(dist.Normal(2.0, 0.1).log_prob(distance) for distance in distances))


def eggbox(x):
    return (2 + jnp.prod(jnp.cos(x / 2))) ** 5


def rosenbrock(x):
    return -jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


def funnel(x):
    """Neal (2003), in a box: the first coordinate is the log of the others' variance."""
    return dist.Normal(0, 3).log_prob(x[0]) + dist.Normal(0, jnp.exp(x[0] / 2)).log_prob(x[1:]).sum()


def half(x):
    return jnp.where(x[0] < 0.5, 0.0, -jnp.inf)


def _boxed(log_likelihood: Callable, low: float, high: float, dim: int, truth: float) -> Known:
    prior = dist.Uniform(low, high).expand([dim]).to_event(1)
    return Known(qbs.Target(lambda sites: log_likelihood(sites["x"]), {"x": prior}), truth)


def _funnel(dim: int, truth: float) -> Known:
    priors = {"v": dist.Uniform(-12, 12), "x": dist.Uniform(-30, 30).expand([dim - 1]).to_event(1)}
    return Known(
        qbs.Target(lambda sites: funnel(jnp.concatenate([sites["v"][None], sites["x"]])), priors), truth
    )


def closed_forms() -> dict[str, Known]:
    """Return the problems that need no data, by name."""
    found = {}
    for dim in (2, 5, 10):
        found[f"gaussian_{dim}"] = _boxed(gaussian, -10, 10, dim, -dim * math.log(20))
        found[f"narrow_{dim}"] = _boxed(narrow, -1, 1, dim, -dim * math.log(2))
    for dim, truth in ((2, -1.7456), (5, -5.6736), (10, -14.5905), (20, -36.0865), (30, -60.1278)):
        found[f"shells_{dim}"] = _boxed(shells, -6, 6, dim, truth)
    found["eggbox"] = _boxed(eggbox, 0, 10 * math.pi, 2, 235.85594)
    for dim, truth in ((2, -5.8041), (3, -10.4770), (5, -19.7324), (10, -43.1084)):
        found[f"rosenbrock_{dim}"] = _boxed(rosenbrock, -5, 5, dim, truth)
    for dim, truth in ((2, -7.2825), (5, -19.5787), (10, -40.0594)):
        found[f"funnel_{dim}"] = _funnel(dim, truth)
    found["half"] = _boxed(half, 0, 1, 2, -math.log(2))
    return found


def real(name: str, data_path: str) -> Known:
    """Return a dark-energy model on chronometers, DESI DR2, Pantheon+ and a prior from BBN."""
    return Known(Analysis(name, DATA, data_path=data_path).numpyro_model, REFERENCE[name][0])
