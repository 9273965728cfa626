"""Loops of chains compiled into one kernel: the same numbers, and the usual way where that cannot be."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qbs.inference import cpu
from qbs.inference.cpu import chains_in_one_kernel, is_straight, light_jit

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="for a CPU alone")


def walks(mapped, keys, start, length):
    """Random walks that turn back at a distance of 1, with all their places."""

    def run_chain(key):
        def turn(index, carry):
            key, x, places = carry
            key, own = jax.random.split(key)
            x = x + 0.1 * jax.random.normal(own, x.shape)
            x = jnp.where(jnp.sum(x**2) > 1, 0.5 * x, x)
            return key, x, places.at[index].set(x)

        key, _, places = jax.lax.fori_loop(0, length, turn, (key, start, jnp.zeros((20, *start.shape))))
        return {"key": key, "places": places}

    return mapped(run_chain)(keys)


def started(key):
    return jax.random.split(key, 3), jnp.array([0.3, -0.2, 0.9])


@pytest.mark.parametrize("length", [1, 20])
def test_one_kernel_gives_the_same_numbers(key, length):
    keys, start = started(key)
    expected, found = walks(jax.vmap, keys, start, length), chains_in_one_kernel(walks)(keys, start, length)
    assert jnp.all(jax.random.key_data(found["key"]) == jax.random.key_data(expected["key"]))
    np.testing.assert_allclose(found["places"], expected["places"], rtol=1e-5, atol=1e-6)


def test_one_kernel_in_double_precision(key):
    with jax.enable_x64(True):
        keys, start = started(key)
        found, expected = chains_in_one_kernel(walks)(keys, start, 20), walks(jax.vmap, keys, start, 20)
        assert found["places"].dtype == np.float64
        np.testing.assert_allclose(found["places"], expected["places"], rtol=1e-13)


def test_precisions_do_not_share_code(key):
    """A function whose arguments have no precision has two programs."""
    draw = chains_in_one_kernel(lambda mapped, keys: mapped(partial(jax.random.normal, shape=(3,)))(keys))
    keys = jax.random.split(key, 2)
    assert draw(keys).dtype == np.float32
    with jax.enable_x64(True):
        assert draw(keys).dtype == np.float64
    assert draw(keys).dtype == np.float32


def test_what_is_no_array_is_part_of_the_program(key):
    wave = chains_in_one_kernel(lambda mapped, function, x: mapped(function)(x))
    x = jnp.arange(3.0)
    for function in (jnp.sin, jnp.cos):
        np.testing.assert_allclose(wave(function, x), function(x), rtol=1e-6)


@on_cpu
def test_the_loop_is_one_kernel(key):
    """Compiled as usual there is a loop that starts kernels; here a kernel with the loop in it."""
    keys, start = started(key)
    usual = jax.jit(partial(walks, cpu._in_turn))
    marked = cpu._marked(jax.jit(lambda arrays: walks(cpu._in_turn, *arrays)).trace((keys, start, 5)))
    with_loop = usual.lower(keys, start, 5).compile().as_text().split("ENTRY")[1]
    with_kernel = marked.lower((keys, start, 5)).compile().as_text().split("ENTRY")[1]
    assert " while(" in with_loop
    assert " while(" not in with_kernel
    assert 'xla_cpu_small_call="true"' in with_kernel


def solve(vector):
    """A call of LAPACK in a loop."""

    def turn(_, vector):
        factor = jnp.linalg.cholesky(jnp.eye(3) + jnp.diag(vector**2))
        return jax.scipy.linalg.cho_solve((factor, True), vector)

    return jax.lax.fori_loop(0, 3, turn, vector)


def rank(vector):
    """Sorting in a loop."""
    return jax.lax.fori_loop(0, 3, lambda i, x: jnp.sort(x)[::-1] + i, vector)


def scatter(vector):
    """Places written to in parallel, which the compiler refuses."""
    places = jnp.array([2, 0, 1])
    put = jax.vmap(lambda row, place, x: row.at[place].set(x))
    return jax.lax.fori_loop(0, 3, lambda i, x: put(jnp.zeros((3, 9)), places + i, x).sum(1), vector)


def call_back(vector):
    """Python in a loop."""
    shape = jax.ShapeDtypeStruct(vector.shape, vector.dtype)
    back = partial(jax.pure_callback, np.sin, shape, vmap_method="sequential")
    return jax.lax.fori_loop(0, 3, lambda _, x: back(x), vector)


def stretch(vector):
    """Arrays of a million numbers, which several cores take on."""
    long = jnp.linspace(0, 1, 1_000_000)
    return jax.lax.fori_loop(0, 2, lambda _, x: jnp.sin(long * x[0]).mean() + x, vector)


@pytest.mark.parametrize("function", [solve, rank, scatter, call_back, stretch])
def test_what_cannot_be_one_kernel_runs_as_usual(function):
    chains = jnp.array([[3.0, 1, 2], [0.5, 0.1, 0.2]])
    compiled = chains_in_one_kernel(lambda mapped, chains: mapped(function)(chains))
    expected = jax.vmap(function)(chains)
    for _ in range(2):  # the second time, it is known
        np.testing.assert_allclose(compiled(chains), expected, rtol=1e-4)


def test_an_error_of_the_program_is_not_hidden():
    def fail(_):
        raise ValueError("no such value")

    def run_chain(x):
        return jax.pure_callback(fail, jax.ShapeDtypeStruct((3,), np.float32), x, vmap_method="sequential")

    compiled = chains_in_one_kernel(lambda mapped, chains: mapped(run_chain)(chains))
    with pytest.raises(Exception, match="no such value"):
        jax.block_until_ready(compiled(jnp.zeros((2, 3))))


def test_light_jit_gives_the_same_numbers(key):
    keys, start = started(key)
    expected, found = walks(jax.vmap, keys, start, 9), light_jit(partial(walks, jax.vmap))(keys, start, 9)
    np.testing.assert_allclose(found["places"], expected["places"], rtol=1e-5, atol=1e-6)


def test_an_unknown_option_is_left_out(key, monkeypatch):
    """With a compiler that does not know the options, everything is compiled as usual."""
    monkeypatch.setattr(cpu, "_LIGHT", {"xla_no_such_option": True})
    cpu._knows_options.cache_clear()
    try:
        keys, start = started(key)
        expected = walks(jax.vmap, keys, start, 5)["places"]
        for compiled in (chains_in_one_kernel(walks), light_jit(partial(walks, jax.vmap))):
            np.testing.assert_allclose(compiled(keys, start, 5)["places"], expected, rtol=1e-5, atol=1e-6)
    finally:
        cpu._knows_options.cache_clear()


def test_loops_of_a_model_are_seen():
    x = jnp.arange(3.0)
    assert is_straight(jax.grad(lambda x: jnp.sum(jax.nn.softplus(x) * jax.scipy.special.erf(x))), x)
    assert not is_straight(jax.grad(lambda x: jax.lax.scan(lambda c, y: (c * y, None), 1.0, x)[0]), x)
    assert not is_straight(jax.jit(lambda x: jax.lax.cond(x[0] > 0, jnp.sum, jnp.max, x)), x)
    assert not is_straight(lambda x: jax.scipy.special.gammainc(x, 2.0), x)
    assert not is_straight(lambda x: jnp.linalg.cholesky(jnp.diag(x)), x)


def test_usual_when_it_is_not_possible(key):
    keys, start = started(key)
    found = chains_in_one_kernel(walks)(keys, start, 9, is_possible=False)
    np.testing.assert_allclose(
        found["places"], walks(jax.vmap, keys, start, 9)["places"], rtol=1e-5, atol=1e-6
    )
