import os
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

from qbs.models.structural.columns import read_columns
from qbs.models.structural.gram_blocks import (
    BlockSums,
    default_num_blocks,
    few_blocks_sentence,
    resampled,
    weighted_covariance,
)
from qbs.models.structural.streaming import is_large, stream_gram

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def rng(key) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.key_data(key)))


def sums_of(rows: np.ndarray, num_blocks: int, batches: int = 1) -> BlockSums:
    sums = BlockSums(rows.shape[1], num_blocks)
    for batch in np.array_split(rows, batches):
        sums.add(batch)
    return sums


def ones(blocks) -> np.ndarray:
    return np.ones(len(blocks.counts), int)


def weighted(rows: np.ndarray, times: np.ndarray) -> np.ndarray:
    return np.cov(rows.T, bias=True, fweights=times)


def entries(rng, draw, num_replicates: int) -> np.ndarray:
    """The standard deviation of each entry of the covariance among replicates."""
    return np.std([draw(rng)[0] for _ in range(num_replicates)], axis=0)


def error_of_spread(num_rows: int, num_blocks: int, num_replicates: int) -> float:
    """The relative standard error of a standard deviation of entries; 12 is the most kurtosis of products."""
    return float(np.sqrt(2 / num_blocks + 12 / num_rows + 2 / num_replicates)) / 2


@pytest.mark.parametrize("batches", [1, 7, 41])
def test_weights_of_blocks_are_weights_of_their_rows(rng, batches):
    num_rows, num_blocks = 41, 6
    rows = np.c_[np.eye(num_rows), rng.normal(size=(num_rows, 3)) + 1e3]
    means, blocks = sums_of(rows, num_blocks, batches).finished()
    np.testing.assert_allclose(means, rows.mean(0), rtol=1e-12)
    own_means = blocks.offsets + means
    raw = blocks.scatters + blocks.counts[:, None, None] * own_means[:, :, None] * own_means[:, None, :]
    member = np.diagonal(raw, axis1=1, axis2=2)[:, :num_rows]  # of row in block
    np.testing.assert_allclose(member.sum(0), 1.0)
    np.testing.assert_allclose(np.sort(member, 0)[:-1], 0.0, atol=1e-12)
    np.testing.assert_allclose(member.sum(1), blocks.counts)
    block_of_row = member.argmax(0)
    for weights in (ones(blocks), np.array([0, 3, 1, 0, 2, 0])):
        covariance, count = weighted_covariance(blocks, weights)
        times = weights[block_of_row]
        assert count == times.sum()
        np.testing.assert_allclose(covariance, weighted(rows, times), rtol=1e-9, atol=1e-12)


