"""Other nested samplers on the unit cube of a model of qbs, each if it is installed; `nested.py` runs them.

All are given the compiled log likelihood that qbs reads off the model, in float64, and their own defaults but
for what is said here.

* dynesty: 500 live points, down to 0.01 nats, as `Dynesty`; one call at a time.
* nautilus: its defaults (2,000 live points, 10,000 effective draws), batches. It tells no error of the
  evidence; one over the square root of the effective draws stands for it.
* UltraNest: its defaults (400 live points, 0.5 nats), batches; from ten dimensions on its slice sampler with
  two steps for each dimension, as its documentation advises.
* BlackJAX, `nss`: 500 live points, 50 replaced at a time, down to 0.01 nats, `max(5, 2 dim)` slices for each,
  as its documentation advises.
"""

import importlib.util
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from nested_problems import Known
from scipy.special import logsumexp

from qbs.inference.nested.unit_cube import cube_log_likelihood, unit_cube
from qbs.inference.problem import pose

DLOGZ, NUM_LIVE, NUM_DELETE = 0.01, 500, 50
_CHUNK = 64
_FIRST_OF_STEPS = 10  # dimensions
MODULES = {
    "dynesty": "dynesty",
    "nautilus-sampler": "nautilus",
    "ultranest": "ultranest",
    "blackjax": "blackjax",
}


class Found(NamedTuple):
    """What a run gave.

    Attributes:
        log_evidence: In nats.
        told: Its error, as reported.
        num_calls: Of the likelihood.
        ess: Effective sample size (Kish) of the weighted draws.
        num_problems: Sentences of a result about itself.
        is_stopped: Whether calls ran out.
    """

    log_evidence: float
    told: float
    num_calls: int
    ess: float
    num_problems: int = 0
    is_stopped: bool = False


Run = Callable[[int], Found]


class Cube:
    """The log likelihood of a problem on the unit cube, compiled, which counts its calls."""

    def __init__(self, case: Known):
        with jax.enable_x64(True):
            bound = pose(case.model, ()).bound
            cube = unit_cube(bound)
        self.dim, self.num_calls = cube.dim, 0
        self.one = partial(cube_log_likelihood, bound, cube)
        self._single, self._many = jax.jit(self.one), jax.jit(jax.vmap(self.one))

    def single(self, point: np.ndarray) -> float:
        """Return the log likelihood at a point."""
        self.num_calls += 1
        with jax.enable_x64(True):
            return max(float(self._single(point)), -1e300)

    def many(self, points: np.ndarray) -> np.ndarray:
        """Return the log likelihoods at points, evaluated in padded chunks."""
        self.num_calls += len(points)
        padded = np.concatenate([points, np.full((-len(points) % _CHUNK, self.dim), 0.5)])
        with jax.enable_x64(True):
            parts = [self._many(padded[start : start + _CHUNK]) for start in range(0, len(padded), _CHUNK)]
            return np.maximum(np.concatenate([np.asarray(part) for part in parts])[: len(points)], -1e300)


def with_dynesty(case: Known, max_calls: int) -> Run:
    from dynesty import NestedSampler

    cube = Cube(case)

    def run(seed: int) -> Found:
        cube.num_calls = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = NestedSampler(
                cube.single, lambda u: u, cube.dim, nlive=NUM_LIVE, rstate=np.random.default_rng(seed)
            )
            sampler.run_nested(dlogz=DLOGZ, maxcall=max_calls, print_progress=False)
        found = sampler.results
        return Found(
            float(found.logz[-1]),
            float(found.logzerr[-1]),
            cube.num_calls,
            kish(found.logwt),
            is_stopped=cube.num_calls >= max_calls,
        )

    return run


