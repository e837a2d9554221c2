"""Settings of an arm by key: which there are, which arms have them, and arms with other values of them.

A key is read from an arm's side: `generator.mix.count`, `pixels.mask.kind`, `classifier.optimizer.lr`,
`augmentation`.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from hydramix_dist.config.base import Settings
from hydramix_dist.config.load import build, dump
from hydramix_dist.config.schema import ArmSettings, ClassifierSettings, GeneratorSettings, MixSettings, PilotSettings
from hydramix_dist.config.sweep import SweepSettings
from hydramix_dist.errors import UserError, nearest

_SECTIONS: Mapping[str, type[Settings]] = {
    "generator": GeneratorSettings,
    "pixels": MixSettings,
    "classifier": ClassifierSettings,
}
_OWN_LISTS = {"shots", "seeds", "data", "arms"}
_OF_SEGMENTS = {"generator.network.side", "classifier.side", "pixels.mask.kind"}
_OF_MIXING = {"classifier.mix_share", "classifier.mix_until"}  # without effect where nothing is mixed


def expanded(settings: SweepSettings, source: str) -> PilotSettings:
    """Return the comparison with every combination of the axes as arms of their own, `hydramix-count=3`.

    Raises UserError, naming `source`, for a key that is none or touches no arm, values that are not allowed, and a
    search whose values are not.
    """
    keys = [*settings.axes, *(settings.search.space if settings.search else ())]
    for key in keys:
        check_key(key, f"{source}: {'axes' if key in settings.axes else 'search.space'}")
    if settings.search is not None:
        for key in settings.search.space:
            if key in settings.axes:
                raise UserError(f"{source}: '{key}' is in axes and in search.space; a setting is varied by one of them")
    for key, axis in settings.axes.items():
        for named in axis.arms or ():
            if not _has(settings, named, key):
                raise UserError(
                    f"{source}: axes.{key}.arms names '{named}', which does not have that setting, or for which it is "
                    "fixed or without effect; leave it out"
                )
    for key in settings.search.space if settings.search else ():
        if key in _OF_SEGMENTS or key.startswith("generator.segments."):
            raise UserError(
                f"{source}: search.space '{key}': images are segmented before a sweep begins; vary it in axes"
            )
    for key in keys:
        if not any(_touches(settings, arm, key) for arm in settings.arms):
            raise UserError(f"{source}: '{key}' is a setting that no arm has; the arms are {', '.join(settings.arms)}")
    common = PilotSettings.model_validate(
        {name: getattr(settings, name) for name in PilotSettings.model_fields}, strict=False
    )
    labels = _labels(list(settings.axes))
    arms: dict[str, Any] = {}
    generators: dict[str, Any] = {}
    for name in settings.arms:
        own = [key for key in settings.axes if _touches(settings, name, key)]
        for values in itertools.product(*(settings.axes[key].values for key in own)):
            chosen = dict(zip(own, values, strict=True))
            label = "".join(f"-{labels[key]}={_text(value)}" for key, value in chosen.items())
            arm, generator = changed(common, name, chosen, f"{source}: arm {name}{label}")
            if generator is not None:
                inner = {key: value for key, value in chosen.items() if key.startswith("generator.")}
                suffix = "".join(f"-{labels[key]}={_text(value)}" for key, value in inner.items())
                arm = {**arm, "generator": f"{settings.arms[name].generator}{suffix}"}
                generators[arm["generator"]] = generator
            if f"{name}{label}" in arms or (label and f"{name}{label}" in settings.arms):
                raise UserError(f"{source}: two arms come to have the name '{name}{label}'; give one another name")
            arms[f"{name}{label}"] = arm
    tree = dump(common) | {"arms": arms, "generators": generators}
    whole = build(PilotSettings, tree, source)
    _check_space(settings, whole, source)
    return whole


def changed(
    settings: PilotSettings, arm: str, values: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return an arm's settings and its generator's (None: it has none) as trees, with other values by key.

    Raises UserError, naming `source`, for values that are not allowed.
    """
    tree = dump(settings.arms[arm])
    name = settings.arms[arm].generator
    sections = {
        "generator": None if name is None else dump(settings.generators[name]),
        "pixels": tree["pixels"],
        "classifier": tree["classifier"],
    }
    for key, value in values.items():
        section, _, inner = key.partition(".")
        if inner:
            _set(sections[section], inner.split("."), value)
        else:
            tree[section] = value
    tree |= {"pixels": sections["pixels"], "classifier": sections["classifier"]}
    if sections["generator"] is not None:
        build(GeneratorSettings, sections["generator"], f"{source}: generator")
    build(ArmSettings, tree, source)
    return tree, sections["generator"]


