"""A cosmological analysis: a model, data sets and priors, as a log likelihood and as a NumPyro model."""

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Real
from typing import Any

import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from qbs.models.cosmology import derived as derived_parameters
from qbs.models.cosmology.background import Cosmology, sound_horizon
from qbs.models.cosmology.expansion import cold_density
from qbs.models.cosmology.likelihoods import DATA_SETS, DataPath, Likelihood
from qbs.models.cosmology.parameters import MODELS, OPTIONAL, PARAMETERS

SOUND_HORIZONS = ("formula", "free")
"""How the sound horizon is set: from Om, h and Obh2, or as the free parameter hrd."""

FIDUCIAL_H = 0.68
"""The h that sets the radiation density where nothing constrains h: Omega_r = 9.0e-5."""


@dataclass(frozen=True, eq=False, init=False)
class Analysis:
    """A model, data sets and priors, ready to be sampled.

    The sampled parameters are Om; those of the model: w, wa, Ok, Om1, Om2 as `MODELS` says; and those that
    the data need: h for all chronometers, `h0` and `pantheon_plus_sh0es`, Obh2 for `bbn`, both for the two
    compressions of the CMB, sigma8 for `fsigma8`; for BAO, h and Obh2 when the sound horizon is the formula,
    hrd when it is free. The other supernovae need none. Where nothing needs h, the radiation density takes
    `FIDUCIAL_H`, unless `priors` gives h. Neutrinos have no mass unless `priors` gives mnu, fixed or sampled.

    All methods are plain JAX in the ambient precision; `qbs.fit` for evidence runs them in float64. An
    analysis is equal to itself only, so it can be hashed. Building one is cheap: tables are read once.

    Args:
        model: A name of `MODELS`.
        data: Names of `DATA_SETS`, or likelihoods of your own, each once; or one of them. Data sets that
            share observations are not refused here: see `overlaps`.
        priors: Priors that replace the defaults of `PARAMETERS`, by parameter: a pair `[low, high]` is
            uniform, `{"normal": [mean, sd]}` is normal, a number fixes the parameter, and a NumPyro
            distribution is taken as it is.
        sound_horizon: "formula" computes r_d from Om, h and Obh2; "free" samples hrd.
        data_path: Where to look for tables that do not ship with qbs; see `tables.pantheon_plus`.

    Attributes:
        model: As given.
        data: The names of the data sets, as a tuple.
        sound_horizon: As given.
        priors: The prior of each sampled parameter, in the order of `PARAMETERS`.
        fixed: The value of each parameter that a number in `priors` fixed.
        likelihoods: The likelihood of each data set, by name.

    Raises:
        ValueError: If a name is unknown or a prior is not valid; the message lists what is accepted.
        DataError: If a table is missing or damaged.
    """

    model: str
    data: tuple[str, ...]
    sound_horizon: str
    priors: dict[str, dist.Distribution]
    fixed: dict[str, float]
    likelihoods: dict[str, Likelihood]

    def __init__(
        self,
        model: str = "LCDM",
        data: str | Likelihood | Iterable[str | Likelihood] = ("cc", "desi_dr2", "bbn"),
        *,
        priors: Mapping[str, Any] | None = None,
        sound_horizon: str = "formula",
        data_path: DataPath = None,
    ) -> None:
        data = (data,) if isinstance(data, str | Likelihood) else tuple(data)
        used = set(used_parameters(model, data, sound_horizon=sound_horizon))
        overrides = dict(priors or {})
        for name in overrides:
            _check_name("parameter in priors", name, PARAMETERS)
            if name not in used.union(OPTIONAL):
                raise ValueError(
                    f"priors: {name} is not a parameter of model {model} with data "
                    f"{list(map(_name, data))} and sound_horizon {sound_horizon!r}; accepted: "
                    f"{', '.join(_in_order(used.union(OPTIONAL)))}"
                )
        used |= overrides.keys()
        resolved = {
            name: resolve_prior(name, overrides[name]) if name in overrides else parameter.prior
            for name, parameter in PARAMETERS.items()
            if name in used
        }
        fields = {
            "model": model,
            "data": tuple(_name(item) for item in data),
            "sound_horizon": sound_horizon,
            "priors": {n: p for n, p in resolved.items() if not isinstance(p, float)},
            "fixed": {n: p for n, p in resolved.items() if isinstance(p, float)},
            "likelihoods": {
                _name(item): DATA_SETS[item].load(data_path) if isinstance(item, str) else item
                for item in data
            },
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the sampled parameters, in the order of `PARAMETERS`."""
        return tuple(self.priors)

    def prior_range(self, name: str) -> tuple[float | None, float | None]:
        """Return the lower and upper end of a sampled parameter's prior; None on a side without one."""
        support = self.priors[name].support
        low, high = (getattr(support, end, None) for end in ("lower_bound", "upper_bound"))
        return (None if low is None else float(low), None if high is None else float(high))

    def cosmology(self, params: Mapping[str, ArrayLike]) -> Cosmology:
        """Return the background at a point.

        Args:
            params: A scalar for each of `parameters`; other names are ignored.

        Returns:
            The cosmology, with fixed and fiducial values filled in.

        Raises:
            ValueError: If a parameter is missing.
        """
        values: dict[str, Any] = {"h": FIDUCIAL_H, **self._values(params)}
        values.pop("hrd", None)
        return Cosmology(**values)

    def chi2(self, params: Mapping[str, ArrayLike]) -> dict[str, Float[Array, ""]]:
        """Return chi squared of each data set.

        Args:
            params: A scalar for each of `parameters`; other names are ignored.

        Returns:
            chi2 by data set; inf where the cosmology is not physical.

        Raises:
            ValueError: If a parameter is missing.
        """
        cosmology, horizon = self.cosmology(params), self.rd(params)
        return {name: data_set.chi2(cosmology, horizon) for name, data_set in self.likelihoods.items()}

    def log_likelihood(self, params: Mapping[str, ArrayLike]) -> Float[Array, ""]:
        """Return the sum over data sets of -chi2/2, without normalising constants.

        Args:
            params: A scalar for each of `parameters`; other names are ignored.

        Returns:
            The log likelihood; -inf, with finite gradients, where the cosmology is not physical.

        Raises:
            ValueError: If a parameter is missing.
        """
        return -0.5 * jnp.sum(jnp.stack(list(self.chi2(params).values())))

    def derived(self, params: Mapping[str, ArrayLike]) -> dict[str, Float[Array, ""]]:
        """Return the derived parameters that are defined in this analysis.

        Args:
            params: A scalar for each of `parameters`; other names are ignored.

        Returns:
            H0 [km/s/Mpc] and age [Gyr] if h is sampled or given; rd [Mpc] if h and what sets the sound
            horizon are; hrd [Mpc] if rd is and hrd is not itself a parameter; S8 if sigma8 is sampled or
            given; always Ode, q0 and z_transition. The module `derived` has their definitions. The age is
            NaN if the universe had no beginning.

        Raises:
            ValueError: If a parameter is missing.
        """
        values = self._values(params)
        cosmology, horizon = self.cosmology(params), self.rd(params)
        derived = {}
        if "h" in values:
            derived["H0"] = jnp.asarray(100.0 * values["h"])
        if "h" in values and horizon is not None:
            derived["rd"] = horizon
            if "hrd" not in values:
                derived["hrd"] = jnp.asarray(values["h"] * horizon)
        if "h" in values:
            derived["age"] = derived_parameters.age(cosmology)
        derived["Ode"] = derived_parameters.dark_energy_density(cosmology)
        derived["q0"] = derived_parameters.deceleration(cosmology)
        derived["z_transition"] = derived_parameters.transition_redshift(cosmology)
        if "sigma8" in values:
            derived["S8"] = jnp.asarray(values["sigma8"] * jnp.sqrt(jnp.asarray(values["Om"]) / 0.3))
        return derived

    def numpyro_model(self) -> None:
        """Sample the priors and add each data set as a factor of its name, as a NumPyro model.

        The derived parameters are deterministic sites.
        """
        params = {name: numpyro.sample(name, prior) for name, prior in self.priors.items()}
        for name, chi2 in self.chi2(params).items():
            numpyro.factor(name, -0.5 * chi2)
        for name, value in self.derived(params).items():
            numpyro.deterministic(name, value)

    def _values(self, params: Mapping[str, ArrayLike]) -> dict[str, ArrayLike]:
        """Return the sampled and the fixed values."""
        missing = [name for name in self.priors if name not in params]
        if missing:
            raise ValueError(
                f"params lacks {', '.join(missing)}; this analysis needs {', '.join(self.parameters)}"
            )
        return {name: params[name] for name in self.priors} | dict(self.fixed)

    def rd(self, params: Mapping[str, ArrayLike]) -> Array | None:
        """Return the sound horizon r_d [Mpc], or None when no parameter sets it.

        Args:
            params: A scalar for each of `parameters`; other names are ignored.
        """
        values = self._values(params)
        if "hrd" in values:
            return jnp.asarray(values["hrd"] / values.get("h", FIDUCIAL_H))
        if self.sound_horizon == "formula" and {"h", "Obh2"} <= values.keys():
            return sound_horizon(cold_density(self.cosmology(params)), values["h"], values["Obh2"])
        return None


def used_parameters(
    model: str, data: Iterable[str | Likelihood], *, sound_horizon: str = "formula"
) -> tuple[str, ...]:
    """Return the parameters that a model and data sets need, before any is fixed.

    Args:
        model: A name of `MODELS`.
        data: Names of `DATA_SETS`, or likelihoods, each once.
        sound_horizon: "formula" or "free".

    Returns:
        Names of `PARAMETERS`, in its order.

    Raises:
        ValueError: If a name is unknown, `data` is empty or has repeats, or a likelihood needs a parameter
            that is not in `PARAMETERS`.
    """
    _check_name("model", model, MODELS)
    _check_name("sound_horizon", sound_horizon, SOUND_HORIZONS)
    data = tuple(data)
    for item in data:
        if isinstance(item, Likelihood):
            for name in item.parameters:
                _check_name(f"parameter of the likelihood {item.name!r}:", name, PARAMETERS)
        else:
            _check_name("data set", item, DATA_SETS)
    names = [_name(item) for item in data]
    if not data or len(set(names)) < len(names):
        raise ValueError(f"data must name at least one data set, each once, not {names}")
    needed = (
        item.parameters if isinstance(item, Likelihood) else DATA_SETS[item].parameters for item in data
    )
    used = {"Om", *MODELS[model].parameters}.union(*needed)
    if sound_horizon == "formula" and "hrd" in used:
        used = used - {"hrd"} | {"h", "Obh2"}
    return _in_order(used)


def _name(item: str | Likelihood) -> str:
    return item.name if isinstance(item, Likelihood) else item


def _in_order(names: Set[str]) -> tuple[str, ...]:
    return tuple(name for name in PARAMETERS if name in names)


def _check_name(what: str, name: Any, accepted: Iterable[str]) -> None:
    if name not in tuple(accepted):
        raise ValueError(f"unknown {what} {name!r}; accepted: {', '.join(accepted)}")


def resolve_prior(name: str, prior: Any) -> dist.Distribution | float:
    """Return the distribution, or the float that fixes the parameter."""
    if isinstance(prior, dist.Distribution) and prior.shape() == ():
        return prior
    if _is_number(prior):
        return float(prior)
    if isinstance(prior, Mapping) and list(prior) == ["normal"]:
        mean, sd = _pair(prior["normal"]) or (0.0, 0.0)
        if sd > 0:
            return dist.Normal(mean, sd)
    elif (pair := _pair(prior)) is not None and pair[0] < pair[1]:
        return dist.Uniform(*pair)
    raise ValueError(
        f"the prior of {name} is not valid: {prior!r}. Accepted: [low, high] with low < high (uniform), "
        "{'normal': [mean, sd]} with sd > 0, a finite number (fixes the parameter), or a scalar NumPyro "
        "distribution"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _pair(value: Any) -> tuple[float, float] | None:
    """Return two finite numbers, or None."""
    if not isinstance(value, Sequence) or len(value) != 2 or not all(_is_number(v) for v in value):
        return None
    return float(value[0]), float(value[1])
