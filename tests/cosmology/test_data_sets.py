"""The compilations: chi2 against NumPy with astropy's distances, published results, guards, precision."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.interpolate import CubicSpline, RectBivariateSpline
from scipy.optimize import minimize

from qbs.errors import DataError
from qbs.models.cosmology import Cosmology, tables
from qbs.models.cosmology.background import RADIATION_DENSITY, SPEED_OF_LIGHT
from qbs.models.cosmology.likelihoods import DATA_SETS, DESSN5YR, PantheonPlus, PantheonPlusSH0ES, SdssBAO
from qbs.models.cosmology.runfile import EXAMPLE

FIELDS = ("Om", "h", "w", "wa", "Ok", "rd")
GOOD = {"Om": 0.3, "h": 0.68, "w": -1.0, "wa": 0.0, "Ok": 0.0, "rd": 147.05}
NAMES = ("cc_31", "cc_32", "desi_dr1", "sdss", "union3", "pantheon_plus_sh0es", "des_sn5yr")
POINTS = (
    {"Om": 0.3, "h": 0.69, "rd": 147.0},
    {"Om": 0.33, "h": 0.72, "w": -0.8, "wa": -0.6, "Ok": 0.05, "rd": 141.0},
)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=NAMES)
def data_set(request, data_path):
    return DATA_SETS[request.param].load(data_path)


@functools.cache
def compiled(name, data_path, is_x64):
    """Log likelihood and gradient as a function of the vector FIELDS, compiled once for all tests."""
    likelihood = DATA_SETS[name].load(data_path)
    with jax.enable_x64(is_x64):
        return jax.jit(
            jax.value_and_grad(lambda p: likelihood.log_likelihood(Cosmology(*p[:5]), p[5])),
        )


def evaluate(data_set, data_path, values):
    """Return log likelihood and gradient in the precision of the moment."""
    is_x64 = jnp.result_type(float) == jnp.float64
    vector = jnp.array([{**GOOD, **values}[name] for name in FIELDS])
    return compiled(data_set.name, data_path, is_x64)(vector)


@functools.cache
def astropy_distances(point, redshifts):
    """D_M and D_H [Mpc] with photons alone, at the temperature that gives qbs's radiation density."""
    cosmology = pytest.importorskip("astropy.cosmology")
    values = dict(point)
    Om, h, Ok = values["Om"], values["h"], values.get("Ok", 0.0)
    Or = RADIATION_DENSITY / h**2

    def background(temperature):
        return cosmology.w0waCDM(
            H0=100 * h,
            Om0=Om,
            Ode0=1 - Om - Ok - Or,
            w0=values.get("w", -1.0),
            wa=values.get("wa", 0.0),
            Tcmb0=temperature,
            Neff=0.0,
        )

    temperature = 2.7255 * (Or / background(2.7255).Ogamma0) ** 0.25
    theirs = background(temperature)
    z = np.array(redshifts)
    transverse = theirs.comoving_transverse_distance(z).value
    return transverse, SPEED_OF_LIGHT / (100 * h * theirs.efunc(z))


def distances(point, redshifts):
    unique, index = np.unique(redshifts, return_inverse=True)
    transverse, radial = astropy_distances(tuple(point.items()), tuple(unique))
    return transverse[index], radial[index]


def plain_chronometers(name, point, data_path):
    if name == "cc_31":
        z, H, error = np.loadtxt(data_path / "cc" / "HDiagramCompilacion-data_31.txt").T
        covariance = np.diag(error**2)
    else:
        z, H, error, flag = np.loadtxt(data_path / "cc" / "CC_32_Favale2023_data.txt").T
        budget = np.loadtxt(data_path / "cc" / "data_MM20.dat")
        covariance = np.diag(error**2)
        for i in range(z.size):
            for j in range(z.size):
                if i != j and flag[i] == flag[j] == 1:
                    for column in (1, 4):
                        percent = np.interp([z[i], z[j]], budget[:, 0], budget[:, column])
                        covariance[i, j] += percent.prod() / 1e4 * H[i] * H[j]
    residuals = H - SPEED_OF_LIGHT / distances(point, z)[1]
    return residuals @ np.linalg.inv(covariance) @ residuals