def touched(settings: PilotSettings, arm: str, keys: Iterable[str]) -> list[str]:
    """Return the keys that are settings of an arm."""
    return [key for key in keys if _has(settings, arm, key)]


def check_key(key: str, where: str) -> None:
    """Raise UserError, naming `where`, for a key that is no setting of an arm."""
    known = known_keys()
    if key in known:
        return
    if key in _OWN_LISTS:
        raise UserError(f"{where}: '{key}' is a list of its own at the top of the file, as {key}: [...]")
    leaf = key.rsplit(".", 1)[-1]
    alike = [name for name in known if name.endswith(f".{key}")] or [
        name for name in known if name.rsplit(".", 1)[-1] == leaf
    ]
    first = key.split(".", maxsplit=1)[0]
    alike.sort(key=lambda name: (not name.startswith(f"{first}."), name))
    hint = f" (did you mean '{alike[0]}'?)" if alike else nearest(key, known)
    raise UserError(
        f"{where}: '{key}' is no setting of an arm{hint}; keys begin with generator., pixels. or classifier., or are "
        "augmentation"
    )


def known_keys() -> list[str]:
    """Return every key, as `generator.mix.count`."""
    return ["augmentation", *(f"{name}.{leaf}" for name, model in _SECTIONS.items() for leaf in _leaves(model))]


def _leaves(model: type[BaseModel]) -> list[str]:
    found: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found += [f"{name}.{leaf}" for leaf in _leaves(inner)]
        else:
            found.append(name)
    return found


def _touches(settings: SweepSettings, arm: str, key: str) -> bool:
    axis = settings.axes.get(key)
    if axis is not None and axis.arms is not None:
        return arm in axis.arms
    return _has(settings, arm, key)


def _has(settings: PilotSettings, arm: str, key: str) -> bool:
    section = key.partition(".")[0]
    mix = settings.mix_of(arm)
    if key.endswith(("mix.count", "pixels.count")) and mix is not None and mix.mask.kind.startswith("chimera"):
        return False  # defined for two images: such an arm stands beside those with other K
    if section in ("generator", "pixels"):
        return getattr(settings.arms[arm], section) is not None
    return key not in _OF_MIXING or mix is not None


def _labels(keys: Sequence[str]) -> dict[str, str]:
    """Return the shortest ending of each key that no other key has."""
    labels: dict[str, str] = {}
    for key in keys:
        parts = key.split(".")
        endings = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        labels[key] = next(
            ending
            for ending in endings
            if ending == key or not any(other != key and other.endswith(f".{ending}") for other in keys)
        )
    return labels


def _text(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else f"{value}"


def _set(tree: Any, path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value


def _check_space(settings: SweepSettings, whole: PilotSettings, source: str) -> None:
    if settings.search is None:
        return
    for arm in whole.arms:
        for key in touched(whole, arm, settings.search.space):
            for value in settings.search.space[key].ends():
                where = f"{source}: search.space '{key}' = {value} of arm {arm}"
                tree, _ = changed(whole, arm, {key: value}, where)
                # A classifier's own settings are checked where they meet the common ones.
                build(PilotSettings, dump(whole) | {"arms": {arm: tree}}, where)
        for pair in itertools.combinations(touched(whole, arm, settings.search.space), 2):
            for values in itertools.product(*(settings.search.space[key].ends() for key in pair)):
                together = dict(zip(pair, values, strict=True))
                text = " and ".join(f"'{key}' = {value}" for key, value in together.items())
                changed(whole, arm, together, f"{source}: search.space {text} of arm {arm}")
