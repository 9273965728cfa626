"""The tables of the compilations against their sources and papers; DES-SN5YR found, fetched, damaged."""

import shutil

import numpy as np
import pytest

from qbs.errors import DataError, MissingExtraError
from qbs.models.cosmology import _table_files, tables

TABLE = "DES-Dovekie_HD.csv"
RELEASED = "STAT+SYS.npz"
RENAMED = "DES-Dovekie_STAT+SYS_inverse_cov_upper_f32.npz"
SHIPPED = (
    tables.cosmic_chronometers_31,
    tables.cosmic_chronometers_32,
    tables.desi_dr1_bao,
    tables.sdss_bao,
    tables.union3,
)


@pytest.mark.parametrize("load", SHIPPED, ids=lambda f: f.__name__)
def test_tables_are_cited_and_read_only(load):
    table = load()
    assert load() is table
    assert "arXiv:" in table.citation
    assert table.description
    values = [*vars(table).values()]
    for part in getattr(table, "tabulated", ()):
        values += [*part.axes, part.log_likelihood]
    arrays = [value for value in values if isinstance(value, np.ndarray)]
    assert arrays
    assert not any(value.flags.writeable for value in arrays)
    assert all(np.isfinite(value).all() for value in arrays if value.dtype == float)


def test_chronometers_equal_their_sources(data_path):
    for table, name in (
        (tables.cosmic_chronometers_31(), "HDiagramCompilacion-data_31.txt"),
        (tables.cosmic_chronometers_32(), "CC_32_Favale2023_data.txt"),
    ):
        source = np.loadtxt(data_path / "cc" / name)
        columns = np.column_stack([table.redshifts, table.hubble, table.errors])
        np.testing.assert_array_equal(columns, source[:, :3])
        shares = source[:, 3] == 1 if source.shape[1] == 4 else np.zeros(len(source), dtype=bool)
        np.testing.assert_array_equal(table.shares_systematics, shares)


def test_errors_of_the_32_chronometers_are_total():
    """Without the systematic errors of arXiv:2003.07362 they are means over BC03 and MaStro.

    Published, H and error of each model, or the same number twice where only BC03 was used: Moresco et al.
    (2012), arXiv:1201.3609; Moresco et al. (2016), arXiv:1601.01701; Moresco (2015), arXiv:1503.01116.
    """
    published = {
        0.1791: ((75, 4), (81, 5)),
        0.1993: ((75, 5), (81, 6)),
        0.3519: ((83, 14), (88, 16)),
        0.3802: ((83.0, 13.5), (89.3, 14.1)),
        0.4004: ((77.0, 10.2), (82.8, 10.6)),
        0.4247: ((87.1, 11.2), (93.7, 11.7)),
        0.4497: ((92.8, 12.9), (99.7, 13.4)),
        0.4783: ((80.9, 9.0), (86.6, 8.7)),
        0.5929: ((104, 13), (110, 15)),
        0.6797: ((92, 8), (98, 10)),
        0.7812: ((105, 12), (88, 11)),
        0.8754: ((125, 17), (124, 17)),
        1.037: ((154, 20), (113, 15)),
        1.363: ((160, 33.6), (160, 33.6)),
        1.965: ((186.5, 50.4), (186.5, 50.4)),
    }
    table = tables.cosmic_chronometers_32()
    assert table.has_total_errors
    rows = table.shares_systematics
    z, H, total = table.redshifts[rows], table.hubble[rows], table.errors[rows]
    np.testing.assert_array_equal(z, list(published))
    means = np.array(list(published.values()), dtype=float).mean(axis=1)
    np.testing.assert_allclose(H, means[:, 0], atol=0.051)  # one decimal is given
    squared = total**2
    for column in (0, 3):
        percent = np.interp(z, table.systematic_redshifts, table.systematic_percent[:, column])
        squared = squared - (percent / 100 * H) ** 2
    rest = np.sqrt(squared)
    # Rounding of the total error by 0.05 is one of the rest by 0.05 total/rest, and the mean's by 0.05.
    tolerance = 0.05 * total / rest + 0.05
    is_far = np.abs(rest - means[:, 1]) > tolerance
    assert z[is_far].tolist() == [1.037]  # by 0.5; whatever the reason, its diagonal is what was published
    assert abs(rest - means[:, 1])[is_far] < 0.51


