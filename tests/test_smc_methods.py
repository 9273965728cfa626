"""Particle filter, PMMH, particle Gibbs and SMC^2 through `qbs.fit`, against Kalman and quadrature."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import lax
from kalman import kalman
from scipy.special import logsumexp
from scipy.stats import halfnorm, norm

import qbs
from qbs.errors import LikelihoodError, ModelError
from qbs.inference.checkpoint import Keeper
from qbs.inference.problem import pose
from qbs.inference.progress import ProgressLine
from qbs.inference.smc import PMMH, SMC2, ParticleFilter, ParticleGibbs
from qbs.inference.smc.islands import combined_evidence, count_scores, effective_number
from qbs.inference.smc.split import find_parameters, split

YS = np.sin(np.arange(20.0))
FILTER = ParticleFilter(num_particles=200, num_paths=50)
MARGINAL = PMMH(num_particles=50, num_warmup=300, num_draws=1000)
GIBBS = ParticleGibbs(num_particles=10, num_warmup=100, num_draws=250)
SQUARED = SMC2(num_particles=50, num_inner=50)


def series(ys):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(0.9 * x, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    lax.scan(step, 0.0, ys)


def unknown_coefficient(ys):
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(phi * x, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    lax.scan(step, 0.0, ys)


def truth_of_coefficient(ys):
    """Return log evidence, mean and standard deviation of phi, and mean of the last state, by quadrature."""
    phi, weight = np.polynomial.legendre.leggauss(60)
    found = [kalman(ys, p) for p in phi]
    log_masses = np.array([log_evidence for log_evidence, *_ in found]) + np.log(weight / 2)
    masses = np.exp(log_masses - logsumexp(log_masses))
    mean = masses @ phi
    last = masses @ np.array([mean for _, mean, _ in found])
    return logsumexp(log_masses), mean, math.sqrt(masses @ (phi - mean) ** 2), last


P = np.array([[0.8, 0.15, 0.05], [0.1, 0.8, 0.1], [0.05, 0.15, 0.8]])
MU = np.array([-1.0, 0.0, 1.0])


def hidden_markov(ys):
    def step(logits, y):
        state = numpyro.sample("state", dist.Categorical(logits=logits))
        numpyro.sample("y", dist.Normal(jnp.asarray(MU)[state], 0.5), obs=y)
        return jnp.log(jnp.asarray(P))[state], None

    lax.scan(step, jnp.zeros(3), ys)


def require_honest_errors(posteriors, log_evidence):
    """The errors of the log evidence, in units of those reported, have the spread that they should have."""
    scores = np.array([(p.log_evidence - log_evidence) / p.log_evidence_error for p in posteriors])
    assert 0.5 < scores.std(ddof=1) < 1.6, scores
    # 7 degrees of freedom: the standard deviation of Student's t is sqrt(7/5).
    assert abs(scores.mean()) < 4 * math.sqrt(7 / 5 / len(scores)), scores


def test_particle_filter_against_kalman(key):
    posteriors = [qbs.fit(series, YS, method=FILTER, key=own) for own in jax.random.split(key, 20)]
    log_evidence, mean, variance = kalman(YS)
    assert log_evidence == pytest.approx(-25.041647827763214)
    require_honest_errors(posteriors, log_evidence)
    one = posteriors[0]
    assert one.shape == (8, 50)
    assert one.samples["x"].shape == (8, 50, 20)
    assert one.samples["x"].dtype == np.float64
    assert one.weights.sum() == pytest.approx(1)
    assert one.num_likelihood_calls == 8 * 200 * 20
    last = np.array([[p.mean("x")[-1], p.sd("x")[-1] ** 2] for p in posteriors])
    errors = last.std(0, ddof=1) / math.sqrt(len(last))
    bias = np.array([0.0, variance / 50])  # few paths in each island, and weights that are estimated
    assert np.all(np.abs(last.mean(0) - [mean, variance]) < 4 * errors + bias)


def test_smoothed_states_against_the_joint_gaussian(key):
    found = np.array(
        [qbs.fit(series, YS, method=FILTER, key=own).mean("x") for own in jax.random.split(key, 10)]
    )
    prior = np.array(
        [[sum(0.9 ** (i + j - 2 * k) for k in range(min(i, j) + 1)) for j in range(20)] for i in range(20)]
    )
    expected = prior @ np.linalg.solve(prior + 0.25 * np.eye(20), YS)
    errors = found.std(0, ddof=1) / math.sqrt(len(found))
    # 20 means with 9 degrees of freedom each: the largest t exceeds 7 once in some 1000 times.
    assert np.max(np.abs(found.mean(0) - expected) / errors) < 7


def test_same_key_same_result(key):
    first, again = (qbs.fit(series, YS, method=FILTER, key=key) for _ in range(2))
    assert first.log_evidence == again.log_evidence
    np.testing.assert_array_equal(first.samples["x"], again.samples["x"])


@pytest.mark.parametrize("method", [FILTER])
def test_new_data_of_the_same_shape_does_not_compile(method, key, compile_events):
    qbs.fit(series, YS, method=method, key=key)
    with compile_events() as events:
        qbs.fit(series, np.cos(YS), method=method, key=key)
    assert events == []


def test_hidden_markov_model_against_forward_sums(key):
    ys = np.sin(0.3 * np.arange(50))
    method = ParticleFilter(num_particles=500, resample="multinomial", threshold=1.0)
    posterior = qbs.fit(hidden_markov, ys, method=method, key=key)
    truth = -37.35296529483584
    assert abs(posterior.log_evidence - truth) < 4 * math.sqrt(7 / 5) * posterior.log_evidence_error
    states = posterior.samples["state"]
    assert states.dtype.kind == "i"
    last = np.array([posterior.weights[states[..., -1] == k].sum() for k in range(3)])
    expected = np.array([0.0000728, 0.0528172, 0.9471100])
    errors = np.sqrt(expected * (1 - expected) * (1 / 800 + 1 / 4000) * 2)
    assert np.all(np.abs(last - expected) < 4 * errors + 1e-3)


def test_few_particles_are_a_problem(key):
    posterior = qbs.fit(series, 5 * YS, method=ParticleFilter(num_particles=10, num_islands=4), key=key)
    said = " ".join(posterior.problems)
    assert "The early states come from only" in said
    assert "distinct ancestors" in said
    assert "The islands disagree" in said


def test_a_model_without_states_is_importance_sampling_and_says_so(key):
    def normal_normal(y):
        theta = numpyro.sample("theta", dist.Normal(0, 2))
        numpyro.sample("y", dist.Normal(theta, 1), obs=y)

    posterior = qbs.fit(normal_normal, np.array([1.0, 2.0, 0.5]), method=ParticleFilter(), key=key)
    error = math.sqrt(7 / 5) * posterior.log_evidence_error
    assert abs(posterior.log_evidence + 4.779674893729401) < 4 * error
    assert any("'theta' are drawn from the prior once and never moved" in p for p in posterior.problems)


def impossible(ys):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        numpyro.factor("cut", jnp.where(x > 1e3 + y, 0.0, -jnp.inf))
        return x, None

    lax.scan(step, 0.0, ys)


def not_a_number(ys):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        numpyro.factor("root", jnp.log(x + y))
        return x, None

    lax.scan(step, 0.0, ys)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (impossible, "zero weight on each of 2 islands, at the score 'cut'"),
        (not_a_number, "the score 'root' of 'not_a_number' is NaN or infinite"),
    ],
)
def test_bad_scores_are_named(model, words, key):
    with pytest.raises(LikelihoodError, match=words):
        qbs.fit(model, YS[:3], method=ParticleFilter(num_particles=10, num_islands=2), key=key)


class _InterruptingLine(ProgressLine):
    """Presses Ctrl-C when the status has certain words."""

    def __init__(self, words):
        super().__init__("test", show=False)
        self._words = words

    @property
    def is_due(self):
        return True

    def update(self, status, fraction=None, remaining=None):
        if self._words in status:
            raise KeyboardInterrupt


def test_interrupted_islands(key):
    with jax.enable_x64(True):
        posterior = FILTER.run(pose(series, (YS,)), key, _InterruptingLine("island 4"), Keeper())
        with pytest.raises(KeyboardInterrupt):
            FILTER.run(pose(series, (YS,)), key, _InterruptingLine("island 1"), Keeper())
    assert posterior.problems[0] == "Interrupted after 4 of 8 islands: those are kept here."
    assert posterior.shape == (4, 50)


@pytest.mark.parametrize("method", [ParticleFilter(), PMMH(), ParticleGibbs(), SMC2()])
def test_what_does_not_suit_is_refused(method, key):
    def nothing_observed():
        lax.scan(lambda x, _: (numpyro.sample("x", dist.Normal(x, 1.0)), None), 0.0, None, length=3)

    with pytest.raises(ModelError, match="observes nothing"):
        qbs.fit(nothing_observed, method=method, key=key)
    black_box = qbs.Target(lambda p: math.sin(float(p["x"])), {"x": dist.Normal(0, 1)})
    with pytest.raises(ModelError, match="not written in JAX"):
        qbs.fit(black_box, method=method, key=key)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (ParticleFilter, {"num_particles": 0}),
        (ParticleFilter, {"num_islands": 1}),
        (ParticleFilter, {"resample": "best"}),
        (ParticleFilter, {"threshold": 1.5}),
        (PMMH, {"scale": -1.0}),
        (PMMH, {"num_warmup": -1}),
        (PMMH, {"parameters": ()}),
        (ParticleGibbs, {"num_particles": 1}),
        (ParticleGibbs, {"num_parameter_steps": 0}),
        (SMC2, {"num_moves": 0}),
        (SMC2, {"num_islands": 1}),
    ],
)
def test_bad_settings_name_themselves(method, settings):
    with pytest.raises(ValueError, match=f"{method.__name__}: {next(iter(settings))}"):
        method(**settings)


def two_parameters(ys):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    numpyro.deterministic("variance", scale**2)
    numpyro.factor("penalty", -scale)
    mean = numpyro.sample("mean", dist.Normal(0.0, scale**2))

    def step(x, y):
        x = numpyro.sample("x", dist.Normal(mean + x, scale))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    lax.scan(step, 0.0, ys)


def test_a_split_has_the_density_of_the_whole(key):
    ys = jnp.asarray(YS[:3])
    program = qbs.reify(two_parameters)
    trace = {"scale": jnp.asarray(0.7), "mean": jnp.asarray(0.2), "x": jnp.asarray([0.1, -0.3, 0.5])}
    prior, rest = split(program, ("scale", "mean"))
    parameters = {name: trace[name] for name in ("scale", "mean")}
    total = qbs.log_density(prior)(trace, ys) + qbs.log_density(rest)(trace, parameters, ys)
    assert float(total) == pytest.approx(float(qbs.log_density(program)(trace, ys)), rel=1e-6)
    drawn = qbs.run(prior)(key, ys)
    assert set(drawn.trace) == {"scale", "mean"}
    assert drawn.log_weight == 0  # scores of parameters belong to the rest
    states = jax.vmap(lambda own: qbs.run(rest)(own, parameters, ys).value["x"])(jax.random.split(key, 3))
    assert states.shape == (3, 3)


def backwards(ys):
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, 1.0))
        numpyro.sample("y", dist.Normal(x, 0.5), obs=y)
        return x, None

    last, _ = lax.scan(step, 0.0, ys)
    numpyro.sample("after", dist.Normal(last, 1.0))


def mixed(ys):
    which = numpyro.sample("which", dist.Bernoulli(0.5))
    numpyro.sample("phi", dist.Normal(0.0, 1.0))
    series(ys + which)


@pytest.mark.parametrize(
    ("model", "wanted", "words"),
    [
        (unknown_coefficient, ("rho",), r"parameters names \['rho'\]; the sites of .* are \['phi', 'x'\]"),
        (unknown_coefficient, ("x",), r"parameters names \['x'\], drawn at each step of a scan"),
        (series, None, "every site of 'series' stands in a scan"),
        (backwards, None, "'after', depends on 'x', which is not among parameters"),
        (mixed, None, "'which' of 'mixed' is discrete"),
        (
            lambda y: numpyro.sample("y", dist.Normal(numpyro.sample("m", dist.Normal()), 1), obs=y),
            None,
            "no site of",
        ),
    ],
)
def test_parameters_that_cannot_be_are_explained(model, wanted, words):
    with pytest.raises(ModelError, match=words):
        find_parameters(pose(model, (YS,)), wanted, "PMMH")


def test_parameters_are_found_in_the_order_of_the_model():
    assert find_parameters(pose(two_parameters, (YS,)), None, "PMMH") == ("scale", "mean")
    assert find_parameters(pose(mixed, (YS,)), ("phi",), "PMMH") == ("phi",)


def test_evidence_of_islands():
    log_evidence, error = combined_evidence(np.log([1.0, 3.0]) - 1000)
    assert log_evidence == pytest.approx(math.log(2) - 1000)
    assert error == pytest.approx(math.sqrt(2) / 2 / math.sqrt(2))
    log_evidence, error = combined_evidence(np.array([-np.inf, 0.0]))
    assert log_evidence == pytest.approx(math.log(0.5))
    assert effective_number(
        np.array([[1, 1], [2, 3]]), np.log([[0.25, 0.25], [0.25, 0.25]])
    ) == pytest.approx(8 / 3)
    assert count_scores(qbs.reify(two_parameters).stage(jnp.asarray(YS)).jaxpr) == 21


def require_posterior(posterior, ys):
    """Compare phi and the last state with quadrature, by the Monte Carlo errors of the chains."""
    _, mean, sd, last = truth_of_coefficient(ys)
    table = posterior.summary().frame
    assert abs(posterior.mean("phi") - mean) < 4 * table.loc["phi", "mcse_mean"]
    assert abs(posterior.mean("x")[-1] - last) < 4 * table.loc[f"x[{len(ys) - 1}]", "mcse_mean"]
    ess = table.loc["phi", "ess_tail"]
    assert abs(posterior.sd("phi") ** 2 - sd**2) < 4 * sd**2 * math.sqrt(2 / ess)
    assert posterior.log_evidence is None
    assert posterior.samples["phi"].dtype == np.float64


@pytest.mark.parametrize(
    "method",
    [pytest.param(MARGINAL, marks=pytest.mark.slow, id="PMMH"), pytest.param(GIBBS, id="ParticleGibbs")],
)
def test_chains_against_quadrature(method, key, compile_events):
    posterior = qbs.fit(unknown_coefficient, YS, method=method, key=key)
    require_posterior(posterior, YS)
    assert posterior.samples["x"].shape == (4, method.num_draws, 20)
    assert 0.1 < posterior.stats["acceptance_rate"].mean() < 0.45
    with compile_events() as events:
        qbs.fit(unknown_coefficient, np.cos(YS), method=method, key=key)
    assert events == []
    with jax.enable_x64(True):
        problem = pose(unknown_coefficient, (YS,))
        cut = method.run(problem, key, _InterruptingLine("sampling 2"), Keeper())
        with pytest.raises(KeyboardInterrupt, match="before it kept a draw"):
            method.run(problem, key, _InterruptingLine("warm-up"), Keeper())
    assert cut.problems[0].startswith("Interrupted after 2")
    kept = cut.shape[1]
    np.testing.assert_array_equal(
        cut.samples["phi"], posterior.samples["phi"][:, :kept]
    )  # same key, same draws


@pytest.mark.slow
def test_smc_squared_against_quadrature(key, compile_events):
    log_evidence, mean, sd, _ = truth_of_coefficient(YS)
    posterior = qbs.fit(unknown_coefficient, YS, method=SQUARED, key=key)
    assert abs(posterior.log_evidence - log_evidence) < 4 * math.sqrt(7 / 5) * posterior.log_evidence_error
    assert abs(posterior.mean("phi") - mean) < 4 * sd / math.sqrt(
        8 * 20
    )  # no fewer than 20 of 50 on an island
    assert posterior.shape == (8, 100)
    assert np.all(np.abs(posterior.samples["phi"]) < 1)
    with compile_events() as events:
        again = qbs.fit(unknown_coefficient, YS + 0.0, method=SQUARED, key=key)
    assert events == []
    np.testing.assert_array_equal(again.samples["phi"], posterior.samples["phi"])


@pytest.mark.slow
def test_errors_of_smc_squared_are_honest(key):
    truth = truth_of_coefficient(YS)
    posteriors = [
        qbs.fit(unknown_coefficient, YS, method=SQUARED, key=own) for own in jax.random.split(key, 20)
    ]
    require_honest_errors(posteriors, truth[0])
    means = np.array([p.mean("phi") for p in posteriors])
    assert abs(means.mean() - truth[1]) < 4 * means.std(ddof=1) / math.sqrt(len(means))


@pytest.mark.slow
def test_known_answers_of_fifty_steps(key):
    ys = np.sin(np.arange(50.0))
    assert truth_of_coefficient(ys)[:3] == pytest.approx(
        (-61.192792895579, 0.379509289, 0.205731729), rel=1e-7
    )
    for method in (PMMH(num_particles=100), ParticleGibbs(num_particles=15)):
        require_posterior(qbs.fit(unknown_coefficient, ys, method=method, key=key), ys)
    posterior = qbs.fit(unknown_coefficient, ys, method=SMC2(num_particles=100, num_inner=100), key=key)
    assert abs(posterior.log_evidence + 61.192792895579) < 4 * math.sqrt(7 / 5) * posterior.log_evidence_error


@pytest.mark.slow
def test_too_few_particles_in_pmmh_say_how_many(key):
    method = PMMH(num_particles=4, num_warmup=20, num_draws=20)
    posterior = qbs.fit(unknown_coefficient, 2 * YS, method=method, key=key)
    spread = posterior.provenance["log_likelihood_spread"]
    needed = math.ceil(4 * (spread / 1.2) ** 2)
    assert any(f"use about num_particles={needed:,}" in problem for problem in posterior.problems)


def by_hand(ys):
    phi = numpyro.sample("phi", dist.Uniform(-1, 1))
    x = 0.0
    for t in range(ys.shape[0]):
        x = numpyro.sample(f"x{t}", dist.Normal(phi * x, 1.0))
        numpyro.sample(f"y{t}", dist.Normal(x, 0.5), obs=ys[t])


@pytest.mark.slow
@pytest.mark.parametrize("method", [PMMH, ParticleGibbs])
def test_python_loops_over_time(method, key):
    with pytest.raises(ModelError, match="name the parameters"):
        qbs.fit(by_hand, YS, method=method(), key=key)
    own = method(num_particles=30, num_warmup=300, num_draws=1000, parameters=("phi",))
    posterior = qbs.fit(by_hand, YS, method=own, key=key)
    _, mean, _, last = truth_of_coefficient(YS)
    table = posterior.summary().frame
    assert abs(posterior.mean("phi") - mean) < 4 * table.loc["phi", "mcse_mean"]
    assert abs(posterior.mean("x19") - last) < 4 * table.loc["x19", "mcse_mean"]


def unknown_noise(ys, transition, levels):
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    first = numpyro.sample("first", dist.Categorical(logits=jnp.zeros(3)))
    numpyro.sample("y_first", dist.Normal(levels[first], noise), obs=ys[0])

    def step(state, y):
        state = numpyro.sample("state", dist.Categorical(probs=transition[state]))
        numpyro.deterministic("level", levels[state])
        numpyro.sample("y", dist.Normal(levels[state], noise), obs=y)
        return state, None

    lax.scan(step, first, ys[1:])


def truth_of_noise(ys):
    """Return log evidence, mean and standard deviation of the noise, by forward sums on a grid."""
    noise = np.linspace(0.03, 3.0, 3000)
    shares, log_likelihood = np.full((3000, 3), 1 / 3), 0.0
    for step, y in enumerate(ys):
        shares = shares @ P if step else shares
        shares = shares * norm.pdf(y, MU, noise[:, None])
        log_likelihood = log_likelihood + np.log(shares.sum(1))
        shares /= shares.sum(1, keepdims=True)
    log_masses = log_likelihood + halfnorm.logpdf(noise) + math.log(noise[1] - noise[0])
    masses = np.exp(log_masses - logsumexp(log_masses))
    mean = masses @ noise
    return logsumexp(log_masses), mean, math.sqrt(masses @ (noise - mean) ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("method", [ParticleGibbs(20, num_draws=500), SMC2(50, num_inner=50)])
def test_discrete_states_with_a_first_state_outside_of_the_scan(method, key):
    ys = np.sin(0.3 * np.arange(30))
    log_evidence, mean, sd = truth_of_noise(ys)
    with pytest.raises(ModelError, match="'first' of 'unknown_noise' is discrete"):
        qbs.fit(unknown_noise, ys, P, MU, method=method, key=key)
    named = dataclasses.replace(method, parameters=("noise",))
    posterior = qbs.fit(unknown_noise, ys, P, MU, method=named, key=key)
    ess = 8 * 15 if posterior.log_weights is not None else posterior.summary().frame.loc["noise", "ess_bulk"]
    assert abs(posterior.mean("noise") - mean) < 4 * sd / math.sqrt(ess)
    if posterior.log_evidence is not None:
        error = math.sqrt(7 / 5) * posterior.log_evidence_error
        assert abs(posterior.log_evidence - log_evidence) < 4 * error
    assert posterior.derived == ("level",)
    np.testing.assert_array_equal(posterior.samples["level"], MU[posterior.samples["state"]])


@pytest.mark.slow
@pytest.mark.parametrize("method", [PMMH, ParticleGibbs, SMC2])
def test_two_parameters_agree_with_nuts(method, key):
    """Correlated parameters of different supports, against NUTS on the same joint density."""
    ys = np.cumsum(np.asarray(jax.random.normal(jax.random.key(1), (15,)))) * 0.7
    exact = qbs.fit(two_parameters, ys, method=qbs.inference.mcmc.NUTS(target_accept=0.95), key=key)
    posterior = qbs.fit(two_parameters, ys, method=method(), key=key)
    for name in ("scale", "mean"):
        variance = exact.sd(name) ** 2
        ess = (
            posterior.ess
            if posterior.log_weights is not None
            else posterior.summary().frame.loc[name, "ess_bulk"]
        )
        error = math.sqrt(variance / min(ess, 300) + exact.summary().frame.loc[name, "mcse_mean"] ** 2)
        assert abs(posterior.mean(name) - exact.mean(name)) < 4 * error
    assert posterior.derived == ("variance",)
    np.testing.assert_allclose(posterior.samples["variance"], posterior.samples["scale"] ** 2)
