"""The settings of a sweep: a comparison over data sets, axes of settings, and a search of the best ones."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hydramix_dist.config.base import Count, Seed, Settings
from hydramix_dist.config.schema import PilotSettings

Scalar = str | bool | int | float | None
LEAST_VALIDATED = 5  # images a class: of fewer nothing can be held out to choose settings by


class AxisSettings(Settings):
    """Values of one setting, each compared with each."""

    values: Annotated[tuple[Scalar, ...], Field(min_length=1, strict=False, description="each makes an arm of its own")]
    arms: Annotated[
        tuple[str, ...] | None, Field(strict=False, description="arms it is for; null: every arm that has the setting")
    ] = None

    @model_validator(mode="before")
    @classmethod
    def _plain_list(cls, value: Any) -> Any:
        tree = {"values": value} if isinstance(value, list | tuple) else value
        if isinstance(tree, dict) and "values" not in tree:
            raise ValueError(
                "an axis is a list, or has values and arms; its key has dots of its own, so on the command line axes "
                "are given whole: axes='{generator.mix.count: [2, 3]}'"
            )
        for inner in tree.get("values") or () if isinstance(tree, dict) else ():
            if isinstance(inner, list | dict):
                raise ValueError(f"an axis has single values (texts, numbers, true, false, null), not {inner}")
        return tree

    @model_validator(mode="after")
    def _each_once(self) -> "AxisSettings":
        if len(set(map(repr, self.values))) != len(self.values):
            raise ValueError(f"lists a value twice: {', '.join(map(str, self.values))}")
        return self


class SpaceSettings(Settings):
    """Where the values of one setting are searched: exactly one of the three."""

    log: Annotated[
        tuple[float, float] | None, Field(strict=False, description="[low, high]: even over the logarithm")
    ] = None
    uniform: Annotated[tuple[float, float] | None, Field(strict=False, description="[low, high]: even")] = None
    choice: Annotated[
        tuple[Scalar, ...] | None, Field(min_length=1, strict=False, description="one of these values")
    ] = None

    @model_validator(mode="after")
    def _one(self) -> "SpaceSettings":
        given = [name for name in ("log", "uniform", "choice") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of log, uniform and choice, has {' and '.join(given) or 'none'}")
        bounds = self.log or self.uniform
        if bounds and not bounds[0] < bounds[1]:
            raise ValueError(f"{given[0]} needs [low, high] with low below high, has {list(bounds)}")
        if self.log and self.log[0] <= 0:
            raise ValueError(f"log needs a low above 0, has {self.log[0]:g}")
        return self

    def ends(self) -> tuple[Scalar, ...]:
        """Return values that must be allowed for all to be: the bounds, or every choice."""
        return self.choice or self.log or self.uniform or ()


class SearchSettings(Settings):
    """Settings chosen for every arm by itself, with the same budget, on images held out of the N-shot subset."""

    method: Annotated[
        Literal["random", "asha", "optuna"],
        Field(description="random draws; random draws of which the worse are stopped early; Optuna's TPE"),
    ] = "random"
    trials: Annotated[int, Field(ge=1, description="settings tried for each arm, the same number for all")] = 20
    space: Annotated[
        dict[str, SpaceSettings],
        Field(min_length=1, description="setting to search -> log, uniform or choice; keys as in `axes`"),
    ]
    seeds: Annotated[
        tuple[Seed, ...], Field(min_length=1, strict=False, description="subsets that each setting is tried on")
    ] = (0,)
    at: Annotated[
        int | None,
        Field(ge=LEAST_VALIDATED, description="N that settings are chosen at, for every N; null: at each N by itself"),
    ] = None
    validation: Annotated[
        float,
        Field(gt=0, lt=1, description="share of the N-shot subset held out to choose by; the test set has no say"),
    ] = 0.2
    seed: Annotated[Seed, Field(description="draws the settings to try")] = 0
    reduction: Annotated[
        int, Field(ge=2, description="asha: of so many, one goes on past a rung, of as many times the length")
    ] = 3
    grace: Annotated[
        float, Field(gt=0, le=1, description="asha: share of a training before the first may be stopped")
    ] = 0.2

    @model_validator(mode="after")
    def _each_once(self) -> "SearchSettings":
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds lists a value twice: {', '.join(map(str, self.seeds))}")
        if self.method == "asha" and len(self.seeds) > 1:
            raise ValueError(
                f"method asha judges settings on their way, on one subset; seeds has {len(self.seeds)}: give one, or "
                "take random or optuna"
            )
        return self


class LimitSettings(Settings):
    """When a sweep ends though not all is done; `sweep resume` with larger ones goes on."""

    trials: Annotated[int | None, Field(ge=1, description="trainings finished; null: no limit")] = None
    hours: Annotated[float | None, Field(gt=0, description="by the clock, for each command; null: no limit")] = None
    gpu_hours: Annotated[
        float | None, Field(gt=0, description="sum over trainings of time x share of a GPU; null: no limit")
    ] = None
    attempts: Annotated[Count, Field(description="times a training that fails is begun")] = 3
    silent_minutes: Annotated[
        float, Field(gt=0, description="a training without progress for so long is taken for hanging, and ended")
    ] = 15.0


class SweepSettings(PilotSettings):
    """A comparison as a pilot makes it, over several data sets, axes and searched settings."""

    data: Annotated[
        tuple[str, ...] | None,
        Field(min_length=1, strict=False, description="folders, archives or imported sets; null: built-in photos"),
    ] = None
    axes: Annotated[
        dict[str, AxisSettings],
        Field(description="setting of an arm -> values: `generator.mix.count: [2, 3, 5]`; every combination is run"),
    ] = {}
    search: Annotated[SearchSettings | None, Field(description="null: all settings are as given")] = None
    limits: LimitSettings = LimitSettings()
    priorities: Annotated[dict[str, int], Field(description="arm -> larger is begun earlier; 0 where not given")] = {}

    @model_validator(mode="after")
    def _search_can_validate(self) -> "SweepSettings":
        few = [n for n in self.shots if n < LEAST_VALIDATED]
        if self.search is not None and self.search.at is None and few:
            raise ValueError(
                f"search: with N = {', '.join(map(str, few))} nothing can be held out to choose settings by "
                f"(at least {LEAST_VALIDATED} images a class are needed); set search.at to the N to choose them at, "
                "or leave these N out"
            )
        return self

    @model_validator(mode="after")
    def _early_stops_have_a_point(self) -> "SweepSettings":
        if self.search is not None and self.search.method == "asha" and self.runtime.checkpoints < 2:
            raise ValueError(
                "search.method asha stops trainings at a checkpoint before their end; set runtime.checkpoints to 2 or "
                f"more (it is {self.runtime.checkpoints})"
            )
        return self

    @model_validator(mode="after")
    def _arms_exist(self) -> "SweepSettings":
        named = {f"priorities.{arm}": arm for arm in self.priorities}
        for key, axis in self.axes.items():
            named |= {f"axes.{key}.arms": arm for arm in axis.arms or ()}
        for where, arm in named.items():
            if arm not in self.arms:
                raise ValueError(f"{where}: there is no arm '{arm}'; there are {', '.join(self.arms)}")
        if self.data is not None and len(set(self.data)) != len(self.data):
            raise ValueError(f"data lists a value twice: {', '.join(self.data)}")
        return self
