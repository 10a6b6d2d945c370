"""Writing files so that a kill at any moment leaves the old one or the new one."""

import contextlib
import errno
import hashlib
import os
import re
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK_NAME = ".run.lock"
# What a kill leaves of a file that was being written.
_TEMPORARY = re.compile(
    r"\.((progress|result|search)\.json\.\w+|visit-\d+\.weights\.h5)"
)
_BUSY = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a binary file that takes its place at `path` when it is closed.

    It is written under another name and renamed; if the block raises, nothing is left
    of it.

    Args:
        path: The file to write; its folder exists.

    Raises:
        OSError: The folder is not there or cannot be written.
    """
    path = Path(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        umask = os.umask(0)  # The only way to read it.
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's is private.
        put_in_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def put_in_place(temporary: Path, path: Path) -> None:
    """Renames a file that has been written, so that a power cut does not undo it.

    The content goes to the disk before the name does: a file that has its name is
    whole.
    """
    _sync(temporary, os.O_RDWR)
    os.replace(temporary, path)
    if sys.platform != "win32":  # Windows does not open folders.
        _sync(path.parent, os.O_RDONLY)


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_temporary_files(folder: Path) -> None:
    """Removes the unfinished files that a kill has left in a folder."""
    for path in _temporary_files(folder):
        path.unlink()


def check_empty(
    folder: Path,
    overwrite: bool = False,
    way_out: str = "overwrite it with --overwrite",
) -> None:
    """Checks that an output folder may be written to.

    A folder counts as empty if it holds only a lock and the unfinished files that a
    kill has left.

    Args:
        folder: The folder.
        overwrite: Boolean, whether it may hold files already.
        way_out: What to do if it does but may not, for the message.

    Raises:
        FileExistsError: The folder holds files, and `overwrite` is `False`.
    """
    leftover = {*_temporary_files(folder), folder / LOCK_NAME}
    if not overwrite and {*folder.iterdir()} - leftover:
        raise FileExistsError(
            f"The output folder is not empty. Choose another, or {way_out}. "
            f"Received: output={str(folder)!r}"
        )


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Creates an output folder if it is not there, and keeps other processes out of it.

    The operating system holds the lock and releases it when the process ends, however
    it ends. A lock file that a killed process has left does not block anyone.

    Args:
        folder: The folder.

    Yields:
        The folder's path.

    Raises:
        FileExistsError: The folder is a file, or is in use by another run.
        OSError: It cannot be created or written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(
            f"The output folder is a file. Received: output={str(folder)!r}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK_NAME
    descriptor = _lock(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode())
        yield folder
    finally:
        if _is_at(descriptor, path):  # The folder may be gone, and another there.
            path.unlink()
        os.close(descriptor)


def _lock(path: Path) -> int:
    """Returns the descriptor of the lock file, locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if sys.platform == "win32":
                os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # Its text stays readable.
                msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
                os.lseek(descriptor, 0, os.SEEK_SET)
            else:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                warnings.warn(
                    f"The file system of '{path.parent}' has no locks: nothing keeps a "
                    "second run out of this folder.",
                    stacklevel=5,
                )
                return descriptor
            owner = os.read(descriptor, 300).decode(errors="replace")
            os.close(descriptor)
            if error.errno not in _BUSY:
                raise
            raise FileExistsError(
                "The output folder is in use by another run (process "
                f"{owner or 'unknown'}). Wait until that run ends, or choose another "
                f"folder. Received: output={str(path.parent)!r}"
            ) from error
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)  # Its owner has removed it in the meantime.


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