def test_desi_dr1_is_the_published_one(data_path):
    table = tables.desi_dr1_bao()
    folder = data_path / "bao_desi_dr1"
    lines = (folder / "desi_2024_gaussian_bao_ALL_GCcomb_mean.txt").read_text().splitlines()
    source = np.array([line.split() for line in lines if not line.startswith("#")])
    np.testing.assert_array_equal(table.redshifts, source[:, 0].astype(float))
    np.testing.assert_array_equal(table.values, source[:, 1].astype(float))
    assert [f"{quantity}_over_rs" for quantity in table.quantities] == source[:, 2].tolist()
    covariance = np.loadtxt(folder / "desi_2024_gaussian_bao_ALL_GCcomb_cov.txt")
    np.testing.assert_array_equal(table.covariance, covariance)
    # arXiv:2404.03002, table 1: BGS, LRG1 and Lya.
    errors = np.sqrt(np.diag(table.covariance))
    for row, (value, error) in (
        (0, (7.93, 0.15)),
        (1, (13.62, 0.25)),
        (2, (20.98, 0.61)),
        (11, (8.52, 0.17)),
    ):
        assert table.values[row] == pytest.approx(value, abs=0.0051)
        assert errors[row] == pytest.approx(error, abs=0.0051)


def test_sdss_equals_its_sources(data_path):
    folder = data_path / "bao_sdss"
    table = tables.sdss_bao()
    at = 0
    for name, suffix in (("DR12_LRG", "dat"), ("DR16_LRG", "dat"), ("DR16_QSO", "txt")):
        lines = (folder / f"sdss_{name}_BAO_DMDH.{suffix}").read_text().splitlines()
        source = np.array([line.split() for line in lines])
        rows = slice(at, at + len(source))
        np.testing.assert_array_equal(table.redshifts[rows], source[:, 0].astype(float))
        np.testing.assert_array_equal(table.values[rows], source[:, 1].astype(float))
        assert [f"{quantity}_over_rs" for quantity in table.quantities[rows]] == source[:, 2].tolist()
        covariance = np.loadtxt(folder / f"sdss_{name}_BAO_DMDH_covtot.txt")
        np.testing.assert_array_equal(table.covariance[rows, rows], covariance)
        assert not table.covariance[rows, rows.stop :].any()
        at = rows.stop
    assert at == table.values.size == 8
    main_galaxies, emission_line, auto, cross = table.tabulated
    chi2 = np.loadtxt(folder / "sdss_MGS_prob.txt")
    np.testing.assert_array_equal(main_galaxies.log_likelihood, -0.5 * chi2)
    alpha = main_galaxies.axes[0] / (638.9518 / 148.69)
    np.testing.assert_allclose(alpha, np.arange(0.8005, 1.1986, 0.001), rtol=1e-12)
    source = np.loadtxt(folder / "sdss_DR16_ELG_BAO_DVtable.txt")
    np.testing.assert_array_equal(emission_line.axes[0], source[:, 0])
    np.testing.assert_array_equal(emission_line.log_likelihood, np.log(source[:, 1]))
    for grid, name in ((auto, "LYAUTO"), (cross, "LYxQSO")):
        source = np.loadtxt(folder / f"sdss_DR16_{name}_BAO_DMDHgrid.txt")
        points = np.array(np.meshgrid(*grid.axes, indexing="ij")).reshape(2, -1).T
        np.testing.assert_array_equal(points, source[:, :2])
        np.testing.assert_array_equal(grid.log_likelihood.ravel(), np.log(source[:, 2]))
    assert [part.redshift for part in table.tabulated] == [0.15, 0.845, 2.334, 2.334]