def with_nautilus(case: Known, max_calls: int) -> Run:
    from nautilus import Sampler

    cube = Cube(case)

    def run(seed: int) -> Found:
        cube.num_calls = 0
        sampler = Sampler(
            lambda u: u, cube.many, cube.dim, vectorized=True, pass_dict=False, pool=None, seed=seed
        )
        is_done = sampler.run(n_like_max=max_calls)
        told = 1 / math.sqrt(sampler.n_eff)
        return Found(float(sampler.log_z), told, cube.num_calls, float(sampler.n_eff), is_stopped=not is_done)

    return run


def with_ultranest(case: Known, max_calls: int) -> Run:
    import logging

    import ultranest
    from ultranest import stepsampler

    logging.disable(logging.INFO)  # its own loggers are set anew in each run
    cube = Cube(case)

    def run(seed: int) -> Found:
        cube.num_calls = 0
        np.random.seed(seed)
        names = [f"x{index}" for index in range(cube.dim)]
        sampler = ultranest.ReactiveNestedSampler(names, cube.many, lambda u: u, vectorized=True)
        if cube.dim >= _FIRST_OF_STEPS:
            sampler.stepsampler = stepsampler.SliceSampler(
                nsteps=2 * cube.dim, generate_direction=stepsampler.generate_mixture_random_direction
            )
        found = sampler.run(max_ncalls=max_calls, show_status=False, viz_callback=False)
        return Found(
            float(found["logz"]),
            float(found["logzerr"]),
            cube.num_calls,
            float(found["ess"]),
            is_stopped=cube.num_calls >= max_calls,
        )

    return run


def with_blackjax(case: Known, max_calls: int) -> Run:
    import blackjax
    from blackjax.ns.utils import ess, finalise, log_weights

    cube = Cube(case)

    def log_likelihood(point: jax.Array) -> jax.Array:
        # The slices end where the likelihood does; beyond the cube there is none.
        is_inside = jnp.all((point > 0) & (point < 1))
        return jnp.where(is_inside, cube.one(jnp.clip(point, 1e-12, 1 - 1e-12)), -jnp.inf)

    algorithm = blackjax.nss(
        logprior_fn=lambda _: jnp.zeros(()),
        loglikelihood_fn=log_likelihood,
        num_inner_steps=max(5, 2 * cube.dim),
        num_delete=NUM_DELETE,
    )
    init, step = jax.jit(algorithm.init), jax.jit(algorithm.step)

    def run(seed: int) -> Found:
        with jax.enable_x64(True):
            first, key = jax.random.split(jax.random.key(seed))
            state = init(jax.random.uniform(first, (NUM_LIVE, cube.dim)))
            num_calls, dead = NUM_LIVE, []
            while num_calls < max_calls:
                key, own = jax.random.split(key)
                state, info = step(own, state)
                slices = info.update_info  # two ends, those stepped out to, and what was tried between
                num_calls += int(jnp.sum(2 + slices.num_expansions + slices.num_shrink))
                dead.append(info)
                if jnp.log1p(jnp.exp(state.integrator.logZ_live - state.integrator.logZ)) < DLOGZ:
                    break
            points = finalise(state, dead, update_info=False)
            values = logsumexp(np.asarray(log_weights(key, points)), axis=0)
            return Found(
                float(values.mean()),
                float(values.std()),
                num_calls,
                float(ess(key, points)),
                is_stopped=num_calls >= max_calls,
            )

    return run


def kish(log_weights: np.ndarray) -> float:
    """Return the effective sample size of weights."""
    return float(np.exp(2 * logsumexp(log_weights) - logsumexp(2 * log_weights)))


PEERS: dict[str, Callable[[Known, int], Run]] = {
    "dynesty": with_dynesty,
    "nautilus-sampler": with_nautilus,
    "ultranest": with_ultranest,
    "blackjax": with_blackjax,
}


def is_installed(name: str) -> bool:
    """Return whether a peer can be imported."""
    if importlib.util.find_spec(MODULES[name]) is None:
        return False
    return name != "blackjax" or importlib.util.find_spec("blackjax.ns.nss") is not None
