"""Which checkpoints of a training that has ended nobody needs any more."""

import logging

from hydramix_dist.checkpoint.commit import BrokenError, best_of, committed, read_manifest, verified
from hydramix_dist.store import Store

_log = logging.getLogger("hydramix")


def spare(store: Store) -> list[str]:
    """Return the folders of the checkpoints older than the newest whole one, but for the best one, oldest first.

    Every file of the newest is read to know that it is whole, so what is left always loads. Where none is whole, none
    is spare; and damaged ones that are newer stay, for they tell that the training has ended with other weights.
    Raises UserError where one was made by a newer version.
    """
    folders = committed(store)
    for position in range(len(folders) - 1, 0, -1):
        if _is_whole(store, folders[position]):
            older = folders[:position]
            best = best_of(store, folders[: position + 1])
            return [folder for folder in older if folder != best]
    return []


def _is_whole(store: Store, folder: str) -> bool:
    try:
        for entry in read_manifest(store, folder)["files"]:
            verified(store, folder, entry)
    except BrokenError as broken:
        _log.warning("checkpoint %s is broken (%s); the ones before it stay", store.path(folder), broken)
        return False
    return True
