"""The commands `hydramix data import|show|verify`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from hydramix_dist.cli.console import LiveDisplay, error_console, print_json
from hydramix_dist.cli.options import whole_numbers
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.importer import ImportReport, import_dataset
from hydramix_dist.data.manifest import Fit
from hydramix_dist.data.overview import Overview, describe
from hydramix_dist.data.verify import verify
from hydramix_dist.errors import UserError, nearest

_SHOWN = 10  # refused items and pairs of duplicates listed before "and N more"


def import_command(
    src: str,
    dst: str,
    size: int | None,
    fit: str,
    holdout: float,
    licence: Path | None,
    segment_side: int | None,
    json_: bool,
) -> int:
    """Import a source and show what came in and what was refused; return 0."""
    kinds = get_args(Fit)
    if fit not in kinds:
        raise UserError(f"--fit '{fit}' is not a rule{nearest(fit, kinds)}; there are {', '.join(kinds)}")
    with LiveDisplay(error_console()) as display:
        report = import_dataset(
            src,
            dst,
            size=size,
            fit=fit,  # type: ignore[arg-type]  # checked above
            holdout=holdout,
            licence=None if licence is None else _read_text(licence),
            segment_side=segment_side,
            progress=display.progress,
        )
    if json_:
        print_json(json.dumps(_plain(report)))
    else:
        _show_import(report)
    return 0


def show_command(url: str, shots: str | None, json_: bool) -> int:
    """Show an image set; return 0."""
    overview = describe(Dataset.open(url), whole_numbers("--shots", shots or ""))
    if json_:
        print_json(json.dumps(_plain(overview)))
    else:
        _show_overview(overview)
    return 0


def verify_command(url: str, json_: bool) -> int:
    """Check all files; return 0 where all are whole, 1 where one is damaged."""
    damages = verify(url)
    if json_:
        print_json(json.dumps([asdict(damage) for damage in damages]))
        return 1 if damages else 0
    for damage in damages:
        print(f"damaged: {url}/{damage.path}: {damage.problem}")
    if damages:
        print(f"{len(damages)} files are damaged; import the source again, into an empty folder")
        return 1
    print(f"{url}: every file is as it was written")
    return 0


def _show_import(report: ImportReport) -> None:
    if report.already_complete:
        print(f"{report.url} holds this image set already")
    else:
        print(f"imported into {report.url} in {report.seconds:.1f} s, stored side {report.side}")
    for split, counts in report.counts.items():
        print(f"{split:<6} {sum(counts)} images, {sum(c > 0 for c in counts)} classes")
    _list("refused", report.refused, lambda item: f"{item.item}: {item.reason}")
    _list("note", report.warnings, str)


def _show_overview(overview: Overview) -> None:
    sizes = overview.sizes
    print(f"{overview.url}")
    print(f"stored side {sizes.side}; originals {_span(*sizes.width)} wide, {_span(*sizes.height)} high")
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading, justify in (("class", "left"), ("train", "right"), ("test", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for entry in overview.classes:
        table.add_row(entry.name, str(entry.train), str(entry.test))
    Console().print(table)
    _list("warning", overview.warnings, lambda warned: warned.text)
    _list("pair", overview.twins, lambda t: f"{t.first[1]} and {t.second[1]}, similarity {t.similarity:.3f}")
    if overview.licence:
        print(f"licence: {overview.licence}")


def _list(word: str, items: Sequence[Any], text: Callable[[Any], str]) -> None:
    for item in items[:_SHOWN]:
        print(f"{word}: {text(item)}")
    if len(items) > _SHOWN:
        print(f"{word}: and {len(items) - _SHOWN} more (all with --json)")


def _span(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def _plain(value: Any) -> Any:
    """Return dataclasses and pydantic records as JSON-ready values."""
    return json.loads(json.dumps(asdict(value), default=lambda record: record.model_dump(mode="json")))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--licence {path} cannot be read: {error}") from error