def read_rows(path):
    return [line.split() for line in Path(path).read_text().splitlines() if not line.startswith("#")]


def plain_gaussian_bao(rows, covariance, point):
    z = np.array([float(row[0]) for row in rows])
    DM, DH = distances(point, z)
    theory = {"DM": DM, "DH": DH, "DV": np.cbrt(z * DM**2 * DH)}
    predicted = np.array([theory[row[2][:2]][i] for i, row in enumerate(rows)]) / point["rd"]
    residuals = np.array([float(row[1]) for row in rows]) - predicted
    return residuals @ np.linalg.inv(covariance) @ residuals


def plain_desi_dr1(point, data_path):
    stem = str(data_path / "bao_desi_dr1" / "desi_2024_gaussian_bao_ALL_GCcomb")
    rows = read_rows(f"{stem}_mean.txt")
    return plain_gaussian_bao(rows, np.loadtxt(f"{stem}_cov.txt"), point)


def plain_sdss(point, data_path):
    folder = data_path / "bao_sdss"
    rd = point["rd"]
    total = 0.0
    for name, suffix in (("DR12_LRG", "dat"), ("DR16_LRG", "dat"), ("DR16_QSO", "txt")):
        rows = read_rows(folder / f"sdss_{name}_BAO_DMDH.{suffix}")
        covariance = np.loadtxt(folder / f"sdss_{name}_BAO_DMDH_covtot.txt")
        total += plain_gaussian_bao(rows, covariance, point)

    def averaged(z):
        DM, DH = (float(distance[0]) for distance in distances(point, [z]))
        return (z * DM**2 * DH) ** (1 / 3) / rd

    chi2 = np.loadtxt(folder / "sdss_MGS_prob.txt")
    alpha = averaged(0.15) / (638.9518 / 148.69)
    total += CubicSpline(np.linspace(0.8005, 1.1985, chi2.size), chi2)(np.clip(alpha, 0.8005, 1.1985))
    DV, likelihood = np.loadtxt(folder / "sdss_DR16_ELG_BAO_DVtable.txt").T
    total -= 2 * CubicSpline(DV, np.log(likelihood))(np.clip(averaged(0.845), DV[0], DV[-1]))
    DM, DH = (float(distance[0]) / rd for distance in distances(point, [2.334]))
    for name in ("LYAUTO", "LYxQSO"):
        grid = np.loadtxt(folder / f"sdss_DR16_{name}_BAO_DMDHgrid.txt")
        x, y = np.unique(grid[:, 0]), np.unique(grid[:, 1])
        spline = RectBivariateSpline(x, y, np.log(grid[:, 2]).reshape(x.size, y.size))  # constant beyond
        total -= 2 * spline(DM, DH)[0, 0]
    return float(total)


def marginalised(residuals, inverse):
    ones = inverse.sum(0)
    return residuals @ inverse @ residuals - (ones @ residuals) ** 2 / ones.sum()


def moduli(point, z, z_hel):
    return 5 * np.log10(distances(point, z)[0] * (1 + z_hel)) + 25


def plain_supernovae(name, point, data_path):
    if name == "union3":
        table = np.loadtxt(data_path / "sn_union3" / "lcparam_full.txt", usecols=(1, 2, 4))
        covariance = np.loadtxt(data_path / "sn_union3" / "mag_covmat.txt")[1:].reshape(len(table), -1)
        z, z_hel, m = table.T
        return marginalised(m - moduli(point, z, z_hel), np.linalg.inv(covariance))
    if name == "des_sn5yr":
        folder = data_path / "sn_des5yr"
        table = np.genfromtxt(folder / "DES-Dovekie_HD.csv", delimiter=",", names=True)
        upper = np.load(folder / "DES-Dovekie_STAT+SYS_inverse_cov_upper_f32.npz")["cov"]
        inverse = np.zeros((table.size, table.size))
        inverse[np.triu_indices(table.size)] = upper
        inverse += np.triu(inverse, 1).T
        return marginalised(table["MU"] - moduli(point, table["zHD"], table["zHEL"]), inverse)
    table = np.genfromtxt(
        data_path / "sn_pantheonplus" / "Pantheon+SH0ES.dat", names=True, encoding="ascii", dtype=None
    )
    hosts = table["IS_CALIBRATOR"] == 1
    rows = (table["zHD"] > 0.01) | hosts
    theory = np.where(hosts, table["CEPH_DIST"], moduli(point, table["zHD"], table["zHEL"]))
    covariance = tables.pantheon_plus(data_path).covariance[np.ix_(rows, rows)]
    return marginalised((table["m_b_corr"] - theory)[rows], np.linalg.inv(covariance))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("point", POINTS, ids=["LCDM", "oCPL"])
