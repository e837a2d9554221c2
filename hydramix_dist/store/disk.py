"""Files on this machine's disk, through the operating system, so that a put is a rename within one file system."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from hydramix_dist.errors import UserError

TEMPORARY = ".partial-"


class Disk:
    """What a store needs of a disk; names are full paths. Raises UserError for what may not be read or written."""

    def open(self, full: str) -> IO[bytes]:
        """Return a seekable binary reader. Raises FileNotFoundError."""
        with refusals_as_answers(full):
            return Path(full).open("rb")

    def read(self, full: str, offset: int, length: int | None) -> bytes:
        """Return bytes from `offset` on. Raises FileNotFoundError."""
        with self.open(full) as file:
            file.seek(offset)
            return file.read(-1 if length is None else length)

    def exists(self, full: str) -> bool:
        """Return whether a file or folder is there."""
        with refusals_as_answers(full):
            return Path(full).exists()

    def size(self, full: str) -> int:
        """Return a file's size in bytes. Raises FileNotFoundError."""
        with refusals_as_answers(full):
            return Path(full).stat().st_size

    def list(self, full: str) -> list[str]:
        """Return the full paths of all finished files below a folder, or the file itself."""
        with refusals_as_answers(full):
            if Path(full).is_file():
                return [full]
        paths = (os.path.join(parent, name) for parent, _, names in os.walk(full) for name in names)  # noqa: PTH118
        return [path for path in paths if not path.rsplit("/", 1)[-1].startswith(TEMPORARY)]

    def sizes(self, full: str) -> dict[str, int]:
        """Return the sizes in bytes of all finished files below a folder, by full path, or the file's own."""
        return {path: self.size(path) for path in self.list(full)}

    def entries(self, full: str) -> dict[str, tuple[int, float]]:
        """Return size in bytes and Unix time of the last change of all finished files below a folder, by full path."""
        found = {}
        for path in self.list(full):
            # Removed since the folder was listed, as may happen.
            with contextlib.suppress(FileNotFoundError), refusals_as_answers(path):
                status = Path(path).lstat()
                found[path] = (status.st_size, status.st_mtime)
        return found

    def put_if_absent(self, full: str, data: bytes) -> bool:
        """Write a file unless one is there; return whether this call wrote it."""
        with disk_errors_as_answers(full):
            temporary = _temporary(full)
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.link(temporary, full)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
        return True

    @contextlib.contextmanager
    def writer(self, full: str) -> Iterator[IO[bytes]]:
        """Yield a binary writer; the file appears when the block ends well and never when it raises."""
        with disk_errors_as_answers(full):
            temporary = _temporary(full)
            try:
                with temporary.open("wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(full)
            finally:
                temporary.unlink(missing_ok=True)

    def delete(self, full: str) -> None:
        """Remove a file, or a folder with all below it; nothing happens where it is absent."""
        path = Path(full)
        with disk_errors_as_answers(full):
            if path.is_dir() and not path.is_symlink():
                try:
                    shutil.rmtree(path)
                except PermissionError as error:  # which names the file without its folders
                    raise UserError(
                        f"cannot remove all of {full}: no permission to remove {error.filename} in there; mend the "
                        "rights of its folder and run the same command again"
                    ) from error
            else:
                path.unlink(missing_ok=True)

    def delete_all(self, fulls: Sequence[str]) -> None:
        """Remove files; those that are absent are no error. What a link leads to stays."""
        for full in fulls:
            with disk_errors_as_answers(full):
                Path(full).unlink(missing_ok=True)


def _temporary(full: str) -> Path:
    target = Path(full)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}-{target.name}")


@contextlib.contextmanager
def refusals_as_answers(full: str) -> Iterator[None]:
    """Turn the refusal to let `full` be read into a sentence; other errors of the block pass through."""
    try:
        yield
    except PermissionError as error:
        raise UserError(f"cannot read {full}: no permission to read there; mend its rights") from error


@contextlib.contextmanager
def disk_errors_as_answers(full: str) -> Iterator[None]:
    """Turn the disk's own refusals to write `full` into sentences; other errors of the block pass through."""
    try:
        yield
    except OSError as error:
        not_a_folder = "a part of that path is a file, not a folder; choose another folder"
        reasons = {
            errno.ENOSPC: "the disk is full; free some space and run the same command again, it goes on where it was",
            errno.EDQUOT: "the disk quota is used up; free some space and run the same command again",
            errno.EROFS: "the disk is read-only; choose another folder",
            errno.EACCES: "no permission to write there; choose another folder or mend its rights",
            errno.EPERM: "no permission to write there; choose another folder or mend its rights",
            errno.ENOENT: "such a folder cannot be made there; choose another folder",
            errno.ENOTDIR: not_a_folder,
            errno.EEXIST: not_a_folder,
            errno.EISDIR: "a folder of that name is there; choose another name or remove it",
        }
        if error.errno in reasons and _concerns(error, full):
            raise UserError(f"cannot write {full}: {reasons[error.errno]}") from error
        raise


def _concerns(error: OSError, full: str) -> bool:
    """Return whether an error comes from writing `full`, and not from another file that a writer's block opened."""
    if error.filename is None:  # from a descriptor: write, flush, fsync
        return True
    named, target = Path(os.fsdecode(error.filename)), Path(full)
    return target.is_relative_to(named) or (named.parent == target.parent and named.name.startswith(TEMPORARY))


def existing(path: Path) -> Path:
    """Return the path, or its nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
