"""The commands `hydramix checkpoint show|verify|export`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hydramix_dist.checkpoint.export import export
from hydramix_dist.checkpoint.inspect import CheckpointFacts, describe
from hydramix_dist.cli.console import print_json
from hydramix_dist.store import Store

_HEADINGS = ("images", "engine", "step", "weights", "bytes", "score", "state", "counters")
_LEFT = {"engine", "state", "counters"}  # words; numbers stand to the right


def show_command(run: str, json_: bool) -> int:
    """Show what is inside each checkpoint of a run, whole or broken; return 0."""
    store = Store(run)
    found = describe(store)
    if json_:
        plain = [asdict(facts) | {"whole": not facts.damages} for facts in found]
        print_json(json.dumps({"run": store.url, "checkpoints": plain}))
        return 0
    print(store.url)
    _print_table([_HEADINGS, *(row for facts in found for row in _rows(facts))])
    _print_damages(store, found)
    return 0


def verify_command(run: str, json_: bool) -> int:
    """Check every file of every checkpoint of a run; return 0 where all are whole, 1 where one is damaged."""
    store = Store(run)
    found = describe(store)
    damaged = [facts for facts in found if facts.damages]
    if json_:
        damages = [{"checkpoint": facts.folder, "problem": text} for facts in damaged for text in facts.damages]
        print_json(json.dumps({"run": store.url, "checkpoints": len(found), "damages": damages}))
    elif damaged:
        _print_damages(store, damaged)
        print(f"{len(damaged)} of {len(found)} checkpoints are damaged; the run goes on from the newest whole one")
    else:
        print(f"{store.url}: every file of {len(found)} checkpoints is as it was written")
    return 1 if damaged else 0


def export_command(run: str, dst: str, engine: str | None, images: int | None, json_: bool) -> int:
    """Write one engine's weights to a plain safetensors file and say how to load it; return 0."""
    done = export(Store(run), dst, engine, images)
    if json_:
        print_json(json.dumps(asdict(done)))
        return 0
    what = f"the weights of the {done.engine} after {done.images} images"
    print(f"wrote {what} to {done.path}" if done.written else f"{done.path} holds {what} already")
    print("to load it in Python" + (", once it is copied to this machine" if "://" in done.path else "") + ":\n")
    print("from safetensors import safe_open")
    print(f"with safe_open({done.path.rsplit('/', 1)[-1] if '://' in done.path else done.path!r}, 'pt') as file:")
    print("    weights, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()")
    return 0


def _rows(facts: CheckpointFacts) -> Iterator[tuple[str, ...]]:
    """Yield a row for each engine; what belongs to the whole checkpoint stands in its first row."""
    score = "" if facts.score is None else f"{facts.score:.4f}"
    ending: tuple[str, ...] = (score, "broken" if facts.damages else "whole", _short(facts.counters))
    if not facts.engines:  # the manifest itself is damaged
        yield str(facts.images), "", "", "", "", *ending
    for name, engine in facts.engines.items():
        weights = "?" if engine.weights is None else str(engine.weights)
        yield str(facts.images), name, str(engine.step), weights, str(engine.bytes), *ending
        ending = ("", "", "")


def _short(counters: Mapping[str, Any]) -> str:
    """Return the counters in a line: lists by their length, times to a tenth."""
    texts = {name: len(value) if isinstance(value, list) else value for name, value in counters.items()}
    return ", ".join(f"{name} {v:.1f}" if isinstance(v, float) else f"{name} {v}" for name, v in texts.items())


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(_HEADINGS, row, widths, strict=True)
        line = "   ".join(cell.ljust(width) if name in _LEFT else cell.rjust(width) for name, cell, width in cells)
        print(line.rstrip())


def _print_damages(store: Store, found: Sequence[CheckpointFacts]) -> None:
    for facts in found:
        for text in facts.damages:
            print(f"damaged: {store.path(facts.folder)}: {text}")