def test_batches_change_no_block(rng):
    rows = rng.normal((0.0, 5.0, 1e3), size=(1234, 3))
    (_, few), (_, many) = (sums_of(rows, 50, batches).finished() for batches in (2, 300))
    for one, other in zip(few, many, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("num_blocks", [1, 2, 100, 1000])
def test_all_blocks_once_are_the_table(rng, num_blocks):
    rows = rng.normal(size=(9973, 4))
    rows[:, 1] += 1e9
    rows[:, 2] = np.linspace(-5, 5, len(rows)) * 1e6  # the first batch is far from the rest
    rows[:, 3] += 1e-3 * rows[:, 2]
    _, blocks = sums_of(rows, num_blocks, 30).finished()
    covariance, count = weighted_covariance(blocks, ones(blocks))
    assert count == len(rows) == blocks.counts.sum()
    assert 0.99 * num_blocks <= len(blocks.counts) <= num_blocks
    scales = rows.std(0)
    expected = np.cov(((rows - rows.mean(0)) / scales).T, bias=True)
    np.testing.assert_allclose(covariance / np.outer(scales, scales), expected, rtol=1e-10, atol=1e-13)
    np.testing.assert_array_equal(covariance, covariance.T)


def test_one_wild_row_costs_other_blocks_no_digits(rng):
    rows = rng.normal(size=(2000, 2))
    rows[0] = 1e10
    _, blocks = sums_of(rows, 100, 40).finished()
    wild = blocks.scatters[:, 0, 0].argmax()
    weights = ones(blocks)
    weights[wild] = 0
    covariance, _ = weighted_covariance(blocks, weights)
    np.testing.assert_allclose(covariance, np.eye(2), atol=5 * np.sqrt(2 / 2000))


def test_rows_draw_their_blocks(rng):
    num_rows, num_blocks = 20_000, 50
    _, blocks = sums_of(np.linspace(0, 1, num_rows)[:, None], num_blocks, 5).finished()
    expected = num_rows / num_blocks
    chi_square = np.sum((blocks.counts - expected) ** 2) / expected
    assert abs(chi_square - (num_blocks - 1)) < 4 * np.sqrt(2 * (num_blocks - 1))
    sizes = np.sqrt(blocks.counts) * blocks.offsets[:, 0] / np.sqrt(1 / 12)  # standard normal
    assert abs(np.sum(sizes**2) - (num_blocks - 1)) < 4 * np.sqrt(2 * (num_blocks - 1))


@pytest.mark.parametrize("is_sorted", [False, True])
def test_spread_of_replicates_is_that_of_gaussian_rows(rng, tmp_path, is_sorted):
    """By theory, the variance of an entry is (s_ii s_jj + s_ij^2) / n; and by the bootstrap of rows.

    Blocks that are alike, as those of a sorted file dealt out row by row, have a fourth of this spread.
    """
    num_rows, num_blocks, num_replicates = 20_000, 1000, 1000
    rows = rng.normal(size=(num_rows, 4)) @ np.triu(rng.uniform(0.5, 2, (4, 4))) + [0, 50, 0, 0]
    if is_sorted:
        rows = rows[np.argsort(rows[:, 0])]
    path = tmp_path / "a.parquet"
    parquet.write_table(pa.table(dict(zip("abcd", rows.T, strict=True))), path)
    gram = stream_gram(path, batch_rows=7000)
    found = entries(rng, gram.resampled, num_replicates)
    truth = gram.covariance
    variances = np.diagonal(truth)
    theory = np.sqrt((np.outer(variances, variances) + truth**2) / num_rows)
    error = error_of_spread(num_rows, num_blocks, num_replicates)
    np.testing.assert_allclose(found / theory, 1.0, atol=4 * error)
    centred = rows - rows.mean(0)

    def of_rows(rng):
        times = rng.multinomial(num_rows, np.full(num_rows, 1 / num_rows))
        mean = times @ centred / num_rows
        return (centred * times[:, None]).T @ centred / num_rows - np.outer(mean, mean), num_rows

    few = 200
    error = np.hypot(error, error_of_spread(num_rows, num_rows, few))
    np.testing.assert_allclose(found / entries(rng, of_rows, few), 1.0, atol=4 * error)


def test_replicates_have_the_covariance_in_the_middle(rng):
    num_rows, num_replicates = 5000, 400
    rows = rng.exponential(size=(num_rows, 2)) @ np.array([[1.0, 0.7], [0.0, 1.0]])
    _, blocks = sums_of(rows, 500).finished()
    drawn = np.array([resampled(blocks, rng)[0] for _ in range(num_replicates)])
    truth, _ = weighted_covariance(blocks, ones(blocks))
    # Means of n rows take 1 / n of the variance; the blocks' means are such means.
    middle = truth * (1 - 1 / num_rows)
    error = drawn.std(0) / np.sqrt(num_replicates)
    assert (np.abs(drawn.mean(0) - middle) < 4 * error).all()


def test_blocks_of_a_file_have_its_columns(tmp_path):
    """With a column to leave out, one whose levels come in the wrong order, and missing values."""
    codes = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0, 0, 1, 1], pa.int8()), ["v", "u"])
    data = {
        "level": codes,
        "same": pa.array([1.0, None, 1.0, 1.0, 1.0, 1.0]),
        "x": pa.array([0.5, 2.0, 1.0, None, 4.0, 0.0]),
    }
    parquet.write_table(pa.table(data), tmp_path / "a.parquet")
    gram, columns = stream_gram(tmp_path / "a.parquet"), read_columns(pa.table(data))
    assert gram.names == columns.names == ("level", "x")
    for num_blocks in (1, 2, 1000):
        blocks = stream_gram(tmp_path / "a.parquet", num_blocks=num_blocks).blocks
        assert blocks.scatters.flags.c_contiguous
        covariance, count = weighted_covariance(blocks, ones(blocks))
        assert count == gram.num_rows == 5
        np.testing.assert_allclose(covariance, np.cov(columns.values.T, bias=True), rtol=1e-12)


