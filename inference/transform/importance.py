"""`importance`: draw from another program, and score the ratio of the densities."""

from typing import Any

from qbs.effects import sample_p, score, score_p
from qbs.errors import ProgramError
from qbs.inference.transform.replay import Replay, replay
from qbs.jaxprs import all_names
from qbs.program import Program


def importance(program: Program, proposal: Program) -> Program:
    """Return the program that takes the sites it shares with a proposal from there, with the same meaning.

    `p(x) = q(x) p(x)/q(x)`: the sites are drawn by the proposal, and the ratio is scored. Inside a model, in
    the step of a scan say, it makes a guided particle filter of the population around.

    Args:
        program: The program.
        proposal: A program of the same arguments, whose sites are some of the program's, of the same shapes,
            and cover their support. It may not score.

    Returns:
        A program with the value and the measure of `program`.

    Raises:
        ProgramError: If the proposal scores, or draws a site that the program has not.

    References:
        Scibior et al. (2018), section 3.3, weighted representations.
    """

    def run_all(*args: Any) -> Any:
        staged, proposed = program.stage(*args), proposal.stage(*args)
        if scores := all_names(proposed.jaxpr, (score_p,)):
            raise ProgramError(f"the proposal {proposal.name!r} scores at {sorted(scores)}: it may only draw")
        sites = all_names(proposed.jaxpr, (sample_p,))
        if missing := sorted(sites - all_names(staged.jaxpr, (sample_p,))):
            raise ProgramError(f"the proposal draws {missing}, which {program.name!r} has not")
        drawn = replay(proposed, Replay(), {}).trace
        given = {name: value for name, value in drawn.items() if name in sites}
        log_proposal = replay(proposed, Replay(), given).state.log_prob
        walked = replay(staged, Replay(scores=True), given)
        score(walked.state.log_prob - log_proposal, name=f"proposal of {program.name}")
        return staged.unflatten(walked.outputs)

    return Program(run_all, program.name)
