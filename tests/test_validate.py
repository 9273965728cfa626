"""The checks of `qbs.validate`: each passes what is right, and catches the fault planted for it."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import binom, multinomial, norm

import qbs
from qbs.inference.mcmc import NUTS
from qbs.inference.method import Method
from qbs.inference.validate.means import compare_means
from qbs.inference.validate.uniformity import uniform_band, uniform_p_value

# --- exact ---


def two_steps():
    x = qbs.sample("x0", dist.Bernoulli(0.3))
    qbs.score(0.8 * x, name="y0")
    x = qbs.sample("x1", dist.Bernoulli(0.2 + 0.6 * x))
    qbs.score(-0.5 * x, name="y1")
    return x


TWO_STEPS = qbs.Program(two_steps, "two steps")


def test_the_zoo_has_known_measures():
    e3, e5, e7 = math.exp(0.3), 0.4 * math.exp(0.5), math.exp(0.7)
    known = {
        "coin": {0: 0.7, 1: 0.3},
        "sprinkler": {0: 0.7 * (0.6 * 0.1 + 0.4 * 0.5), 1: 0.3 * (0.9 * 0.85 + 0.1 * 0.93)},
        "tree": {0: 0.2, 1: 0.05, 2: 0.2, 3: 0.3},
        "rejecting": {(0, 0): 0.05, (0, 1): 0.05, (1, 0): 0.1, (1, 1): 0.1 * e3},
        "geometric": {0: 0.6, 1: 0.6 * e5, 2: 0.6 * e5**2, 3: e5**3},
        "nested_population": {0: 0.6 * (0.8 + 0.2 * e7), 1: 0.4 * (0.3 + 0.7 * e7)},
    }
    emission = norm(np.array([[0], [1]]), 1).pdf([0.2, 1.1, -0.4])
    transition = np.array([[0.7, 0.3], [0.2, 0.8]])
    for name in ("loop_hmm", "scan_hmm"):
        known[name] = {}
        for path in itertools.product([0, 1], repeat=3):
            steps = zip((0, *path), path, range(3), strict=False)
            known[name][path] = math.prod(transition[a, b] * emission[b, t] for a, b, t in steps)
    row, step = np.array([1.0, 0.0]), np.array([[0.8, 0.2], [0.3, 0.7]])
    for gain in (0.6, -0.9, 0.4):
        row = row @ step * np.array([1, math.exp(gain)])
    known["branch_in_scan"] = {0: row[0], 1: row[1]}
    programs = qbs.validate.zoo()
    assert set(programs) == set(known)
    for name, program in programs.items():
        assert program.name == name
        assert dict(qbs.enumerate(program)().items()) == pytest.approx(known[name], abs=1e-14)


def test_exact_looks_at_the_whole_zoo():
    def tilted(program):  # wrong where a value can be 3
        def run():
            value = program()
            qbs.score(0.1 * (jnp.ravel(jax.tree.leaves(value)[0])[0] == 3))
            return value

        return qbs.Program(run)

    report = qbs.validate.exact(tilted)
    assert not report.ok
    assert (report.program, report.worst) == ("tree", (3,))
    assert report.max_difference == pytest.approx(0.3 * (math.exp(0.1) - 1), abs=1e-12)
    assert repr(report).startswith("'tree': NOT the same measure: largest difference 0.0316 at (3,)")
    assert qbs.validate.exact(tilted, qbs.validate.zoo()["coin"]).ok


def resampled(program, *, is_reset):
    weighted = qbs.population(program, 2, at=[])

    def run():
        value, log_weights = weighted()
        ancestors = qbs.sample("ancestors", dist.Categorical(logits=log_weights).expand([2]))
        return qbs.Particles(value[ancestors], jnp.zeros(2) if is_reset else log_weights[ancestors])

    return qbs.Program(run)


def test_exact_catches_weights_that_resampling_keeps():
    assert qbs.validate.exact(lambda p: resampled(p, is_reset=True), TWO_STEPS).ok
    assert not qbs.validate.exact(lambda p: resampled(p, is_reset=False), TWO_STEPS).ok


def by_slices(offset):
    def scheme(name, log_weights, num_samples):
        shares = jnp.cumsum(jax.nn.softmax(log_weights))
        return jnp.searchsorted(shares, (jnp.arange(num_samples) + offset(name)) / num_samples)

    return scheme


@pytest.mark.parametrize(
    "scheme",
    [by_slices(lambda name: 0.5), lambda name, log_weights, n: jnp.full(n, jnp.argmax(log_weights))],
    ids=["offset of systematic always 1/2", "the heaviest takes all"],
)
def test_exact_catches_biased_resampling(scheme):
    report = qbs.validate.exact(lambda p: qbs.population(p, 2, resample=scheme), TWO_STEPS)
    assert not report.ok
    assert report.max_difference > 1e-3


def test_exact_catches_a_draw_used_twice():
    def once():
        return qbs.sample("a", dist.Bernoulli(0.5)), qbs.sample("b", dist.Bernoulli(0.5))

    def twice():
        a = qbs.sample("a", dist.Bernoulli(0.5))
        return a, a

    report = qbs.validate.exact(lambda _: qbs.Program(twice), qbs.Program(once))
    assert report.max_difference == pytest.approx(0.25, abs=1e-15)


def test_exact_names_the_program_in_an_error():
    with pytest.raises(qbs.errors.ProgramError, match="no finite support") as caught:
        qbs.validate.exact(lambda p: qbs.Program(lambda: p() + qbs.sample("noise", dist.Normal(0, 1))))
    assert caught.value.__notes__[-1] == "The program is 'coin'."


# --- invariant ---

MASSES = (1.0, 2.0, 5.0)  # on the circle 0, 1, 2
CIRCLE = qbs.Program(lambda: qbs.sample("state", dist.Categorical(jnp.array(MASSES) / 8)), "circle")


def metropolis(with_ratio):
    """Go up with probability 0.7 and down with 0.3: an asymmetric proposal."""

    def kernel(state):
        up = qbs.sample("up", dist.Bernoulli(0.7))
        proposed = (state + jnp.where(up == 1, 1, 2)) % 3
        masses = jnp.array(MASSES)
        ratio = masses[proposed] / masses[state]
        if with_ratio:
            ratio = ratio * jnp.where(up == 1, 0.3 / 0.7, 0.7 / 0.3)
        return jnp.where(qbs.sample("accept", dist.Bernoulli(jnp.minimum(1, ratio))) == 1, proposed, state)

    return kernel


def test_invariant_knows_the_matrix_of_metropolis():
    report = qbs.validate.invariant(metropolis(with_ratio=True), CIRCLE)
    assert report.ok, report
    assert report.detailed_balance < 1e-15
    pi, matrix = np.array(MASSES) / 8, np.zeros((3, 3))
    for i in range(3):
        for j, there, back in (((i + 1) % 3, 0.7, 0.3), ((i + 2) % 3, 0.3, 0.7)):
            matrix[i, j] = there * min(1, pi[j] * back / (pi[i] * there))
        matrix[i, i] = 1 - matrix[i].sum()
    np.testing.assert_allclose(report.matrix, matrix, atol=1e-14)
    np.testing.assert_allclose(report.probabilities, pi, atol=1e-15)
    assert report.states == [(0,), (1,), (2,)]


def test_invariant_catches_a_forgotten_proposal_ratio():
    report = qbs.validate.invariant(metropolis(with_ratio=False), CIRCLE)
    assert not report.ok
    assert report.max_difference > 0.01
    assert "NOT invariant" in repr(report)


def test_invariant_catches_randomness_used_twice():
    def kernel(state, *, is_reused):
        u = qbs.sample("u", dist.Categorical(jnp.full(10, 0.1)))  # 10 equal slices of the unit interval
        v = u if is_reused else qbs.sample("v", dist.Categorical(jnp.full(10, 0.1)))
        proposed = (state + 1 + u // 5) % 3
        masses = jnp.array(MASSES)
        return jnp.where(v < 10 * masses[proposed] / masses[state] - 1e-9, proposed, state)

    halves = qbs.Program(
        lambda: kernel(qbs.sample("x", dist.Categorical(jnp.array(MASSES) / 8)), is_reused=False)
    )
    assert qbs.enumerate(halves)().total_mass == pytest.approx(1)
    assert qbs.validate.invariant(lambda s: kernel(s, is_reused=False), CIRCLE).ok
    assert not qbs.validate.invariant(lambda s: kernel(s, is_reused=True), CIRCLE).ok


def test_invariant_without_detailed_balance_and_beyond_the_target():
    uniform = qbs.Program(lambda n: qbs.sample("state", dist.Categorical(jnp.full(n, 1 / n))), "uniform")
    turning = qbs.validate.invariant(lambda s: (s + 1) % 4, uniform, 4)
    assert turning.ok
    assert turning.detailed_balance == pytest.approx(0.25)  # invariant, and not reversible
    leaving = qbs.validate.invariant(lambda s: s + 1, uniform, 4)
    assert leaving.states[-1] == (4,)
    assert leaving.max_difference == pytest.approx(0.25)
    assert leaving.worst in ((0,), (4,))

    def losing(state):
        qbs.score(-0.1)
        return state

    assert not qbs.validate.invariant(losing, uniform, 4).ok
    with pytest.raises(ValueError, match="kernel must return a state like"):
        qbs.validate.invariant(lambda s: (s, s), uniform, 4)
    with pytest.raises(ValueError, match="'uniform' has no mass"):
        qbs.validate.invariant(lambda s: s, qbs.Program(lambda: qbs.score(-jnp.inf), "uniform"))


# --- properly_weighted ---


def importance(wrong_by=0.0):
    """Draw from N(0, 2^2) and weigh to e^-800 N(1, 1)."""

    def program():
        x = qbs.sample("x", dist.Normal(0.0, 2.0))
        log_target = dist.Normal(1.0, 1.0).log_prob(x) - 800.0
        qbs.score(log_target - dist.Normal(0.0, 2.0 + wrong_by).log_prob(x))
        return x

    return qbs.Program(program)


TESTS = {"evidence": (lambda x: 1.0, 1.0), "mean": (lambda x: x, 1.0), "square": (lambda x: x**2, 2.0)}


def test_properly_weighted_passes_importance_sampling(key):
    report = qbs.validate.properly_weighted(
        importance(), TESTS, key, num_runs=4000, log_evidence=-800.0, batch_size=1000
    )
    assert report.ok, report
    moment = 2 / math.sqrt(2 * math.pi) * math.sqrt(8 * math.pi / 7) * math.exp(1 / 7)  # of w, the second
    assert report.effective_runs == pytest.approx(4000 / moment, rel=0.05)
    errors = {test.name: test.standard_error for test in report.tests}
    assert errors["evidence"] == pytest.approx(math.sqrt((moment - 1) / 4000), rel=0.1)
    assert not qbs.validate.properly_weighted(
        importance(wrong_by=0.3), TESTS, key, num_runs=4000, log_evidence=-800.0
    ).ok


def test_properly_weighted_reads_populations_and_exact_constants(key):
    def model(ys):
        x = 0.0
        for t, y in enumerate(ys):
            x = numpyro.sample(f"x{t}", dist.Normal(0.9 * x, 1.0))
            numpyro.sample(f"y{t}", dist.Normal(x, 0.5), obs=y)
        return x

    mean, variance, log_evidence, ys = 0.0, 0.0, 0.0, [0.3, -1.2]
    for y in ys:  # Kalman
        mean, variance = 0.9 * mean, 0.81 * variance + 1
        log_evidence += norm(mean, math.sqrt(variance + 0.25)).logpdf(y)
        gain = variance / (variance + 0.25)
        mean, variance = mean + gain * (y - mean), (1 - gain) * variance
    tests = {"evidence": (lambda x: 1.0, 1.0), "mean": (lambda x: x, mean)}
    program = qbs.population(qbs.reify(model), 10, resample="systematic", threshold=0.5)
    report = qbs.validate.properly_weighted(program, tests, key, ys, log_evidence=log_evidence)
    assert report.ok, report
    coin = qbs.Program(lambda: 1.0 * qbs.sample("x", dist.Bernoulli(1.0)))
    sure = qbs.validate.properly_weighted(coin, {"one": (lambda x: x, 1.0)}, key, num_runs=10)
    assert sure.ok  # no spread at all
    assert not qbs.validate.properly_weighted(coin, {"one": (lambda x: x, 1.01)}, key, num_runs=10).ok


def test_properly_weighted_says_what_it_cannot_do(key):
    with pytest.raises(ValueError, match="log_evidence is 0"):
        qbs.validate.properly_weighted(importance(), TESTS, key, num_runs=10)
    pair = {"pair": (lambda x: jnp.stack([x, x]), 1.0)}
    with pytest.raises(ValueError, match=r"tests\['pair'\] must return one number"):
        qbs.validate.properly_weighted(importance(), pair, key, num_runs=10)
    with pytest.raises(ValueError, match=r"family_error=1\.5"):
        qbs.validate.properly_weighted(TWO_STEPS, TESTS, key, num_runs=10, family_error=1.5)


def test_family_error_is_what_it_says(key):
    """Of 1000 families of three right means, a known share fails at a family-wise error of 0.2."""
    draws = np.asarray(jax.random.normal(key, (1000, 3, 20)), dtype=float)

    def fails(family):
        samples = dict(zip("abc", family, strict=True))
        truths = dict.fromkeys("abc", 0.0)
        report = compare_means("", samples, truths, np.ones(20), family_error=0.2, rounding=1e-7)
        return not report.ok

    law = binom(1000, 1 - (1 - 0.2 / 3) ** 3)  # Bonferroni's rule, with independent tests
    assert 1e-4 < law.cdf(sum(map(fails, draws))) < 1 - 1e-4


# --- calibration ---


def two_means(spread, num, y=None):
    """Two parameters of which the data see the sum."""
    a = numpyro.sample("a", dist.Normal(0.0, 1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(a + b, spread).expand([num]), obs=y)


def posterior_draws(key, spread, num, y, *, fault=None):
    """Draw from the posterior in closed form: precision I + (n / s^2) 1 1'."""
    precision = jnp.eye(2) + num / spread**2
    mean = jnp.linalg.solve(precision, jnp.full(2, jnp.sum(y) / spread**2))
    if fault == "sign":
        mean = -mean
    noise = jax.random.normal(key, (99, 2))
    root = jnp.linalg.cholesky(jnp.linalg.inv(precision))
    draws = mean + (0.7 if fault == "narrow" else 1.0) * noise @ root.T
    if fault == "one key for both":  # each alone is right
        sd = jnp.sqrt(jnp.linalg.inv(precision)[0, 0])
        draws = mean + sd * noise[:, :1]
    if fault == "ignores the data":
        draws = noise
    return {"a": draws[:, 0], "b": draws[:, 1]}


