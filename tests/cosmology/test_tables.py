"""The shipped tables against published numbers and their sources; Pantheon+ read, fetched and damaged."""

import shutil
import sys

import numpy as np
import pytest

from qbs.errors import DataError, MissingExtraError
from qbs.models.cosmology import _table_files, tables

TABLE = "Pantheon+SH0ES.dat"
TEXT = "Pantheon+SH0ES_STAT+SYS.cov"
COMPACT = "pantheonplus_statsys_cov_int32_1e-8.npz"


def test_cosmic_chronometers_are_the_published_ones():
    table = tables.cosmic_chronometers()
    assert table.redshifts.size == 15
    # Moresco et al. (2016), arXiv:1601.01701, and Moresco (2015), arXiv:1503.01116.
    np.testing.assert_array_equal(
        [table.redshifts[4], table.hubble[4], table.errors[4]], [0.4004, 76.97, 10.18]
    )
    np.testing.assert_array_equal([table.redshifts[-1], table.hubble[-1]], [1.965, 186.5])
    np.testing.assert_array_equal(table.systematic_percent[0], [0.47, 7.40, 15.86, 9.91])


def test_desi_dr2_is_the_published_one():
    table = tables.desi_dr2_bao()
    assert table.quantities == ("DV", *("DM", "DH") * 5, "DH", "DM")
    # DESI DR2 (arXiv:2503.14738), table IV. The errors are tested by the published posterior (test_analysis).
    published = {
        (0.295, "DV"): 7.942,
        (0.510, "DM"): 13.588,
        (0.706, "DH"): 19.455,
        (0.934, "DM"): 21.576,
        (1.484, "DH"): 12.817,
        (2.330, "DH"): 8.632,
        (2.330, "DM"): 38.988,
    }
    keys = list(zip(table.redshifts.tolist(), table.quantities, strict=True))
    for key, value in published.items():
        assert table.values[keys.index(key)] == pytest.approx(value, abs=1.1e-3)
    np.testing.assert_array_equal(table.covariance, table.covariance.T)


def test_single_numbers_are_the_published_ones():
    assert (tables.bbn().value, tables.bbn().error) == (0.02218, 0.00055)
    assert (tables.sh0es().value, tables.sh0es().error) == (73.04, 1.04)


@pytest.mark.parametrize(
    "load",
    [tables.cosmic_chronometers, tables.desi_dr2_bao, tables.bbn, tables.sh0es],
    ids=lambda f: f.__name__,
)
def test_tables_are_cited_and_read_only(load):
    table = load()
    assert load() is table
    assert "arXiv:" in table.citation
    assert table.description
    for value in vars(table).values():
        if isinstance(value, np.ndarray):
            assert not value.flags.writeable
    with pytest.raises(AttributeError):
        table.citation = ""


def test_shipped_tables_equal_their_sources(data_path):
    chronometers = tables.cosmic_chronometers()
    source = np.loadtxt(data_path / "cc" / "HzTable_MM_BC03.dat")
    columns = np.column_stack([chronometers.redshifts, chronometers.hubble, chronometers.errors])
    np.testing.assert_array_equal(columns, source[:, :3])
    source = np.loadtxt(data_path / "cc" / "data_MM20.dat")
    np.testing.assert_array_equal(chronometers.systematic_redshifts, source[:, 0])
    np.testing.assert_array_equal(chronometers.systematic_percent, source[:, 1:])

    bao = tables.desi_dr2_bao()
    folder = data_path / "bao_desi_dr2"
    lines = (folder / "desi_gaussian_bao_ALL_GCcomb_mean.txt").read_text().splitlines()
    source = np.array([line.split() for line in lines if not line.startswith("#")])
    np.testing.assert_array_equal(bao.redshifts, source[:, 0].astype(float))
    np.testing.assert_array_equal(bao.values, source[:, 1].astype(float))
    assert [f"{quantity}_over_rs" for quantity in bao.quantities] == source[:, 2].tolist()
    np.testing.assert_array_equal(bao.covariance, np.loadtxt(folder / "desi_gaussian_bao_ALL_GCcomb_cov.txt"))

    for table, name in ((tables.bbn(), "omega_b_bbn2024.txt"), (tables.sh0es(), "h0_sh0es2022.txt")):
        np.testing.assert_array_equal([table.value, table.error], np.loadtxt(data_path / "priors" / name))


@pytest.fixture(scope="session")
def pantheon_folder(data_path):
    folder = data_path / "sn_pantheonplus"
    if not folder.is_dir():
        pytest.skip(f"no Pantheon+ in {data_path}")
    return folder