def test_chi2_equals_a_plain_computation(data_set, point, data_path):
    name = data_set.name
    if name.startswith("cc"):
        expected = plain_chronometers(name, point, data_path)
    elif name == "desi_dr1":
        expected = plain_desi_dr1(point, data_path)
    elif name == "sdss":
        expected = plain_sdss(point, data_path)
    else:
        expected = plain_supernovae(name, point, data_path)
    value, _ = evaluate(data_set, data_path, point)
    assert -2 * float(value) == pytest.approx(expected, rel=1e-6)


def _best_fit(name, data_path, free):
    """Return the maximum of the likelihood over some of FIELDS, and Fisher errors by differences."""
    rows = [FIELDS.index(field) for field in free]
    objective = compiled(name, data_path, True)

    def minus(p):
        vector = np.array([GOOD[field] for field in FIELDS])
        vector[rows] = p
        value, gradient = objective(jnp.asarray(vector))
        return -float(value), -np.asarray(gradient)[rows]

    start = np.array([GOOD[field] for field in free])
    best = minimize(minus, start, jac=True, method="L-BFGS-B", options={"ftol": 1e-14}).x
    steps = 1e-4 * best
    fisher = [
        (minus(best + move)[1] - minus(best - move)[1]) / (2 * np.abs(move).sum()) for move in np.diag(steps)
    ]
    return best, np.sqrt(np.diag(np.linalg.inv(np.array(fisher))))


# DESI DR1: arXiv:2404.03002, section 4. Union3: arXiv:2311.12098, abstract. DES: arXiv:2511.07517, abstract.
# Pantheon+ and SH0ES: arXiv:2202.04077, table 3.
PUBLISHED = {
    "desi_dr1": {"Om": (0.295, 0.015), "rd": (101.8 / 0.68, 1.3 / 0.68)},
    "union3": {"Om": (0.356, 0.027)},
    "des_sn5yr": {"Om": (0.330, 0.015)},
    "pantheon_plus_sh0es": {"Om": (0.334, 0.018), "h": (0.735, 0.011)},
}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_results(name, data_path):
    """Flat LCDM, to 0.3 of the published errors; the errors themselves to the second digit that is given."""
    best, errors = _best_fit(name, data_path, tuple(PUBLISHED[name]))
    for value, error, (mean, sd) in zip(best, errors, PUBLISHED[name].values(), strict=True):
        assert abs(value - mean) < 0.3 * sd
        assert abs(error / sd - 1) < 0.1


@pytest.mark.usefixtures("x64")
def test_sdss_components_are_the_published_ones():
    """The tabulated likelihoods against the abstracts of the papers.

    Also that a grid holds likelihoods and not chi2 or their squares: the errors would be off by 1.4.
    """
    main_galaxies, emission_line, auto, cross = tables.sdss_bao().tabulated
    both = tables.TabulatedLikelihood(
        auto.redshift, auto.quantities, auto.axes, auto.log_likelihood + cross.log_likelihood
    )
    for measurement, published, errors in (
        # Ross et al. (2015), arXiv:1409.3242: D_V = (664 +- 25) Mpc (r_d / 148.69 Mpc).
        (main_galaxies, [664 / 148.69], [25 / 148.69]),
        # de Mattia et al. (2021), arXiv:2007.09008: D_V/r_d = 18.33 +0.57 -0.62.
        (emission_line, [18.33], [0.595]),
        # du Mas des Bourboux et al. (2020), arXiv:2007.08995: both correlations together.
        (both, [37.5, 8.99], [1.1, 0.19]),
    ):
        found, found_errors = measurement.best_and_error()
        np.testing.assert_array_less(np.abs(found - published), 0.1 * np.array(errors))
        np.testing.assert_allclose(found_errors, errors, rtol=0.1)