def test_union3_equals_its_source_and_its_matrix_is_the_covariance(data_path):
    folder = data_path / "sn_union3"
    table = tables.union3()
    source = np.loadtxt(folder / "lcparam_full.txt", usecols=(1, 2, 4))
    columns = np.column_stack([table.redshifts, table.heliocentric_redshifts, table.magnitudes])
    np.testing.assert_array_equal(columns, source)
    size, *entries = np.loadtxt(folder / "mag_covmat.txt")
    np.testing.assert_array_equal(table.covariance.ravel(), entries)
    assert size == table.redshifts.size == 22
    # Errors of 0.09 to 0.34 mag; as the inverse of a covariance the matrix would mean 3 to 75 mag.
    errors = np.sqrt(np.diag(table.covariance))
    assert 0.08 < errors.min() < errors.max() < 0.4
    assert np.linalg.eigvalsh(table.covariance).min() > 0


def test_a_damaged_shipped_archive_is_refused(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(_table_files.resources, "files", lambda package: tmp_path)
    for content in (None, b"not a zip"):
        if content is not None:
            (tmp_path / "data" / "some.npz").write_bytes(content)
        with pytest.raises(DataError, match=r"some.npz that ships with qbs is missing or damaged: reinstall"):
            _table_files.shipped_arrays("some.npz", ("x",))


@pytest.fixture(scope="session")
def des_folder(data_path):
    folder = data_path / "sn_des5yr"
    if not folder.is_dir():
        pytest.skip(f"no DES-SN5YR in {data_path}")
    return folder


@pytest.fixture(scope="session")
def released_text(des_folder):
    """The table in the form of its release: comments, VARNAMES, and a key before each row."""
    header, *rows = (line.split(",") for line in (des_folder / TABLE).read_text().splitlines())
    lines = ["# zHD = redshift in CMB frame", "#", " ".join(["VARNAMES:", "CID", *header[1:]])]
    lines += [" ".join(["SN:", f"name{row[0]}", *row[1:]]) for row in rows]
    return "\n".join(lines) + "\n"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache folder, and no QBS_DATA_PATH."""
    pooch = pytest.importorskip("pooch")
    monkeypatch.delenv("QBS_DATA_PATH", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
    return tmp_path / "qbs" / "des_sn5yr"


def test_des_is_found_in_every_place(des_folder, monkeypatch):
    table = tables.des_sn5yr(des_folder)
    assert tables.des_sn5yr(str(des_folder.parent)) is table
    monkeypatch.setenv("QBS_DATA_PATH", str(des_folder.parent))
    assert tables.des_sn5yr() is table
    assert table.redshifts.size == 1820
    np.testing.assert_array_equal(
        [table.redshifts[0], table.heliocentric_redshifts[0], table.magnitudes[0], table.magnitude_errors[0]],
        [0.02509, 0.02507, 35.25995, 0.1773],
    )
    np.testing.assert_array_equal(table.inverse_covariance, table.inverse_covariance.T)
    # Statistics are in it: no error is below that of the table, and likely contaminants have huge ones.
    errors = np.sqrt(np.diag(table.covariance))
    assert np.all(errors > 0.99 * table.magnitude_errors)
    assert errors.max() > 100
    assert not table.inverse_covariance.flags.writeable


def test_des_is_fetched_in_the_release_form(des_folder, released_text, cache, monkeypatch):
    import pooch

    fetched = []

    def fetch(self, name):
        fetched.append(self.get_url(name))
        cache.mkdir(parents=True, exist_ok=True)
        if name == TABLE:
            (cache / name).write_text(released_text)
        else:
            shutil.copyfile(des_folder / RENAMED, cache / name)
        return str(cache / name)

    monkeypatch.setattr(pooch.Pooch, "fetch", fetch)
    table, given = tables.des_sn5yr(), tables.des_sn5yr(des_folder)
    for name in ("redshifts", "heliocentric_redshifts", "magnitudes", "inverse_covariance"):
        np.testing.assert_array_equal(getattr(table, name), getattr(given, name))
    release = "https://raw.githubusercontent.com/des-science/DES-SN5YR/"
    assert all(url.startswith(release) and "+" not in url for url in fetched)
    assert len(fetched) == 2
    assert tables.des_sn5yr(cache) is table


def test_des_that_cannot_be_fetched_says_what_to_do(cache, monkeypatch):
    import sys

    import pooch

    def fetch(self, name):
        raise ConnectionError("no route")

    monkeypatch.setattr(pooch.Pooch, "fetch", fetch)
    with pytest.raises(DataError, match=r"cannot fetch DES-Dovekie_HD.csv .*ConnectionError.*STAT\+SYS.npz"):
        tables.des_sn5yr()
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingExtraError, match="fetching DES-SN5YR needs pooch"):
        tables.des_sn5yr()


def test_damaged_copies_of_des_in_the_cache_are_removed(cache, monkeypatch):
    import pooch

    cache.mkdir(parents=True)
    (cache / TABLE).write_text("damaged")
    (cache / RELEASED).write_text("damaged")
    monkeypatch.setattr(pooch.Pooch, "fetch", lambda self, name: str(cache / name))
    with pytest.raises(DataError, match="damaged"):
        tables.des_sn5yr()
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("35.25995", "35.25996", 1), "its numbers differ"),
        (lambda text: text[:-2000], "it is not the table|its numbers differ"),
        (lambda text: text.replace("zHEL", "zHEEL"), "it is not the table of DES-Dovekie"),
        (lambda text: text.replace("0.02507", "nought", 1), "it is not the table of DES-Dovekie"),
        (lambda text: text.replace("0.02507", "nan", 1), "its numbers differ"),
        (lambda text: "", "it is not the table of DES-Dovekie"),
        (lambda text: "<html>404 \N{MULTIPLICATION SIGN}</html>", "it is not the table of DES-Dovekie"),
    ],
)
def test_a_changed_table_of_des_is_refused(des_folder, tmp_path, change, words):
    shutil.copyfile(des_folder / RENAMED, tmp_path / RELEASED)
    (tmp_path / TABLE).write_text(change((des_folder / TABLE).read_text()), encoding="utf-8")
    with pytest.raises(DataError, match=f"{words}.*https://github.com/des-science/DES-SN5YR"):
        tables.des_sn5yr(tmp_path)


def test_a_damaged_inverse_covariance_of_des_is_refused(des_folder, tmp_path):
    shutil.copyfile(des_folder / TABLE, tmp_path / TABLE)
    path = tmp_path / RELEASED
    content = (des_folder / RENAMED).read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not a zip"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="it is not the inverse covariance of DES-Dovekie"):
            tables.des_sn5yr(tmp_path)
    with np.load(des_folder / RENAMED) as archive:
        upper = archive["cov"].copy()
    upper[1234] *= 1.001
    np.savez(path, nsn=np.array([1820]), cov=upper)
    with pytest.raises(DataError, match="its numbers differ"):
        tables.des_sn5yr(tmp_path)
    for wrong in (upper[:-1], upper.astype("<U8")):
        np.savez(path, cov=wrong)
        with pytest.raises(DataError, match=r"its numbers differ|it is not the inverse"):
            tables.des_sn5yr(tmp_path)
    np.savez(path, something_else=upper)
    with pytest.raises(DataError, match="it is not the inverse covariance of DES-Dovekie"):
        tables.des_sn5yr(tmp_path)


def test_half_of_des_is_not_enough(des_folder, tmp_path):
    shutil.copyfile(des_folder / TABLE, tmp_path / TABLE)
    with pytest.raises(
        DataError, match=f"no DES-SN5YR table and inverse covariance in {tmp_path}.*data_path"
    ):
        tables.des_sn5yr(tmp_path)


def test_pantheon_has_the_distances_of_77_light_curves(data_path):
    table = tables.pantheon_plus(data_path)
    np.testing.assert_array_equal(np.isfinite(table.cepheid_moduli), table.is_calibrator)
    assert table.is_calibrator.sum() == 77
    assert table.cepheid_moduli[0] == 29.177  # SN 2011fe in M101
