"""The settings that a search tries: pure functions of the search's seed and of what was tried before.

No state is kept between two questions, so that a sweep that goes on asks as if it had never stopped.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from hydramix_dist.config.sweep import Scalar, SearchSettings, SpaceSettings
from hydramix_dist.data.draws import derived_seed, uniform

Tried = tuple[Mapping[str, Scalar], float | None]  # values by key, and their score; None: none yet, NaN: none ever


def suggest(search: SearchSettings, keys: Sequence[str], group: str, tried: Sequence[Tried]) -> dict[str, Scalar]:
    """Return the values by key to try after those in `tried`, for one group of candidates.

    Random draws depend on their number and key alone: the n-th candidate of every arm has the same values of the
    settings that both have. Optuna's TPE learns from the scores of its group.
    """
    if search.method == "optuna":
        return _optuna(search, keys, group, tried)
    return {key: _at(search.space[key], _draw(search.seed, key, len(tried))) for key in keys}


def _draw(seed: int, key: str, index: int) -> float:
    return float(uniform(seed, f"search/{key}", [index], 1)[0, 0])


def _at(space: SpaceSettings, share: float) -> Scalar:
    """Return the value at a share in [0, 1) of a space."""
    if space.choice is not None:
        return space.choice[int(share * len(space.choice))]
    if space.log is not None:
        low, high = (math.log(bound) for bound in space.log)
        return math.exp(low + share * (high - low))
    assert space.uniform is not None  # one of the three, by its validator
    low, high = space.uniform
    return low + share * (high - low)


def _optuna(search: SearchSettings, keys: Sequence[str], group: str, tried: Sequence[Tried]) -> dict[str, Scalar]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spaces: dict[str, Any] = {key: _distribution(optuna, search.space[key]) for key in keys}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # constant_liar, for those running
        sampler = optuna.samplers.TPESampler(
            seed=derived_seed(search.seed, f"search/{group}", len(tried)) % 2**32, constant_liar=True
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for values, score in tried:
        states = optuna.trial.TrialState
        state = states.RUNNING if score is None else states.FAIL if math.isnan(score) else states.COMPLETE
        value = score if state == states.COMPLETE else None
        trial = optuna.trial.create_trial(state=state, params=dict(values), distributions=spaces, value=value)
        study.add_trial(trial)
    found: dict[str, Scalar] = study.ask(spaces).params
    return found


def _distribution(optuna: Any, space: SpaceSettings) -> Any:
    if space.choice is not None:
        return optuna.distributions.CategoricalDistribution(space.choice)
    low, high = space.log or space.uniform or (0.0, 1.0)
    return optuna.distributions.FloatDistribution(low, high, log=space.log is not None)