def test_how_many_blocks(rng, tmp_path):
    counts = [default_num_blocks(num_nodes) for num_nodes in (1, 50, 182, 500, 1000, 2000, 10_000)]
    assert counts == [1000, 1000, 1000, 133, 33, 8, 1]
    rows = rng.normal(size=(60, 2))
    (_, few), (_, one), (_, many) = (sums_of(rows, count).finished() for count in (8, 1, 100))
    (sentence,) = few_blocks_sentence(few)
    assert "only 8 blocks" in sentence
    assert "about 50%" in sentence
    assert few_blocks_sentence(many) == []
    with pytest.raises(ValueError, match="two or more blocks of rows are needed"):
        resampled(one, rng)
    with pytest.raises(ValueError, match="num_blocks must be 1 or more, not 0"):
        stream_gram(tmp_path / "a.csv", num_blocks=0)


def test_which_files_are_large(tmp_path, monkeypatch):
    table = pa.table({"x": np.arange(100.0), "y": np.arange(100.0)})
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("x,y\n" + "1,2\n" * 100)
    (tmp_path / "bad.parquet").write_text("no parquet file")
    files = [tmp_path / name for name in ("a.parquet", "a.csv", "bad.parquet", "none.csv")]
    assert [is_large(path) for path in files] == [False] * 4
    monkeypatch.setattr("qbs.models.structural.streaming._LARGE_TABLE", 199)
    monkeypatch.setattr("qbs.models.structural.streaming._LARGE_FILE", 403)
    assert [is_large(path) for path in files] == [True, True, False, False]
    monkeypatch.setattr("qbs.models.structural.streaming._LARGE_TABLE", 200)
    assert not is_large(tmp_path / "a.parquet")


@pytest.mark.slow
def test_a_million_rows_by_fifty_columns_fit_in_four_gigabytes(rng, tmp_path):
    path, names = tmp_path / "a.parquet", [f"x{at}" for at in range(50)]
    schema = pa.schema([(name, pa.float64()) for name in names])
    with parquet.ParquetWriter(path, schema) as writer:
        for _ in range(20):
            rows = rng.normal(size=(50_000, 50)).cumsum(1)
            writer.write_table(pa.table(dict(zip(names, rows.T, strict=True)), schema))
    script = f"""
        import resource
        import numpy as np
        from qbs.models.structural.streaming import is_large, stream_gram
        assert is_large({str(path)!r})
        gram, rng = stream_gram({str(path)!r}), np.random.default_rng(0)
        replicates = [gram.resampled(rng)[0] for _ in range(200)]
        assert gram.num_rows == 1_000_000
        steps = np.minimum.outer(np.arange(50), np.arange(50)) + 1.0
        spread = np.sqrt((np.outer(np.diag(steps), np.diag(steps)) + steps**2) / 1e6)
        assert (np.abs(gram.covariance - steps) < 6 * spread).all()
        ratio = np.std(replicates, axis=0) / spread
        assert np.abs(ratio - 1).max() < 5 * np.sqrt(2 / 1000 + 2 / 200) / 2, ratio
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    """
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 4
