"""A model's files: written whole or not at all, and by one training at a time."""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import glob
from io import BytesIO
from zipfile import BadZipFile

import torch
from filelock import FileLock, Timeout
from torch import Tensor

LOCK_FILE = ".training.lock"
"""Locked in a model's folder while it is trained; the system lets go of it when a process dies."""

UNREADABLE = (
    pickle.UnpicklingError,
    EOFError,
    OSError,
    BadZipFile,
    RuntimeError,
    KeyError,
    AttributeError,
)
"""What torch and pickle raise when a file is not what it should be."""


def make_folder(folder: str, name: str) -> None:
    """Make a folder, those above it included.

    Parameters
    ----------
    folder
        Its path.
    name
        Of the parameter that it comes from, for the message.

    Raises
    ------
    ValueError
        If that is not possible.
    """
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"`{name}` cannot be written: {folder!r} cannot be made ({error.strerror}). Give a "
            "folder in which files can be made."
        ) from error


@contextmanager
def held(folder: str, what: str) -> Iterator[None]:
    """Keep a folder to this training, in this process or another, while the block runs.

    Parameters
    ----------
    folder
        Its path; it is made if need be.
    what
        What is trained, for the message.

    Raises
    ------
    ValueError
        If another training holds it, or it cannot be written.
    """
    make_folder(folder, "work_dir")
    lock = FileLock(os.path.join(folder, LOCK_FILE), timeout=0, is_singleton=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"{what} is being trained in {folder!r} at this moment: give this one another "
            "`model_name` or `work_dir`, so that neither overwrites the other's checkpoints."
        ) from None
    except OSError as error:
        raise ValueError(
            f"`work_dir` cannot be written: no file can be made in {folder!r} ({error.strerror})."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def saying_what_was_not_written(folder: str) -> Iterator[None]:
    """Tell what a full disk, or another failure to write, means for the checkpoints in `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"{error.strerror}. A checkpoint could not be written in {folder!r}; those that were "
            "finished before are whole, and `load_from_checkpoint` goes on from them.",
        ) from error


@contextmanager
def replacing(path: str) -> Iterator[str]:
    """A path to write to: when the block ends well, what lies there replaces `path`.

    Whatever name begins with that path is taken; if the block fails, `path` stays as it was.
    """
    folder, name = os.path.split(os.path.abspath(path))
    aside = tempfile.mkdtemp(prefix=f".{name}-", dir=folder)
    try:
        yield os.path.join(aside, name)
        # The longest first: what is read first comes last.
        for written in sorted(os.listdir(aside), key=len, reverse=True):
            os.replace(os.path.join(aside, written), os.path.join(folder, written))
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def packed(weights: Mapping[str, Tensor]) -> bytes:
    """Weights as bytes: a safe loader, such as that of Darts' ensembles, takes no tensors."""
    written = BytesIO()
    torch.save(weights, written)
    return written.getvalue()


def unpacked(written: bytes) -> dict[str, Tensor]:
    """The weights that :func:`packed` wrote, on the CPU."""
    weights: dict[str, Tensor] = torch.load(BytesIO(written), map_location="cpu", weights_only=True)
    return weights


@contextmanager
def refusing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say of a file that cannot be loaded that it cannot."""
    try:
        yield
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise ValueError(
            f"{str(path)!r} cannot be loaded as a KronosModel: {error or type(error).__name__}"
        ) from error


def newest(folder: str) -> str | None:
    """The newest checkpoint in a folder, if there is one."""
    found = glob(os.path.join(folder, "*.ckpt"))
    return max(found, key=os.path.getmtime) if found else None
