"""Whose folder a destination is: of imports that write into one folder, all of the same plan or all but one told off.

A mark, put where none is, names the plan of the import under way. The manifest, put where none is, ends it, and only
then are mark and parts removed. So whoever finds objects without a mark finds a manifest, or a folder of something
else.
"""

import errno
import json

from hydramix_dist.data import staging
from hydramix_dist.data.manifest import MANIFEST, Manifest, broken_record, read_manifest
from hydramix_dist.errors import UserError
from hydramix_dist.store.store import Store

_LOOKS = 20  # one or two are needed; a store that does not give back what was put would be asked for ever
_MARK = f"{staging.FOLDER}/plan.json"


def claim(store: Store, plan: str, source: str) -> bool:
    """Return whether the import of this plan is complete in `store`; else mark the folder as its own.

    Raises UserError where the folder holds another data set, the unfinished import of one, or anything else.
    """
    for _ in range(_LOOKS):
        if is_complete(store, plan):
            return True
        owner = _owner(store)
        if owner == plan:
            return False
        if owner is not None:
            raise UserError(
                f"{store.url} holds an unfinished import of other images or settings; "
                "choose another folder, or delete this one first"
            )
        # Looked at in this order, an import that ends meanwhile is seen by its mark or by its manifest.
        others = [path for path in store.list() if not path.startswith("jobs/")]  # there a job tells of itself
        if others and _owner(store) is None and store.get(MANIFEST) is None:
            raise UserError(f"{store.url} is not empty and holds no data set; choose another folder")
        if store.put_if_absent(_MARK, json.dumps({"plan": plan, "source": source}).encode()):
            if store.get(MANIFEST) is None:
                return False
            release(store)  # the import that had the folder ended after the first look: this mark came too late
    raise UserError(
        f"{store.url} changes faster than it can be looked at, or does not keep what is written; see: hydramix doctor "
        f"--store {store.url}"
    )


def is_complete(store: Store, plan: str) -> bool:
    """Return whether the data set of this plan is in `store`. Raises UserError where another one is."""
    if store.get(MANIFEST) is None:
        return False
    if read_manifest(store).plan != plan:
        raise UserError(
            f"{store.url} holds another data set (other images, or another size, fit or holdout); "
            "choose another folder, or delete this one first"
        )
    return True


def complete(store: Store, manifest: Manifest) -> bool:
    """Write the data set's record unless one is there; return whether this call wrote it.

    The data set exists from here on. Raises UserError where the one there is another plan's.
    """
    text = manifest.model_dump_json(indent=2) + "\n"
    return store.put_if_absent(MANIFEST, text.encode()) or not is_complete(store, manifest.plan)


def release(store: Store) -> None:
    """Remove mark and parts of an import that has ended.

    Another import of the same plan may be removing them as well, or adding some: it removes what is left at its end.
    """
    try:
        store.delete(staging.FOLDER)
    except (OSError, UserError) as error:
        if not is_by_another(error):
            raise


def is_by_another(error: OSError | UserError) -> bool:
    """Return whether an error is one that arises where another import of the same plan is at work, or has ended."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, FileNotFoundError | FileExistsError) or getattr(cause, "errno", 0) == errno.ENOTEMPTY


def _owner(store: Store) -> str | None:
    """Return the plan of the import under way in `store`, None where none is."""
    try:
        return str(json.loads(store.read(_MARK))["plan"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:  # somebody else's file of that name
        raise broken_record(store.path(_MARK)) from error