@pytest.mark.usefixtures("x64")
def test_sdss_beyond_its_grids_is_finite_and_flat(data_path):
    likelihood, table = SdssBAO.load(), tables.sdss_bao()
    # Twice the sound horizon puts all distances below the grids, half of it above them.
    for rd, corner in ((300.0, 0), (70.0, -1)):
        value, gradient = evaluate(likelihood, data_path, {"rd": rd})
        theory = np.asarray(jax.jit(lambda rd: likelihood.theory(Cosmology(0.3, 0.68), rd))(rd))
        residuals = likelihood.whitening @ (likelihood.data[:8] - theory[:8])
        edges = sum(-2 * float(item.log_likelihood.flat[corner]) for item in table.tabulated)
        assert -2 * float(value) == pytest.approx(float(residuals @ residuals) + edges, rel=1e-10)
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", ["pantheon_plus", "pantheon_plus_sh0es", "union3", "des_sn5yr"])
def test_the_compression_is_lossless_and_says_so(name, data_path):
    likelihood = DATA_SETS[name].load(data_path)
    # Rounding of a sum of squares of this size.
    assert 0 <= likelihood.compression_error < 1e-12 * likelihood.num_points * 4
    assert likelihood.rotated_data.size == min(64, likelihood.num_points)


@pytest.mark.usefixtures("x64")
def test_a_poor_compression_would_be_seen(data_path, monkeypatch):
    """With 6 nodes the error is large, and `compression_error` is what is found with other cosmologies."""
    from qbs.models.cosmology import _smooth_distances

    exact = DESSN5YR.load(data_path)
    monkeypatch.setattr(_smooth_distances, "_NUM_NODES", 6)
    poor = DESSN5YR.from_table(tables.des_sn5yr(data_path))
    chi2 = jax.jit(lambda c: poor.chi2(c))
    points = [{"Om": Om, "w": w, "wa": wa} for Om in (0.1, 0.5) for w, wa in ((-1.0, 0.0), (-2.0, 1.0))]
    seen = max(
        abs(
            float(chi2(Cosmology(h=0.7, **point)))
            + 2 * float(evaluate(exact, data_path, {**point, "h": 0.7})[0])
        )
        for point in points
    )
    assert 1e-6 < seen < 2 * poor.compression_error


@pytest.mark.usefixtures("x64")
def test_calibrators_make_h_matter_and_do_not_move_the_rest(data_path):
    calibrated, free = PantheonPlusSH0ES.load(data_path), PantheonPlus.load(data_path)
    assert (calibrated.num_points, free.num_points) == (1657, 1590)
    assert np.isfinite(calibrated.host_moduli).sum() == 77
    assert not np.isfinite(free.host_moduli).any()
    log_likelihood = [evaluate(calibrated, data_path, {"Om": 0.33, "h": h})[0] for h in (0.68, 0.735)]
    assert log_likelihood[1] - log_likelihood[0] > 10
    # Of absolute magnitude and error: Riess et al. (2022), arXiv:2112.04510, M_B = -19.253 +- 0.027.
    found = jax.jit(lambda c: calibrated.absolute_magnitude(c))(Cosmology(0.33, 0.7304))
    assert float(found) == pytest.approx(-19.253, abs=0.027)


def test_calibrators_need_their_distances():
    with pytest.raises(ValueError, match="cepheid_moduli"):
        PantheonPlusSH0ES.from_table(tables.union3())