def calibrate(method, key, **settings):
    return qbs.validate.calibration(two_means, method, 0.8, 4, key=key, observed="y", **settings)


def test_calibration_passes_the_exact_posterior(key):
    report = calibrate(posterior_draws, key, batch_size=64)
    assert report.ok, report
    assert set(report.ranks) == {"a", "b", "log likelihood"}
    assert report.ranks["a"].shape == (200,)


@pytest.mark.parametrize(
    ("fault", "caught"),
    [
        ("narrow", {"a", "b"}),
        ("sign", {"a", "b", "log likelihood"}),
        ("one key for both", {"log likelihood"}),
        ("ignores the data", {"log likelihood"}),
    ],
)
def test_calibration_catches(fault, caught, key):
    report = calibrate(lambda *args: posterior_draws(*args, fault=fault), key, num_datasets=500)
    assert not report.ok
    assert {name for name, p_value in report.p_values.items() if p_value < report.level} >= caught
    assert "NOT calibrated" in repr(report)
    if fault == "narrow":
        assert np.std(report.ranks["a"] / 99) > 0.32  # a U shape: wider than uniform


def test_calibration_of_arrays_and_counts(key):
    """Gamma-Poisson: a vector of rates, a discrete draw with many ties, and other names for the data."""

    def model(exposure, *, is_unused=True, counts=None):
        raise AssertionError

    def counting(exposure, counts=None):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0).expand([2]))
        flip = numpyro.sample("flip", dist.Bernoulli(0.5))
        numpyro.sample("n", dist.Poisson(rate * exposure), obs=counts)
        return flip

    def method(key, exposure, counts):
        keys = jax.random.split(key)
        rate = jax.random.gamma(keys[0], 2.0 + counts, (99, 2)) / (1.0 + exposure)
        return {"rate": rate, "flip": jax.random.bernoulli(keys[1], 0.5, (99,)).astype(int)}

    exposure = jnp.array([1.0, 3.0])
    report = qbs.validate.calibration(counting, method, exposure, key=key, observed={"n": "counts"})
    assert report.ok, report
    assert set(report.ranks) == {"rate[0]", "rate[1]", "flip", "log likelihood"}
    with pytest.raises(ValueError, match="observed must name arguments"):
        qbs.validate.calibration(model, method, exposure, key=key, observed="counts")


