"""State-space models: NumPyro models of time series, each with what is known of it exactly.

In all of them the first observation belongs to the first state, and the initial distribution is that of this
state: `x_1 ~ initial`, `y_1 ~ observation of x_1`, `x_2 ~ transition from x_1`, and so on.
"""

from qbs.models.state_space.hidden_markov import HiddenMarkov as HiddenMarkov
from qbs.models.state_space.linear_gaussian import GaussianStates as GaussianStates
from qbs.models.state_space.linear_gaussian import LinearGaussian as LinearGaussian
from qbs.models.state_space.predator_prey import HUDSON_BAY as HUDSON_BAY
from qbs.models.state_space.predator_prey import lotka_volterra as lotka_volterra
from qbs.models.state_space.predator_prey import solve_lotka_volterra as solve_lotka_volterra
from qbs.models.state_space.volatility import StochasticVolatility as StochasticVolatility
from qbs.models.state_space.volatility import stochastic_volatility as stochastic_volatility
