"""Small finite programs whose measures are known: what transformations are tried on."""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax

from qbs.effects import sample, score
from qbs.inference.transform.population import population
from qbs.program import Program

_OBSERVED = (0.2, 1.1, -0.4)


def zoo() -> dict[str, Program]:
    """Return finite programs without arguments, by name, that have between them what programs can have.

    Python loops and scans, scores inside branches, scans and both, sites in both branches of a `lax.cond`,
    rejection, and a population inside. Two particles of each have at most 4,096 outcomes.
    """
    chains = (_loop_hmm, _scan_hmm, _geometric, _branch_in_scan)
    members = (_coin, _sprinkler, _tree, _rejecting, _nested_population, *chains)
    return {(name := member.__name__[1:]): Program(member, name) for member in members}


def _coin() -> Any:
    return sample("coin", dist.Bernoulli(0.3))


def _sprinkler() -> Any:  # {0: 0.7 (0.6 * 0.1 + 0.4 * 0.5), 1: 0.3 (0.9 * 0.85 + 0.1 * 0.93)}
    rain = sample("rain", dist.Bernoulli(0.3))
    on = sample("on", dist.Bernoulli(jnp.where(rain == 1, 0.1, 0.4)))
    score(jnp.log(jnp.array([[0.1, 0.5], [0.85, 0.93]])[rain, on]), name="wet")
    return rain


def _tree() -> Any:  # {0: 0.5 * 0.5 * 0.8, 1: 0.5 * 0.5 * 0.2, 2: 0.5 * 0.4, 3: 0.5 * 0.6}
    root = sample("root", dist.Categorical(jnp.array([0.5, 0.2, 0.3])))

    def left() -> Any:
        score(jnp.log(0.5), name="half")
        return sample("left", dist.Bernoulli(0.2))

    return lax.cond(root == 0, left, lambda: 2 + sample("right", dist.Bernoulli(0.6)))


def _rejecting() -> Any:  # 0.05 on (0, 0) and (0, 1), 0.1 on (1, 0), 0.1 e^0.3 on (1, 1)
    x = sample("x", dist.Categorical(jnp.array([0.1, 0.2, 0.7])))
    score(jnp.where(x == 2, -jnp.inf, 0.0), name="wall")
    y = sample("y", dist.Bernoulli(0.5))
    score(0.3 * x * y, name="tilt")
    return x, y


def _nested_population() -> Any:  # {0: 0.6 (0.8 + 0.2 e^0.7), 1: 0.4 (0.3 + 0.7 e^0.7)}
    parameter = sample("parameter", dist.Bernoulli(0.4))

    def inner() -> None:
        score(0.7 * sample("x", dist.Bernoulli(0.2 + 0.5 * parameter)), name="y")

    population(Program(inner, "inner"), 2, resample="multinomial")()
    return parameter


def _hidden_step(x: Any, y: Any, t: Any = "") -> Any:
    x = sample(f"x{t}", dist.Bernoulli(jnp.where(x == 1, 0.8, 0.3)))
    score(dist.Normal(x, 1.0).log_prob(y), name=f"y{t}")
    return x, x


def _loop_hmm() -> Any:
    x, path = 0, []
    for t, y in enumerate(_OBSERVED):
        x, _ = _hidden_step(x, y, t)
        path.append(x)
    return jnp.stack(path)


def _scan_hmm() -> Any:
    return lax.scan(_hidden_step, 0, jnp.array(_OBSERVED))[1]


def _geometric() -> Any:  # heads before the first tails, at most 3: 0.6 (0.4 e^0.5)^k, or (0.4 e^0.5)^3
    def toss(count: Any, t: Any) -> Any:
        goes_on = (count == t) & (sample("heads", dist.Bernoulli(0.4)) == 1)
        score(jnp.where(goes_on, 0.5, 0.0), name="reward")
        return count + goes_on, None

    return lax.scan(toss, 0, jnp.arange(3))[0]


def _branch_in_scan() -> Any:  # the end of a chain that weighs its visits of 1 by exp(gain)
    def step(x: Any, gain: Any) -> Any:
        x = sample("x", dist.Bernoulli(jnp.where(x == 1, 0.7, 0.2)))

        def visit() -> Any:
            score(gain, name="visit")
            return x

        return lax.cond(x == 1, visit, lambda: x), None

    return lax.scan(step, 0, jnp.array([0.6, -0.9, 0.4]))[0]