class ClosedForm(Method):
    """A method of `qbs.fit` that needs no sampling."""

    is_weighted: bool = False

    def run(self, problem, key, line, keeper):
        draws = posterior_draws(key, 0.8, 4, problem.bound.arrays[-1])
        samples = {name: np.asarray(values).reshape(3, 33) for name, values in draws.items()}
        return qbs.Posterior(samples, np.zeros((3, 33)) if self.is_weighted else None)


@pytest.mark.parametrize("is_weighted", [pytest.param(False, marks=pytest.mark.slow), True])
def test_calibration_by_a_method_of_fit(key, is_weighted):
    report = calibrate(ClosedForm(is_weighted=is_weighted), key, num_datasets=40, num_draws=33, thin=3)
    assert report.ok, report
    assert {name: len(ranks) for name, ranks in report.ranks.items()} == dict.fromkeys(report.ranks, 40)


@pytest.mark.slow
def test_calibration_of_nuts(key):
    method = NUTS(num_chains=2, num_warmup=200, num_draws=250)
    report = calibrate(method, key, num_datasets=100, num_draws=49, thin=10)
    assert report.ok, report


def test_calibration_says_what_it_cannot_do(key):
    cases = {
        "no draws of \\['b'\\], only of \\['a'\\]": lambda k, s, n, y: {"a": jnp.zeros(99)},
        "num_draws \\* thin = 198": posterior_draws,
        "'a' is NaN": lambda k, s, n, y: {"a": jnp.full(198, jnp.nan), "b": jnp.zeros(198)},
    }
    for words, method in cases.items():
        with pytest.raises(ValueError, match=words):
            calibrate(method, key, num_datasets=2, thin=2)
    with pytest.raises(ValueError, match=r"observes \['f'\] without data"):
        qbs.validate.calibration(
            lambda y=None: (numpyro.factor("f", 1.0), two_means(1.0, 2, y)), None, key=key, observed="y"
        )
    with pytest.raises(ValueError, match="num_draws and thin must be 1 or more"):
        calibrate(posterior_draws, key, thin=0)
    with pytest.raises(ValueError, match="missing a required argument: 'num'"):
        qbs.validate.calibration(two_means, None, 0.8, key=key, observed="y")
    with pytest.raises(ValueError, match=r"observed names \['z'\]"):
        qbs.validate.calibration(two_means, None, 0.8, 4, key=key, observed={"z": "y"})


