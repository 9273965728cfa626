"""Run files to start from: one with every key explained, and those of well-known combinations of data."""

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from qbs.models.cosmology.likelihoods import DATA_SETS
from qbs.models.cosmology.methods import METHODS
from qbs.models.cosmology.parameters import DERIVED, MODELS, PARAMETERS, Parameter

_COMBINATIONS = {
    "desi_cmb": ("DESI DR2 and the CMB in three numbers", ""),
    "desi_cmb_pantheon_plus": ("DESI DR2, the CMB in three numbers, Pantheon+", "pantheon_plus"),
    "desi_cmb_union3": ("DESI DR2, the CMB in three numbers, Union3", "union3"),
    "desi_cmb_des_sn5yr": ("DESI DR2, the CMB in three numbers, DES-SN5YR", "des_sn5yr"),
}
_OTHERS = [(name, said) for name, (said, _) in _COMBINATIONS.items()]
_OTHERS.append(("desi_tension", "Do DESI DR2, the CMB and Union3 agree?"))


def _rows(entries: Iterable[tuple[str, str]], width: int = 100) -> str:
    """Return commented lines of names and what they are."""
    entries = list(entries)
    column = max(len(name) for name, _ in entries)
    lines = []
    for name, said in entries:
        start = f"#   {name:<{column}}  "
        lines += textwrap.wrap(
            said, width, initial_indent=start, subsequent_indent="#" + " " * (len(start) - 1)
        )
    return "\n".join(lines)


def _first_line(kind: type) -> str:
    """Return what a class is, from its docstring, without TeX."""
    text = (kind.__doc__ or kind.__name__).strip().splitlines()[0]
    return re.sub(r"\\\(|\\\)|\\", "", text).removesuffix(".")


def _said(parameter: Parameter) -> str:
    unit = f" [{parameter.unit}]" if parameter.unit else ""
    ends = "" if parameter.bounds is None else f", [{parameter.bounds[0]:g}, {parameter.bounds[1]:g}]"
    if parameter.name == "mnu":
        ends = ", none unless given here: 0.06 is what surveys fix, [0, 1] samples it"
    return parameter.description + unit + ends


def _settings(name: str) -> str:
    fields = dataclasses.fields(METHODS[name])
    return ", ".join(f"{field.name} {_default(field)}" for field in fields)


def _default(field: dataclasses.Field) -> str:
    return "null" if field.default is None else str(field.default)


EXAMPLE = f"""\
# A run of `qbs cosmology`: every key with its accepted values. Only `models` and `data` are required.
# Others, by `qbs cosmology --example NAME`:
{_rows(_OTHERS)}

# Which models; Bayes factors are relative to the first.
{_rows((name, model.description) for name, model in MODELS.items())}
models: [LCDM, CPL]

# Which data. Large tables: pantheon_plus, pantheon_plus_sh0es and des_sn5yr, see data_path.
{_rows((name, _first_line(kind)) for name, kind in DATA_SETS.items())}
data: [cc, desi_dr2, bbn]

# Sets that share observations are refused together, unless this is true.
allow_overlap: false

# The folder that holds large tables; without it they are fetched from their public release once.
# data_path: tables/cosmology

# Priors that differ from the defaults. A pair is uniform, {{normal: [mean, sd]}} is normal, a single number
# fixes the parameter. Each parameter is sampled if a model or the data need it. Defaults are uniform on:
{_rows((name, _said(parameter)) for name, parameter in PARAMETERS.items())}
# Derived, where they are defined:
{_rows((name, _said(parameter)) for name, parameter in DERIVED.items())}
priors: {{Om: [0.1, 0.5], h: [0.4, 0.9]}}

# The sound horizon r_d: `formula` (from Om, Obh2 and h) or `free` (then h r_d is a parameter, hrd).
sound_horizon: formula

# How to fit: a name with settings that differ from the defaults.
{_rows((name, f"{_first_line(METHODS[name])}. Settings: {_settings(name)}") for name in METHODS)}
method: {{name: dynesty, num_live: 500, dlogz: 0.01}}

# Pairs of data sets whose agreement is measured, by three more fits of each model. A side is a name or a
# list of names, as in [[desi_dr2, bbn], cc].
# tension: [[desi_dr2, cc]]

# The same seed gives the same result.
seed: 1

# Formats of the figures: png, pdf, svg.
figures: [png, pdf]

# The folder for results; created when the run starts.
output: runs/desi
"""
"""A run file with every key explained."""


def _combination(name: str) -> str:
    said, supernovae = _COMBINATIONS[name]
    data = ", ".join(filter(None, ("desi_dr2", "cmb_thetastar", supernovae)))
    large = supernovae in ("pantheon_plus", "des_sn5yr")
    return f"""\
# {said}: does dark energy change? The combination of arXiv:2503.14738,
# with its priors on w0 and wa, one neutrino of 0.06 eV, and the CMB of its appendix A.
models: [LCDM, CPL]
data: [{data}]
{"# data_path: the folder with the table, which is fetched without it" if large else "# no large tables"}
priors: {{mnu: 0.06, w: [-3, 1], wa: [-3, 2]}}
method: {{name: dynesty, num_live: 500}}
seed: 1
output: runs/{name}
"""


_TENSION = """\
# Do DESI, the CMB and supernovae agree within a model? Each pair takes three fits of each model.
models: [LCDM, CPL]
data: [desi_dr2, cmb_thetastar, union3]
tension: [[desi_dr2, cmb_thetastar], [[desi_dr2, cmb_thetastar], union3]]
priors: {mnu: 0.06}
method: {name: slice, num_live: 500}
seed: 1
output: runs/desi_tension
"""

EXAMPLES: Mapping[str, str] = MappingProxyType(
    {"all_keys": EXAMPLE, **{name: _combination(name) for name in _COMBINATIONS}, "desi_tension": _TENSION}
)
"""Run files by name."""