@pytest.fixture(scope="session")
def released_text(pantheon_folder):
    """The covariance in the release's form: n, then n x n lines, not quite symmetric."""
    covariance = tables.pantheon_plus(pantheon_folder).covariance
    lower = np.tril(np.ones_like(covariance), -1)
    numbers = (covariance + 2e-8 * lower).ravel().tolist()
    return "1701\n" + "\n".join(map("{:.8f}".format, numbers)) + "\n"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache folder, and no QBS_DATA_PATH."""
    pooch = pytest.importorskip("pooch")
    monkeypatch.delenv("QBS_DATA_PATH", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
    return tmp_path / "qbs" / "pantheon_plus"


def test_pantheon_is_found_in_every_place(pantheon_folder, monkeypatch):
    table = tables.pantheon_plus(pantheon_folder)
    assert tables.pantheon_plus(str(pantheon_folder.parent)) is table
    monkeypatch.setenv("QBS_DATA_PATH", str(pantheon_folder.parent))
    assert tables.pantheon_plus() is table
    assert table.redshifts.size == 1701
    assert int(table.is_calibrator.sum()) == 77
    assert int((table.redshifts > 0.01).sum()) == 1590
    np.testing.assert_array_equal(table.covariance, table.covariance.T)
    # The first row of the release: SN 2011fe.
    np.testing.assert_array_equal(
        [table.redshifts[0], table.heliocentric_redshifts[0], table.magnitudes[0]],
        [0.00122, 0.00082, 9.74571],
    )
    assert table.covariance[0, 0] == 0.03177108


def test_pantheon_is_fetched_in_the_release_form(pantheon_folder, released_text, cache, monkeypatch):
    import pooch

    fetched = []

    def fetch(self, name):
        fetched.append(self.get_url(name))
        cache.mkdir(parents=True, exist_ok=True)
        if name == TABLE:
            shutil.copyfile(pantheon_folder / name, cache / name)
        else:
            (cache / name).write_text(released_text)
        return str(cache / name)

    monkeypatch.setattr(pooch.Pooch, "fetch", fetch)
    table = tables.pantheon_plus()
    np.testing.assert_array_equal(table.covariance, tables.pantheon_plus(pantheon_folder).covariance)
    release = "https://raw.githubusercontent.com/PantheonPlusSH0ES/DataRelease/c447f0f"
    assert all(url.startswith(release) and "+" not in url for url in fetched)
    # The same files as a folder of the user's own.
    assert tables.pantheon_plus(cache) is table


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ConnectionError("no route"), "ConnectionError"), (ValueError("hash"), "checksum differs")],
)
def test_a_failed_fetch_says_what_to_do(cache, monkeypatch, error, reason):
    import pooch

    def fetch(self, name):
        raise error

    monkeypatch.setattr(pooch.Pooch, "fetch", fetch)
    with pytest.raises(
        DataError, match=rf"cannot fetch Pantheon\+SH0ES.dat .*{reason}.*QBS_DATA_PATH"
    ) as caught:
        tables.pantheon_plus()
    assert caught.value.__suppress_context__


def test_a_damaged_copy_in_the_cache_is_removed(cache, monkeypatch):
    import pooch

    cache.mkdir(parents=True)
    (cache / TABLE).write_text("damaged")
    (cache / TEXT).write_text("damaged")
    monkeypatch.setattr(pooch.Pooch, "fetch", lambda self, name: str(cache / name))
    with pytest.raises(DataError, match="damaged"):
        tables.pantheon_plus()
    assert not list(cache.iterdir())


def test_fetching_needs_pooch(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qbs-jax\[cosmology\]'"):
        tables.pantheon_plus()


def test_a_folder_without_the_files_is_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=f"no Pantheon\\+ table and covariance in {tmp_path}.*data_path"):
        tables.pantheon_plus(tmp_path)
    monkeypatch.setenv("QBS_DATA_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere"):
        tables.pantheon_plus()


def _copies(pantheon_folder, tmp_path, *, covariance=COMPACT):
    shutil.copyfile(pantheon_folder / TABLE, tmp_path / TABLE)
    if covariance == COMPACT:
        shutil.copyfile(pantheon_folder / COMPACT, tmp_path / COMPACT)
    return tmp_path / TABLE, tmp_path / covariance


def test_a_changed_table_is_refused(pantheon_folder, tmp_path):
    table, _ = _copies(pantheon_folder, tmp_path)
    table.write_bytes(table.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"Pantheon\+SH0ES.dat is damaged or not the released table"):
        tables.pantheon_plus(tmp_path)


def test_a_table_with_other_line_ends_is_read(pantheon_folder, tmp_path):
    table, _ = _copies(pantheon_folder, tmp_path)
    table.write_bytes(table.read_bytes().replace(b"\n", b"\r\n"))
    assert tables.pantheon_plus(tmp_path).redshifts.size == 1701


def test_a_damaged_compact_covariance_is_refused(pantheon_folder, tmp_path):
    _, covariance = _copies(pantheon_folder, tmp_path)
    content = covariance.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"not a zip"):
        covariance.write_bytes(damaged)
        with pytest.raises(DataError, match="it is not the Pantheon\\+ covariance"):
            tables.pantheon_plus(tmp_path)
    counts = np.load(pantheon_folder / COMPACT)["upper_int32"].copy()
    counts[1234] += 1
    np.savez(covariance, upper_int32=counts)
    with pytest.raises(DataError, match="its numbers differ"):
        tables.pantheon_plus(tmp_path)
    np.savez(covariance, something_else=counts)
    with pytest.raises(DataError, match="it is not the Pantheon\\+ covariance"):
        tables.pantheon_plus(tmp_path)


def test_a_truncated_text_covariance_is_refused(pantheon_folder, tmp_path):
    _, covariance = _copies(pantheon_folder, tmp_path, covariance=TEXT)
    covariance.write_text("1701\n0.03177108\n")
    with pytest.raises(DataError, match="2 numbers where 2893402 were expected"):
        tables.pantheon_plus(tmp_path)
    covariance.write_text("<html>rate limit exceeded</html>")
    with pytest.raises(DataError, match="it is not the Pantheon\\+ covariance"):
        tables.pantheon_plus(tmp_path)


def test_a_damaged_shipped_table_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setattr(_table_files.resources, "files", lambda package: tmp_path)
    with pytest.raises(DataError, match=r"bbn.csv that ships with qbs is missing: reinstall"):
        _table_files.shipped_rows("bbn.csv", 2)
    (folder / "bbn.csv").write_text("# value, error\n0.02218\n")
    with pytest.raises(DataError, match="must have 2 columns"):
        _table_files.shipped_rows("bbn.csv", 2)
