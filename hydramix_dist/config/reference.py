"""The settings reference, written from the schema so that the page cannot drift from the code.

`python -m hydramix_dist.config.reference > docs/settings.md` renews the page.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from hydramix_dist.config import metrics, store
from hydramix_dist.config.schema import PilotSettings
from hydramix_dist.config.sweep import SweepSettings
from hydramix_dist.config.training import ClassifierTrainingSettings, GeneratorTrainingSettings

_HEAD = """# Settings

Written from the schema by `python -m hydramix_dist.config.reference > docs/settings.md`: to change this page, edit the
descriptions in `hydramix_dist/config/` and run that command.

Keys are given in a YAML file or on the command line as `key=value`, for instance `classifier.batch=16`. Unknown keys
are refused. `<name>` stands for a name of your choice. Text is never taken for a number, and a number with a fraction
never for a whole one.
"""

_SWEEP_NOTE = """
Beside these keys: all of a pilot, as above, and those below. `<name>` under `axes` and `search.space` is the key of a
setting as an arm has it: `augmentation`, `classifier.KEY`, and for the arm's own generator or pixels `generator.KEY`
and `pixels.KEY`, such as `generator.mix.count`. An axis may be the list of its values alone.
"""

_TYPES = {
    "boolean": "`true`, `false`",
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "null": "`null`",
}
_LIMITS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


@dataclass(frozen=True)
class Key:
    """One key: its path with dots; allowed values, default ("" where one must be given) and meaning as Markdown."""

    path: str
    allowed: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """The keys that stand directly in one section of the settings; `path` is "" for the outermost."""

    path: str
    summary: str
    keys: list[Key] = field(default_factory=list)


def settings_sections() -> list[Section]:
    """Return all sections of the pilot's settings, outer ones first."""
    schema = PilotSettings.model_json_schema()
    return list(_walk(schema, schema["$defs"], ""))


def sweep_sections() -> list[Section]:
    """Return the sections that a sweep's settings have beside a pilot's, the outermost first."""
    schema = SweepSettings.model_json_schema()
    own = {name: value for name, value in schema["properties"].items() if name not in PilotSettings.model_fields}
    outer = _walk({**schema, "properties": own}, schema["$defs"], "")
    return [*outer, *_walk(schema["$defs"]["SearchSettings"], schema["$defs"], "search")]


def training_sections() -> list[Section]:
    """Return the outermost sections of trainings by themselves; their inner ones are the pilot's, or its arms'."""
    schemas = (model.model_json_schema() for model in (GeneratorTrainingSettings, ClassifierTrainingSettings))
    return [next(_walk(schema, schema["$defs"], "")) for schema in schemas]


def settings_reference() -> str:
    """Return the Markdown page of all settings: a table a section, with allowed values, default and meaning."""
    parts = [_HEAD]
    for section in settings_sections():
        parts.append(_table(f"`{section.path}`" if section.path else "Top level of a pilot", section))
    for section in sweep_sections():
        parts.append(_table(f"`{section.path}`" if section.path else "Top level of a sweep", section))
        parts += [] if section.path else [_SWEEP_NOTE]
    for kind, section in zip(("generator", "classifier"), training_sections(), strict=True):
        inner = f"Beside these keys: `{kind}`, `runtime` and `distributed`, as above"
        inner += " (`generator` as `generators.<name>`)" if kind == "generator" else ""
        parts.append(f"{_table(f'Top level of `hydramix train {kind}`', section)}\n{inner}.\n")
    for title, variable, model in (
        ("Object storage", store.VARIABLE, store.StoreSettings),
        ("Metrics", metrics.VARIABLE, metrics.MetricsSettings),
    ):
        section = next(_walk(model.model_json_schema(), {}, ""))
        parts.append(_table(f"{title}: what `{variable}` holds", section))
    return "".join(parts)


def _table(title: str, section: Section) -> str:
    head = f"\n## {title}\n\n{section.summary}\n\n| key | allowed | default | meaning |\n|---|---|---|---|\n"
    return head + "".join(f"| `{key.path}` | {key.allowed} | {key.default} | {key.meaning} |\n" for key in section.keys)


def _walk(node: dict[str, Any], definitions: dict[str, Any], path: str) -> Iterator[Section]:
    section = Section(path, node["description"].partition("\n")[0])
    below = []
    for name, value in node["properties"].items():
        inner = f"{path}.{name}" if path else name
        if "$ref" in value:
            below.append((value["$ref"], inner))
        elif "$ref" in _each(value):
            below.append((_each(value)["$ref"], f"{inner}.<name>"))
        else:
            default = f"`{json.dumps(value['default'])}`" if "default" in value else ""
            section.keys.append(Key(inner, _allowed(value), default, value.get("description", "")))
    yield section
    for reference, inner in below:
        yield from _walk(definitions[reference.removeprefix("#/$defs/")], definitions, inner)


def _each(value: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of what stands under names of one's choice, an empty one where there are none."""
    each = value.get("additionalProperties")
    return each if isinstance(each, dict) else {}


def _allowed(value: dict[str, Any]) -> str:
    """Return what a key may hold: its type and limits, or its few values."""
    if "anyOf" in value:
        return " or ".join(_allowed(part) for part in value["anyOf"])
    if "enum" in value:
        return ", ".join(f"`{word}`" for word in value["enum"])
    if _each(value):
        return f"names with {_allowed(_each(value))} each"
    if "$ref" in value or value["type"] == "object":
        return "section"
    if "prefixItems" in value:
        return f"[{', '.join(map(_allowed, value['prefixItems']))}]"
    if value["type"] == "array":
        at_least = f" ({value['minItems']} or more)" if "minItems" in value else ""
        return f"list of {_allowed(value['items'])}{at_least}"
    limits = [f"{sign} {value[key]:g}" for key, sign in _LIMITS.items() if key in value]
    if "pattern" in value:
        limits.append("`" + value["pattern"].replace("|", r"\|") + "`")  # a bare bar would end the table's cell
    return " ".join([_TYPES[value["type"]], " and ".join(limits)]).rstrip()


if __name__ == "__main__":
    print(settings_reference(), end="")
