"""Writing files so that a kill at any moment leaves the old one or the new."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def open_atomically(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a binary file that takes its place at `path` when it is closed.

    It is written beside and renamed; if the block raises, nothing is left of it.

    Args:
        path: The file to write; its folder exists.

    Raises:
        OSError: The folder is not there or cannot be written.
    """
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)  # The only way to read it.
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp's is private.
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def claim_folder(
    path: str | os.PathLike,
    overwrite: bool = False,
    way_out: str = "overwrite it with --overwrite",
) -> Path:
    """Creates an output folder, or makes sure that it may be written.

    Args:
        path: The folder.
        overwrite: Boolean, whether it may hold files already.
        way_out: What to do if it does but may not, for the message.

    Returns:
        The folder's path.

    Raises:
        FileExistsError: The folder holds files, or is one, and `overwrite` is `False`.
        OSError: It cannot be created or written.
    """
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"The output folder is a file. Received: output={path}")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise FileExistsError(
            f"The output folder is not empty. Choose another, or {way_out}. "
            f"Received: output={path}"
        )
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path):
        return path
