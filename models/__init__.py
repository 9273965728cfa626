"""Models and applications: cosmology, state spaces, change-points, mixtures, variable selection.

Subpackages are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__all__ = ["change_point", "cosmology", "mixture", "state_space", "variable_selection"]

if TYPE_CHECKING:
    from qbs.models import change_point as change_point
    from qbs.models import cosmology as cosmology
    from qbs.models import mixture as mixture
    from qbs.models import state_space as state_space
    from qbs.models import variable_selection as variable_selection
else:

    def __getattr__(name: str) -> Any:
        if name in __all__:
            return import_module(f"qbs.models.{name}")
        raise AttributeError(
            f"module 'qbs.models' has no attribute {name!r}; it has {', '.join(__all__)}", name=name
        )

    def __dir__() -> list[str]:
        return sorted(set(globals()) | set(__all__))