@pytest.mark.usefixtures("x64")
def test_an_inverse_covariance_and_its_covariance_agree(data_path):
    """Float32 entries limit nothing here: both are of the same matrix; its condition number is 6e7."""
    table = tables.des_sn5yr(data_path)
    other = DESSN5YR.from_table(dataclasses.replace(table, inverse_covariance=None))
    value, _ = evaluate(DESSN5YR.load(data_path), data_path, POINTS[1])
    fields = {name: POINTS[1][name] for name in FIELDS[:5]}
    assert float(jax.jit(lambda c: other.chi2(c))(Cosmology(**fields))) == pytest.approx(
        -2 * float(value), rel=1e-7
    )


def test_every_data_set_describes_itself(data_set, data_path):
    kind = DATA_SETS[data_set.name]
    assert kind is type(data_set)
    assert kind.load(data_path) is data_set
    assert kind.load.__doc__
    assert "arXiv:" in data_set.citation
    assert data_set.label
    assert data_set.num_points == data_set.data.size == data_set.errors.size == data_set.redshifts.size
    assert jax.eval_shape(data_set.theory, Cosmology(0.3, 0.7), 147.0).shape == data_set.data.shape
    assert set(data_set.parameters) <= {"Om", "h", "Obh2", "hrd"}


def test_the_example_run_file_names_every_data_set():
    words = EXAMPLE.replace(",", " ").replace(":", " ").replace(".", " ").replace(";", " ").split()
    assert [name for name in DATA_SETS if name not in words] == []


@pytest.mark.parametrize("is_x64", [False, True])
def test_impossible_cosmologies_have_no_likelihood_and_no_nan_gradient(data_set, data_path, is_x64):
    reads = set(FIELDS) - (set() if data_set.name in ("desi_dr1", "sdss") else {"rd"})
    with jax.enable_x64(is_x64):
        for bad in (
            {},
            {"Om": -2.0},
            {"Om": float("nan")},
            {"h": -0.7},
            {"h": 0.0},
            {"Ok": float("nan")},
            {"Ok": -9.0},
            {"Om": 0.1, "w": -3.0, "wa": -3.0, "Ok": -0.3},
            {"rd": float("nan")},
            {"rd": -147.0},
        ):
            value, gradient = evaluate(data_set, data_path, bad)
            is_read = bool(reads & bad.keys())
            assert np.isneginf(value) if is_read else np.isfinite(value), bad
            assert np.all(np.isfinite(gradient)), bad
            assert not is_read or np.all(gradient == 0), bad


@pytest.mark.usefixtures("x64")
def test_gradients_are_finite_differences(data_set, data_path):
    at = {**GOOD, "Ok": 0.01}
    _, gradient = evaluate(data_set, data_path, at)
    for index, name in enumerate(FIELDS):
        step = 1e-6 * max(abs(at[name]), 1.0)
        above, below = (evaluate(data_set, data_path, {**at, name: at[name] + s})[0] for s in (step, -step))
        numerical = float(above - below) / (2 * step)
        assert float(gradient[index]) == pytest.approx(numerical, rel=1e-4, abs=1e-3), name


def test_precision_is_that_of_the_call(data_set):
    def compute():
        return jax.jit(lambda Om: data_set.chi2(Cosmology(Om, 0.68, Ok=0.01)))(0.3)

    single = compute()
    with jax.enable_x64(True):
        double = compute()
        # From arrays that no trace has seen.
        fresh = jax.tree.map(np.copy, data_set)
        exact = jax.jit(lambda c: fresh.chi2(c))(Cosmology(0.3, 0.68, Ok=0.01))
    assert (single.dtype, double.dtype) == (jnp.float32, jnp.float64)
    assert float(double) == pytest.approx(float(exact), rel=1e-12)
    # A prediction in float32 carries some rounding errors of its own size, here in standard deviations.
    rounding = 8 * np.finfo(np.float32).eps * np.linalg.norm(data_set.data / data_set.errors)
    tolerance = 2 * np.sqrt(float(exact)) * rounding + rounding**2
    assert float(single) == pytest.approx(float(exact), abs=tolerance)


def test_missing_tables_are_named(tmp_path):
    for name, words in (("des_sn5yr", "no DES-SN5YR table"), ("pantheon_plus_sh0es", "no Pantheon+ table")):
        with pytest.raises(DataError, match=words.replace("+", r"\+")):
            DATA_SETS[name].load(tmp_path)
