"""Arguments of the wrong type get a sentence of ours.

In a process of its own, because under test the shapes and types of public functions are checked first.
"""

import subprocess
import sys

_SCRIPT = """
import jax, numpy as np, numpyro, numpyro.distributions as dist
import qbs
from qbs.inference.mcmc import NUTS
from qbs.inference.nested import Dynesty

def model(y):
    numpyro.sample("y", dist.Normal(numpyro.sample("x", dist.Normal(0, 1)), 1), obs=y)

key, y = jax.random.key(0), np.ones(3)
prior = {"x": dist.Normal(0, 1)}
cases = [
    (lambda: qbs.fit(model, y, key=0), TypeError, "jax.random.key(seed), not int"),
    (lambda: qbs.fit(model, y, key=None), TypeError, "jax.random.key(seed), not NoneType"),
    (lambda: qbs.fit(model, y, key=jax.random.PRNGKey(0)), TypeError, "jax.random.key(seed)"),
    (lambda: qbs.fit(model, y, key=jax.random.split(key)), TypeError, "one key, not an array"),
    (lambda: qbs.fit(model, y, method="nuts", key=key), TypeError, "qbs.inference.mcmc.NUTS()"),
    (lambda: qbs.fit(model, y, method=NUTS, key=key), TypeError, "method must be a method"),
    (lambda: qbs.fit("model", y, key=key), qbs.errors.ModelError, "not str"),
    (lambda: qbs.fit(model, y, key=key, precision="half"), ValueError, "'float32', 'float64'"),
    (lambda: NUTS(num_draws=2.5), ValueError, "num_draws must be a whole number"),
    (lambda: Dynesty(num_live="many"), ValueError, "num_live must be a whole number"),
    (lambda: Dynesty(dlogz=None), ValueError, "dlogz must be a number"),
    (lambda: qbs.Target(3, prior), qbs.errors.ModelError, "must be a function"),
    (lambda: qbs.Target(len, {"x": 3}), qbs.errors.ModelError, "prior of 'x' must be a NumPyro distribution"),
    (lambda: qbs.Target(len, {}), qbs.errors.ModelError, "from parameter name"),
]
for call, error, words in cases:
    try:
        call()
    except error as caught:
        assert words in str(caught), (words, str(caught))
        print("ok")
    else:
        raise AssertionError(words)
"""


def test_wrong_types_are_explained():
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ok"] * _SCRIPT.count("    (lambda")
