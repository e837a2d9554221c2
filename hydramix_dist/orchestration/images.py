"""The images of a run: an image set imported before, or the run's own import of anything else."""

import tempfile
from pathlib import Path

from hydramix_dist.data.builtin import build_photo_patches, licence_text
from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.importer import check_apart, import_dataset
from hydramix_dist.errors import UserError
from hydramix_dist.orchestration.display import Display
from hydramix_dist.store import Store

_SOURCE = "imported-from.txt"  # in a run's folder: the path or URL that its own images came from


def open_data(source: str | None, out: Store, display: Display) -> Dataset:
    """Return the data set of a run: an imported one as it is, anything else imported into `out`/data, once.

    Without a source the built-in photo patches are cut first. A source that is gone since its import is not needed any
    more. Raises UserError for a source that cannot be read.
    """
    if source is not None and Store(source).get("manifest.json") is not None:
        return Dataset.open(source)
    target = out.path("data")
    if source is not None and not Store(source).exists() and _was_imported(source, out):
        display.say(f"{source} is gone; going on with what was imported from it")
        return Dataset.open(target)
    if source is None:
        if out.get("data/manifest.json") is None:
            display.say("cutting the built-in image set from the photographs of scikit-image")
            with tempfile.TemporaryDirectory() as folder:
                build_photo_patches(Path(folder) / "photo-patches")
                import_dataset(
                    str(Path(folder) / "photo-patches"), target, licence=licence_text(), progress=display.progress
                )
        return Dataset.open(target)
    report = import_dataset(source, target, progress=display.progress)
    if not _was_imported(source, out):
        out.put(_SOURCE, source.encode())
    for refused in report.refused:
        display.say(f"refused {refused.item}: {refused.reason}")
    return Dataset.open(target)


def check_source(source: str | None, out: Store) -> None:
    """Refuse a source before anything is written: one that is not there and was not imported, or that holds `out`."""
    if source is None or _was_imported(source, out):
        return
    if not Store(source).exists():
        raise UserError(f"{source} does not exist; give a folder with one sub-folder a class, or a zip or tar of one")
    check_apart(source, out)


def _was_imported(source: str, out: Store) -> bool:
    return out.get(_SOURCE) == source.encode() and out.get("data/manifest.json") is not None
