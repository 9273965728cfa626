"""Importing qbs does nothing that a user could notice, and its lazy names are found when asked for."""

import subprocess
import sys

import pytest

SNAPSHOT = """
import logging, sys, warnings

def snapshot():
    loggers = {name: logger for name, logger in logging.root.manager.loggerDict.items()
               if isinstance(logger, logging.Logger)}
    state = {
        "warnings": list(warnings.filters),
        "logging": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "loggers": {name: (logger.level, list(logger.handlers)) for name, logger in loggers.items()
                    if logger.level or logger.handlers},
    }
    if "jax" in sys.modules:
        state["jax"] = dict(sys.modules["jax"].config.values)
    return state
"""

# JAX refuses this setting once a backend runs; asking for live arrays would start one.
NO_DEVICE = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
assert jax.live_arrays() == [], jax.live_arrays()
"""


def run_python(code: str) -> str:
    """Run code in a fresh interpreter in which every warning is an error; return what it printed."""
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_import_changes_nothing():
    code = f"""{SNAPSHOT}
before = snapshot()
import qbs
assert snapshot() == before
qbs.__version__, dir(qbs)
heavy = ("arviz", "arviz_base", "dynesty", "jax", "matplotlib", "numpyro", "rich", "typer", "xarray")
loaded = [name for name in heavy if name in sys.modules]
assert loaded == [], loaded
{NO_DEVICE}
"""
    assert run_python(code) == ""


def test_public_names_change_nothing():
    # The libraries below qbs come first, so that what they do on import is not counted.
    code = f"""{SNAPSHOT}
import dynesty, equinox, jax, jaxtyping, numpyro, numpyro.infer, optax
before = snapshot()
import qbs
for name in qbs.__all__:
    getattr(qbs, name)
qbs.inference.mcmc, qbs.inference.nested, qbs.models.cosmology
assert set(qbs.__all__) <= set(dir(qbs))
after = snapshot()
for part in before:
    assert after[part] == before[part], (part, before[part], after[part])
assert "arviz" not in sys.modules and "typer" not in sys.modules
{NO_DEVICE}
"""
    assert run_python(code) == ""


@pytest.mark.parametrize("name", ["fit", "load", "Posterior", "Target", "errors.QbsError"])
def test_lazy_name(name):
    assert run_python(f"import qbs; print(callable(qbs.{name}))") == "True\n"


@pytest.mark.parametrize("name", ["qbs.inference.mcmc", "qbs.inference.nested", "qbs.models.cosmology"])
def test_lazy_subpackage(name):
    assert run_python(f"import qbs; print({name}.__name__)") == f"{name}\n"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("qbs.nonsense", "it has Calls, Checkpoint"),
        ("qbs.posterier", "did you mean 'qbs.Posterior'"),
        ("qbs.inference.nonsense", "it has mcmc, nested, results"),
        ("qbs.models.nonsense", "it has change_point, cosmology"),
    ],
)
def test_unknown_name(name, hint):
    module, _, attribute = name.rpartition(".")
    code = f"""
import qbs
try:
    {name}
except AttributeError as error:
    print(error)
"""
    message = run_python(code)
    assert message.startswith(f"module {module!r} has no attribute {attribute!r}")
    assert hint in message