def test_uniformity_is_exact():
    """Against all ways in which 5 ranks fall on 4 values."""
    law = multinomial(5, [0.25] * 4)
    ways = [counts for counts in itertools.product(range(6), repeat=4) if sum(counts) == 5]
    chance = np.array([law.pmf(counts) for counts in ways])
    p_values = np.array([uniform_p_value(np.repeat(np.arange(4), counts), 4) for counts in ways])
    for p_value in np.unique(p_values.round(12)):  # P(p <= t) = t at every t that p can be
        assert chance[p_values <= p_value + 1e-9].sum() == pytest.approx(p_value, abs=1e-10)
    for error in (0.3, 0.1):
        least, most = uniform_band(5, 4, error)
        up_to = np.cumsum(ways, axis=1)
        leaves = np.any((up_to < least) | (up_to > most), axis=1)
        assert chance[leaves].sum() == pytest.approx(p_values[p_values <= error].max(initial=0), abs=1e-9)
        np.testing.assert_array_equal(leaves, p_values <= error)


def test_plot_of_ranks(key, tmp_path):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    report = calibrate(lambda *args: posterior_draws(*args, fault="narrow"), key)
    figure = report.plot()
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == "a"
    assert titles[1].startswith("a: p = ")
    assert len(titles) == 6
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        f"{share} of {what}, if uniform"
        for share, what in zip(["99%", "99.967%", "95%"], ["each bar", "curves", "curves"], strict=True)
    ]
    assert len(report.plot(["b"]).axes) == 2
    figure.savefig(tmp_path / "ranks.png", dpi=80)
    assert (tmp_path / "ranks.png").stat().st_size > 10_000
    pyplot.close("all")


