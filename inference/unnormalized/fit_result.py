"""What fitting a model known up to a constant returns."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from qbs.errors import PosteriorFileError
from qbs.inference.checkpoint import Saved, pack, unpack
from qbs.inference.results import archive
from qbs.inference.unnormalized.densities import Densities, take_apart
from qbs.inference.unnormalized.log_partition import sampled_by_smc
from qbs.inference.unnormalized.noise import GaussianNoise, GivenNoise, MarginalNoise, Noise

_KIND = archive.Kind("qbs unnormalized fit", 1, "a saved fit of an unnormalized model", PosteriorFileError)


@dataclass(frozen=True, eq=False)
class UnnormalizedFit:
    """A fitted model whose density was known up to a constant.

    Attributes:
        params: The parameters, a tree of the structure that was given.
        log_partition: The log of the constant, in nats.
        log_partition_error: Its standard error.
        problems: What to know before trusting the result, as sentences; empty where nothing speaks against
            it.
        noise: The noise that the fit ended with.
        densities: The log density as a function of the numbers among the parameters.
        numbers: These.
        history: Values along the run by name, of up to 200 steps: `step`, `objective`, `log_partition` (the
            running estimate), `effective_size` (of the noise draws of a step), `gradient_norm`.
        provenance: Versions, settings, seed, times and the fingerprint of the data.
    """

    params: Any
    log_partition: float
    log_partition_error: float
    problems: list[str]
    noise: Noise = field(repr=False)
    densities: Densities = field(repr=False)
    numbers: Any = field(repr=False)
    history: dict[str, np.ndarray] = field(repr=False)
    provenance: dict[str, Any] = field(repr=False)

    @property
    def converged(self) -> bool:
        """Whether nothing speaks against the result."""
        return not self.problems

    def log_prob(self, x: Shaped[Array, "..."] | np.ndarray) -> Float[Array, "..."]:
        """Return normalized log densities, in nats.

        Args:
            x: A row of the data, or an array of rows.

        Raises:
            ValueError: If the shape is neither.
        """
        row = tuple(self.provenance["row_shape"])
        x = jnp.asarray(x)
        if x.shape == row:
            return self.log_prob(x[None])[0]
        if x.shape[1:] != row or x.ndim != len(row) + 1:
            raise ValueError(
                f"log_prob: x must be a row of shape {row} or an array of them, not of shape {x.shape}"
            )
        return self.densities(self.numbers, x) - self.log_partition

    def sample(self, key: Array, num_draws: int = 1000) -> Shaped[np.ndarray, "num_draws ..."]:
        """Return draws of the model, by tempered sequential Monte Carlo from the noise; real numbers only."""
        for_smc, for_choice = jax.random.split(key)
        sampled = sampled_by_smc(self.densities, self.numbers, self.noise, for_smc, max(num_draws, 1024))
        seed = int(jax.random.randint(for_choice, (), 0, 2**31 - 1))
        return sampled.resample(num_draws, seed=seed)["x"]

    def save(self, path: str | Path) -> None:
        """Write the fit to a file, without the function `log_density`; `load` reads it.

        Raises:
            OSError: If the folder does not exist or the disk is full.
        """
        header = {
            "log_partition": self.log_partition,
            "log_partition_error": self.log_partition_error,
            "problems": self.problems,
            "provenance": self.provenance,
            "noise": type(self.noise).__name__,
            "noise_shape": list(getattr(self.noise, "shape", ())),
        }
        arrays = pack(self.numbers, "params") | pack(self.noise, "noise")
        arrays |= {f"history/{name}": values for name, values in self.history.items()}
        archive.write(Path(path), _KIND, header, arrays)

    @staticmethod
    def load(
        path: str | Path, log_density: Callable[..., Any], params: Any, *, noise: Any = None
    ) -> "UnnormalizedFit":
        """Read a fit from a file.

        Args:
            path: Written by `save`.
            log_density: As it was fitted.
            params: A tree of the same structure and shapes.
            noise: As it was given to the fit, where it was a distribution.

        Raises:
            PosteriorFileError: If the file is something else, is damaged, or is of other parameters.
        """
        header, arrays = archive.read(Path(path), _KIND)
        row = jnp.zeros(header["provenance"]["row_shape"], header["provenance"]["row_type"])
        saved = Saved({}, arrays)
        try:
            numbers, densities = take_apart(log_density, params, row)
            numbers = unpack(arrays, numbers, "params")
            kept = unpack(arrays, _empty_noise(header, arrays, noise), "noise")
        except (ValueError, TypeError) as error:
            raise PosteriorFileError(f"{path} is not of these params or this noise: {error}") from error
        return UnnormalizedFit(
            params=densities.params(numbers),
            log_partition=header["log_partition"],
            log_partition_error=header["log_partition_error"],
            problems=list(header["problems"]),
            noise=kept,
            densities=densities,
            numbers=numbers,
            history=saved.group("history/"),
            provenance=header["provenance"],
        )


def _empty_noise(header: dict[str, Any], arrays: dict[str, np.ndarray], given: Any) -> Noise:
    """Return noise of the structure that was saved."""
    name, shape = header["noise"], tuple(header["noise_shape"])
    if name == "GaussianNoise":
        return GaussianNoise(jnp.asarray(arrays["noise/0"]), jnp.asarray(arrays["noise/1"]), shape)
    if name == "MarginalNoise":
        return MarginalNoise(jnp.asarray(arrays["noise/0"]), shape)
    if given is None:
        raise ValueError("it was fitted with a distribution as its noise: give it as noise=")
    return given if isinstance(given, Noise) else GivenNoise(given)
