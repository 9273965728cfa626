"""The parameters of the background cosmology, their default priors, and the models built from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpyro.distributions as dist


@dataclass(frozen=True)
class Parameter:
    """One parameter, sampled or derived.

    Attributes:
        name: The name in run files, samples and columns.
        label: Its symbol, in LaTeX without dollar signs.
        unit: Its unit; empty when it is dimensionless.
        description: What it is.
        bounds: Lower and upper end of the default uniform prior; None when it is only derived.
    """

    name: str
    label: str
    unit: str
    description: str
    bounds: tuple[float, float] | None = None

    @property
    def prior(self) -> dist.Distribution:
        """The default prior, uniform between the bounds."""
        if self.bounds is None:
            raise ValueError(f"{self.name} is a derived parameter and has no prior")
        return dist.Uniform(*self.bounds)


@dataclass(frozen=True)
class Model:
    """A model of dark energy and curvature.

    Attributes:
        parameters: What it varies on top of flat LCDM.
        description: One line on what it is.
    """

    parameters: tuple[str, ...]
    description: str


PARAMETERS: Mapping[str, Parameter] = MappingProxyType(
    {
        parameter.name: parameter
        for parameter in (
            Parameter(
                "Om",
                r"\Omega_\mathrm{m}",
                "",
                "matter density today over the critical density",
                (0.1, 0.5),
            ),
            Parameter("Obh2", r"\Omega_\mathrm{b} h^2", "", "physical baryon density", (0.02, 0.025)),
            Parameter("h", "h", "", "Hubble constant over 100 km/s/Mpc", (0.4, 0.9)),
            Parameter(
                "hrd", r"h r_\mathrm{d}", "Mpc", "h times the sound horizon at the drag epoch", (60.0, 140.0)
            ),
            Parameter("w", "w_0", "", "dark-energy equation of state today", (-3.0, 1.0)),
            Parameter(
                "wa", "w_a", "", "minus the derivative of w with respect to the scale factor", (-3.0, 2.0)
            ),
            Parameter(
                "Ok", r"\Omega_k", "", "curvature density today over the critical density", (-0.3, 0.3)
            ),
            Parameter("Om1", r"\Omega_1", "", "dark-energy density today that grows as 1+z", (-3.0, 3.0)),
            Parameter("Om2", r"\Omega_2", "", "dark-energy density today that grows as (1+z)^2", (-3.0, 3.0)),
            Parameter(
                "sigma8",
                r"\sigma_8",
                "",
                "standard deviation of linear matter fluctuations today in spheres of 8 Mpc/h",
                (0.5, 1.2),
            ),
            Parameter("mnu", r"\sum m_\nu", "eV", "sum of the neutrino masses", (0.0, 1.0)),
        )
    }
)
"""The parameters that can be sampled, in the order of columns."""

OPTIONAL: tuple[str, ...] = ("h", "mnu")
"""What `priors` may give to any analysis: without it, h has a fiducial value and neutrinos have no mass."""

DERIVED: Mapping[str, Parameter] = MappingProxyType(
    {
        parameter.name: parameter
        for parameter in (
            Parameter("H0", "H_0", "km/s/Mpc", "Hubble constant"),
            Parameter("rd", r"r_\mathrm{d}", "Mpc", "sound horizon at the drag epoch"),
            Parameter("hrd", r"h r_\mathrm{d}", "Mpc", "h times the sound horizon at the drag epoch"),
            Parameter("age", "t_0", "Gyr", "age of the universe"),
            Parameter(
                "Ode", r"\Omega_\mathrm{DE}", "", "dark-energy density today over the critical density"
            ),
            Parameter("q0", "q_0", "", "deceleration parameter today"),
            Parameter(
                "z_transition",
                r"z_\mathrm{t}",
                "",
                "redshift at which the present acceleration began; 0 if none",
            ),
            Parameter("S8", "S_8", "", "sigma8 times the square root of Om/0.3"),
        )
    }
)
"""The derived parameters; `hrd` is one where the sound horizon is the formula."""

MODELS: Mapping[str, Model] = MappingProxyType(
    {
        "LCDM": Model((), "flat, cosmological constant"),
        "wCDM": Model(("w",), "flat, dark energy with constant w"),
        "CPL": Model(("w", "wa"), "flat, dark energy with w(a) = w + wa (1 - a)"),
        "oLCDM": Model(("Ok",), "curved, cosmological constant"),
        "oCPL": Model(("w", "wa", "Ok"), "curved, dark energy with w(a) = w + wa (1 - a)"),
        "owCDM": Model(("w", "Ok"), "curved, dark energy with constant w"),
        "PolyCDM": Model(("Ok", "Om1", "Om2"), "curved, dark energy a quadratic polynomial in 1+z"),
    }
)
"""The models by name."""