# --- joint ---


def scale_model(num, y=None):
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 0.6))
    numpyro.sample("y", dist.Normal(0.0, sigma).expand([num]), obs=y)


def walk(key, parameters, num, y, *, fault=None):
    """Random-walk Metropolis on log sigma, whose density has the Jacobian sigma."""
    key_move, key_accept = (key, key) if fault == "one key for both" else jax.random.split(key)

    def log_density(sigma):
        log_joint = dist.LogNormal(0.0, 0.6).log_prob(sigma) + dist.Normal(0.0, sigma).log_prob(y).sum()
        return log_joint + (0.0 if fault == "Jacobian" else jnp.log(sigma))

    if fault == "ignores the data":
        return {"sigma": jnp.exp(0.6 * jax.random.normal(key))}
    sigma = parameters["sigma"]
    proposed = sigma * jnp.exp(0.8 * jax.random.normal(key_move))
    is_accepted = jnp.log(jax.random.uniform(key_accept)) < log_density(proposed) - log_density(sigma)
    return {"sigma": jnp.where(is_accepted, proposed, sigma)}


def test_joint_passes_metropolis(key):
    report = qbs.validate.joint(scale_model, walk, 3, key=key, observed="y", batch_size=2500)
    assert report.ok, report
    names = {"change of sigma", "change of sigma^2", "change of log likelihood"}
    assert {test.name for test in report.tests} == names


