"""Is every file of a data set as it was written? Sizes and sha256 against the record, segment maps included."""

import hashlib
from dataclasses import dataclass

from hydramix_dist.data.dataset import Dataset
from hydramix_dist.data.manifest import MANIFEST, FileRecord, read_manifest
from hydramix_dist.data.segment_maps import FOLDER, read_record
from hydramix_dist.errors import UserError
from hydramix_dist.store.store import Store


@dataclass(frozen=True)
class Damage:
    """One file that is not as recorded, and what is the matter with it."""

    path: str
    problem: str


def verify(url: str) -> list[Damage]:
    """Return every file that is missing or not as recorded, segment maps included; nothing where all is whole.

    Raises UserError where there is no data set, or its record cannot be read.
    """
    store = Store(url)
    manifest = read_manifest(store)
    damages = [damage for file in manifest.files if (damage := _check(store, file))]
    for path in store.list(FOLDER):
        if path.endswith(".json"):
            try:
                record = read_record(store, path)
            except UserError:
                damages.append(Damage(path, "the record cannot be read; delete the folder, the maps are made again"))
                continue
            damages += [damage for file in record.files if (damage := _check(store, file))]
    if not damages and Dataset.open(url).computed_fingerprint() != manifest.fingerprint:
        damages.append(Damage(MANIFEST, "classes or fingerprint are not those of the index"))
    return damages


def _check(store: Store, file: FileRecord) -> Damage | None:
    if not store.exists(file.path):
        return Damage(file.path, "missing")
    size = store.size(file.path)
    if size != file.bytes:
        return Damage(file.path, f"{size} bytes, {file.bytes} were written")
    digest = hashlib.sha256()
    with store.open(file.path) as reader:
        while block := reader.read(2**22):
            digest.update(block)
    return (
        None if digest.hexdigest() == file.sha256 else Damage(file.path, "the content is not what was written (sha256)")
    )
