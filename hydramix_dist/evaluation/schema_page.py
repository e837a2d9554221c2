"""The page about `results.json` of pilots and sweeps, written from the schemas so that it cannot drift from the code.

`python -m hydramix_dist.evaluation.schema_page > docs/results-schema.md` renews the page.
"""

from collections.abc import Iterator
from typing import Any

from hydramix_dist.evaluation.results import PilotResults, Record
from hydramix_dist.evaluation.sweep_results import SweepResults

_HEAD = """# The fields of `results.json`

Written from the schemas by `python -m hydramix_dist.evaluation.schema_page > docs/results-schema.md`: to change this
page, edit `results.py` or `sweep_results.py` in `hydramix_dist/evaluation/` and run that command.

A pilot and a sweep write `results.json` into their folder: [a pilot's](#of-a-pilot), [a sweep's](#of-a-sweep).
Accuracies and shares lie between 0 and 1, times are seconds, N is the number of labelled images a class. A number that
could not be computed is `null`, and the `note` beside it says why. A field without a meaning here is what its name
says. A reader refuses a file whose `schema_version` is newer than its own.
"""
_PARTS: tuple[tuple[str, type[Record]], ...] = (
    ("## Of a pilot\n\n[The pilot's page](pilot.md) says how to read it.\n", PilotResults),
    (
        "## Of a sweep\n\n[The page on a sweep's results](sweep-results.md) says how to read it. Records that a "
        "pilot's has too are above.\n",
        SweepResults,
    ),
)

_TYPES = {"boolean": "true or false", "integer": "whole number", "number": "number", "string": "text", "null": "`null`"}
_ANYTHING = "anything"


def schema_page() -> str:
    """Return the Markdown page: a table for each record, the outermost first, with type and meaning of each field."""
    parts, seen = [_HEAD], set[str]()
    for head, results in _PARTS:
        parts.append(f"\n{head}")
        for name, record in _records(results.model_json_schema(), seen):
            parts.append(f"\n### {name}\n\n{record['description'].partition(chr(10))[0]}\n\n")
            parts.append("| field | type | meaning |\n|---|---|---|\n")
            for field, value in record["properties"].items():
                parts.append(f"| `{field}` | {_type(value)} | {value.get('description', '')} |\n")
    return "".join(parts)


def _records(schema: dict[str, Any], seen: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, schema) of the outermost record, then of those it leads to that were not `seen`, and add them."""
    waiting = [(schema["title"], schema)]
    seen.add(schema["title"])
    for name, record in waiting:
        yield name, record
        for target in _references(record["properties"]):
            if target not in seen:
                seen.add(target)
                waiting.append((target, schema["$defs"][target]))


def _references(node: Any) -> Iterator[str]:
    """Yield the names of the records that a part of the schema leads to, in order."""
    if isinstance(node, dict):
        if "$ref" in node:
            yield _target(node)
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from _references(part)


def _target(node: dict[str, Any]) -> str:
    return str(node["$ref"]).removeprefix("#/$defs/")


def _type(node: Any) -> str:
    """Return what a field may hold, in words."""
    if not isinstance(node, dict) or not node.keys() - {"title"}:
        return _ANYTHING
    if "$ref" in node:
        return f"[{_target(node)}](#{_target(node).lower()})"
    if "anyOf" in node:
        return " or ".join(_type(part) for part in node["anyOf"])
    if "const" in node or "enum" in node:
        return ", ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    if node["type"] == "object":
        return f"{_type(node.get('additionalProperties'))}, by name"
    if "prefixItems" in node:
        return f"({', '.join(_type(part) for part in node['prefixItems'])})"
    if node["type"] == "array":
        return f"list of {_type(node['items'])}"
    low, high = node.get("minimum"), node.get("maximum")
    limits = "" if low is None else f", {low:g} or more" if high is None else f" from {low:g} to {high:g}"
    return _TYPES[node["type"]] + limits


if __name__ == "__main__":
    print(schema_page(), end="")