@pytest.mark.parametrize("fault", ["Jacobian", "one key for both", "ignores the data"])
def test_joint_catches(fault, key):
    report = qbs.validate.joint(scale_model, lambda *args: walk(*args, fault=fault), 3, key=key, observed="y")
    assert not report.ok
    assert "the joint law is NOT kept" in repr(report)


def test_joint_takes_tests_of_ones_own(key):
    def kernel(key, parameters, spread, num, y):
        draws = posterior_draws(key, spread, num, y)
        return {name: values[0] for name, values in draws.items()}

    tests = {
        "sum against data": lambda parameters, data: (parameters["a"] + parameters["b"]) * data["y"].mean()
    }
    settings = {"key": key, "observed": "y", "num_sweeps": 2}
    report = qbs.validate.joint(two_means, kernel, 0.8, 4, tests=tests, **settings)
    assert report.ok, report
    assert len(report.tests) == 1
    with pytest.raises(ValueError, match="num_sweeps must be 1 or more"):
        qbs.validate.joint(two_means, kernel, 0.8, 4, key=key, observed="y", num_sweeps=0)
    with pytest.raises(ValueError, match="kernel must keep sites and shapes"):
        qbs.validate.joint(two_means, lambda *args: {"a": 0.0}, 0.8, 4, **settings)


# --- involution ---


def test_involution_and_its_determinant(key):
    """Hamiltonian dynamics of two leapfrog steps, with the momentum turned round: volume is kept."""

    def leapfrog(state):
        position, momentum = state["position"], state["momentum"]
        gradient = jax.grad(lambda x: jnp.sum(x**4) / 4 + x[0] * x[1])
        for _ in range(2):
            momentum = momentum - 0.05 * gradient(position)
            position = position + 0.1 * momentum
            momentum = momentum - 0.05 * gradient(position)
        return {"position": position, "momentum": -momentum}

    points = jax.random.normal(key, (2, 20, 3))
    points = {"position": points[0], "momentum": points[1]}
    report = qbs.validate.involution(lambda s: (leapfrog(s), 0.0), points)
    assert report.ok, report
    assert report.log_det_error < 1e-12
    assert qbs.validate.involution(leapfrog, points).log_det_error is None

    def not_turned(state):
        moved = leapfrog(state)
        return {**moved, "momentum": -moved["momentum"]}

    assert not qbs.validate.involution(not_turned, points).ok


def test_involution_catches_a_forgotten_jacobian():
    """Split (x, u) into (x - u, x + u) / sqrt(2), and scale by a factor that depends on the model index."""

    def swap(state, *, is_complete=True):
        model, (x, u) = state
        factor = jnp.where(model == 0, 3.0, 1 / 3.0)
        log_det = jnp.log(factor) if is_complete else 0.0
        return (1 - model, jnp.stack([x * factor, -u])), log_det

    points = (np.array([0, 1, 0]), np.array([[1.0, 2.0], [0.3, -1.0], [0.0, 0.0]], dtype="float32"))
    assert qbs.validate.involution(swap, points).ok
    report = qbs.validate.involution(lambda s: swap(s, is_complete=False), points)
    assert not report.ok
    assert report.max_difference < 1e-12
    assert report.log_det_error == pytest.approx(math.log(3) / (1 + math.log(3)))
    assert report.worst == (0, [1.0, 2.0])
    assert "log-determinant off by 0.52" in repr(report)


def test_involution_names_the_worst_point_and_fails_on_nan():
    report = qbs.validate.involution(lambda x: jnp.where(x > 2, x + 1, -x), np.array([0.5, 1.0, 3.0]))
    assert report.worst == 3.0
    assert not report.ok
    assert qbs.validate.involution(lambda x: jnp.log(x), np.array([-1.0])).max_difference == math.inf
    with pytest.raises(ValueError, match="function must return a point like"):
        qbs.validate.involution(lambda x: (x, x, x), np.zeros(2))
