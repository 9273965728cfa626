"""Try an installed qbs: run with `python -I` from a folder far from the source tree. Needs no pytest."""

import math
import subprocess
import sys
import sysconfig
import tempfile
from importlib.resources import files
from pathlib import Path

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist

import qbs
import qbs.inference
import qbs.models
import qbs.models.cosmology


def model(y):
    """A normal sample of unknown mean and scale."""
    mean = numpyro.sample("mean", dist.Normal(0.0, 3.0))
    scale = numpyro.sample("scale", dist.HalfNormal(2.0))
    with numpyro.plate("observations", len(y)):
        numpyro.sample("y", dist.Normal(mean, scale), obs=y)


def quadrature(y):
    """Return the log evidence and the posterior mean of `mean`, by the trapezium rule on a fine grid."""
    mean, scale = np.linspace(-4.0, 6.0, 1001)[:, None], np.linspace(0.02, 8.0, 1001)[None, :]
    # The density of Normal(0, 3) times that of HalfNormal(2).
    log_prior = -0.5 * (mean / 3.0) ** 2 - 0.5 * (scale / 2.0) ** 2 - math.log(3.0 * 2.0 * math.pi)
    squares = ((y[:, None, None] - mean) ** 2).sum(0)
    log_likelihood = -0.5 * squares / scale**2 - len(y) * (np.log(scale) + 0.5 * math.log(2.0 * math.pi))
    log_joint = log_prior + log_likelihood
    weight = np.exp(log_joint - log_joint.max())
    cell = (mean[1, 0] - mean[0, 0]) * (scale[0, 1] - scale[0, 0])
    return log_joint.max() + math.log(weight.sum() * cell), float((weight * mean).sum() / weight.sum())


def check_files():
    """Every module of qbs comes from the installed wheel, and so do its data and its types marker."""
    site = Path(sysconfig.get_path("purelib")).resolve()
    for name, module in sorted(sys.modules.items()):
        if name.split(".")[0] == "qbs":
            assert Path(module.__file__).resolve().is_relative_to(site), f"{name} is {module.__file__}"
        assert name.split(".")[0] not in ("inference", "models"), name
    tables = [entry.name for entry in (files("qbs.models.cosmology") / "data").iterdir() if entry.is_file()]
    assert tables, "the wheel has no tables in qbs/models/cosmology/data"
    assert (files("qbs") / "py.typed").is_file(), "the wheel has no py.typed"
    print(f"qbs {qbs.__version__} from {site}, {len(tables)} tables")


def check_fits():
    """Two methods agree with quadrature, and a saved posterior comes back."""
    y = np.random.default_rng(0).normal(1.0, 0.7, 25)
    log_evidence, mean = quadrature(y)
    methods = [
        qbs.inference.nested.Dynesty(num_live=50),
        qbs.inference.mcmc.NUTS(num_chains=2, num_warmup=200, num_draws=200),
    ]
    for method in methods:
        posterior = qbs.fit(model, y, method=method, key=jax.random.key(0))
        assert set(posterior.samples) >= {"mean", "scale"}, posterior.samples
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "posterior.qbs"
            posterior.save(path)
            again = qbs.load(path)
        for name, values in posterior.samples.items():
            np.testing.assert_array_equal(np.asarray(values), np.asarray(again.samples[name]))
        print(f"{type(method).__name__}: fitted, saved and loaded")
        if isinstance(method, qbs.inference.nested.Dynesty):
            # 50 live points and about 4 nats of information: an error of sqrt(4 / 50) = 0.3; five of these.
            found = float(posterior.log_evidence)
            assert abs(found - log_evidence) < 1.5, f"log evidence {found}, by quadrature {log_evidence}"
        else:
            # A posterior scale of 0.14 and at least 50 effective draws: an error of 0.02; five of these.
            found = float(np.mean(np.asarray(posterior.samples["mean"])))
            assert abs(found - mean) < 0.1, f"posterior mean {found}, by quadrature {mean}"


def check_command():
    """The command answers."""
    for option, expected in [("--help", "cosmology"), ("--version", qbs.__version__)]:
        command = [str(Path(sysconfig.get_path("scripts")) / "qbs"), option]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert expected in result.stdout, result.stdout
    print("qbs --help and qbs --version: answered")


if __name__ == "__main__":
    check_files()
    check_fits()
    check_command()
