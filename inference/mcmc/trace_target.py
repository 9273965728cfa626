"""A program with its arguments as the target of a kernel: the log density of its traces."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float

from qbs.inference.transform.replay import Replay, Weights, log_prob_inside, replay
from qbs.program import Program


class TraceTarget(eqx.Module):
    """The log density of a program at values of all its sites, `-inf` outside their supports.

    Attributes:
        program: The program.
        args: Its arguments.
    """

    program: Program
    args: tuple = ()

    def __call__(self, position: dict[str, Array]) -> Float[Array, ""]:
        """Return the log density, in nats, at a value for each site."""
        return _total(self._replay(_Without(None), position))

    def redraw(self, position: dict[str, Array], site: str, name: str) -> tuple[Array, Float[Array, ""]]:
        """Draw one site anew from its own distribution, as part of the program around.

        Args:
            position: Values of the sites; that of the one to be drawn is not used.
            site: Which one.
            name: The name that it is drawn under.

        Returns:
            The value, and the log density there without that of the site itself.
        """
        given = {other: value for other, value in position.items() if other != site}
        walked = self._replay(Replay(lambda _: name), given)
        return walked.trace[site], _total(walked)

    def without(self, position: dict[str, Array], site: str) -> Float[Array, ""]:
        """Return the log density without that of one site."""
        return _total(self._replay(_Without(site), position))

    def _replay(self, semantics: Replay, given: dict[str, Array]) -> Any:
        return replay(self.program.stage(*self.args), semantics, given)


class _Without(Replay):
    """Weigh all sites but one."""

    def __init__(self, site: str | None):
        super().__init__()
        self._site = site

    def sample(self, state: Weights, name: str, distribution: Any, given: Any) -> tuple[Array, Weights]:
        if given is None:
            raise ValueError(f"the position has no value for site {name!r}")
        if name != self._site:
            state = state._replace(log_prob=state.log_prob + log_prob_inside(distribution, given))
        return given, state


def _total(walked: Any) -> Array:
    return walked.state.log_prob + walked.state.log_score
