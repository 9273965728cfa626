"""Where a result comes from: fingerprints, versions, settings and clocks."""

import hashlib
import json
import time
from datetime import UTC, datetime, timedelta
from importlib import metadata

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qbs.inference.results.provenance import data_fingerprint, provenance, settings, stopwatch, versions


class _Inner(eqx.Module):
    scale: float = 0.5


class _Settings(eqx.Module):
    count: int = eqx.field(static=True, default=7)
    rate: float = 0.25
    name: str = eqx.field(static=True, default="x")
    flag: bool = eqx.field(static=True, default=True)
    nothing: None = None
    number: jax.Array = eqx.field(default_factory=lambda: jnp.asarray(1.5))
    vector: jax.Array = eqx.field(default_factory=lambda: jnp.arange(3))
    inner: _Inner = eqx.field(default_factory=_Inner)


def test_fingerprint_is_the_sha_of_dtype_shape_and_bytes():
    array = np.array([[1.0, 2.0], [3.0, 4.0]])
    expected = hashlib.sha256(b"<f8(2, 2)" + array.tobytes()).hexdigest()
    assert data_fingerprint((array,)) == expected
    assert data_fingerprint((np.asfortranarray(array),)) == expected
    assert data_fingerprint((array.T.copy().T,)) == expected
    with jax.enable_x64(True):
        assert data_fingerprint((jnp.asarray(array),)) == expected


def test_fingerprints_tell_data_apart():
    a = np.arange(4.0)
    variants = [
        (),
        (a,),
        (a.reshape(2, 2),),
        (a.astype(np.float32),),
        (a.astype(np.int64),),
        (a[::-1],),
        (a, a),
        (a[:2], a[2:]),
        (np.float64(0),),
        (np.zeros(1),),
        (np.zeros((1, 1)),),
        (np.zeros(0),),
        (np.zeros((0, 3)),),
        (np.array([np.nan]),),
        (np.array([-0.0]),),
    ]
    prints = [data_fingerprint(variant) for variant in variants]
    assert len(set(prints)) == len(prints)
    assert prints[0] == ""
    assert data_fingerprint((a.copy(),)) == prints[1]


def test_versions_are_those_installed():
    found = versions()
    for package in ("jax", "jaxlib", "numpyro", "equinox", "numpy", "qbs-jax"):
        assert found[package] == metadata.version(package)
    assert found["python"].count(".") == 2


def test_settings_are_plain_values():
    found = settings(_Settings())
    assert found["count"] == 7
    assert found["flag"] is True
    assert found["nothing"] is None
    assert (found["rate"], found["name"], found["number"]) == (0.25, "x", 1.5)
    assert type(found["number"]) is float
    assert found["vector"] == [0, 1, 2]
    assert found["inner"] == {"type": "_Inner", "scale": 0.5}
    json.dumps(found)


def test_the_record_of_a_run():
    key = jax.random.key(12345)
    record = provenance(_Settings(), "line", key, (np.arange(3.0),))
    assert (record["model"], record["method"]) == ("line", "_Settings")
    assert record["settings"]["count"] == 7
    assert record["data_sha256"] == data_fingerprint((np.arange(3.0),))
    assert record["device"] == jax.default_backend()
    assert json.loads(json.dumps(record)) == record
    age = datetime.now(UTC) - datetime.fromisoformat(record["started"])
    assert timedelta(seconds=-1) <= age < timedelta(minutes=5)


@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_the_key_can_be_made_again_from_the_record(kind):
    key = jax.random.split(jax.random.key(99, impl=kind))[1]
    record = provenance(_Settings(), "line", key, ())
    words = jnp.asarray(record["seed"], dtype=jnp.uint32)
    again = jax.random.wrap_key_data(words, impl=record["key_type"])
    assert jax.random.normal(again) == jax.random.normal(key)


def test_stopwatch_counts_wall_time():
    with stopwatch() as watch:
        assert watch.wall == 0
        start = time.perf_counter()
        time.sleep(0.05)
        slept = time.perf_counter() - start
    assert watch.wall >= slept


def test_stopwatch_hears_compilation_and_only_that():
    function = jax.jit(lambda x: jnp.linalg.cholesky(jnp.sin(x) @ jnp.cos(x).T + 10 * jnp.eye(7)))
    x = jnp.ones((7, 7))
    with stopwatch() as first:
        function(x).block_until_ready()
    with stopwatch() as second:
        function(x).block_until_ready()
    assert 0 < first.compiling <= first.wall
    assert second.compiling == 0


def test_stopwatch_stops_at_an_exception():
    with pytest.raises(ZeroDivisionError), stopwatch() as watch:
        raise ZeroDivisionError
    assert watch.wall > 0
