"""What a command prints, and what it writes to the log of its run."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from darts_kronos.cli.processes import is_first

OUTPUT = "darts_kronos.cli"
"""The logger of all that a command says."""

_STAMPED = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S")

_NOISE = (
    # Lightning's, of what is meant so or is said better elsewhere.
    r".*does not have many workers.*",
    r".*is smaller than the logging interval.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*You're resuming from a checkpoint that ended before the epoch ended.*",
    r".*ModelCheckpoint\(monitor='val_loss'\)` could not find.*",
    r".*Total length of `list` across ranks is zero.*",
    r".*'pin_memory' argument is set as true but no accelerator.*",
)


def say(text: str = "") -> None:
    """Print a text, and write it to the log of the run, if there is one."""
    for line in text.split("\n"):
        logging.getLogger(OUTPUT).info(line)


def note(text: str) -> None:
    """Write a line to the log of the run alone."""
    logging.getLogger(OUTPUT).debug(text)


def warn(text: str) -> None:
    """Warn, on the error stream and in the log."""
    logging.getLogger(OUTPUT).warning(text)


class _Stream(logging.Handler):
    """Writes to the streams of the moment: warnings to stderr, the rest to stdout."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        alarming = record.levelno >= logging.WARNING
        text = self.format(record)
        print(
            f"warning: {text}" if alarming else text,
            file=sys.stderr if alarming else sys.stdout,
            flush=True,
        )


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of Darts or Lightning is worth showing.

    Errors of theirs are raised too, and reported then.
    """
    return record.levelno == logging.WARNING or record.name.startswith("darts_kronos")


def _warnings_as_lines(
    message: Warning | str, category: type[Warning], *args: object, **kwargs: object
) -> None:
    warn(str(message))


@contextmanager
def speaking() -> Iterator[None]:
    """Let the first process print; the others keep silent.

    Messages of the package, of Darts and of Lightning, and Python's warnings, become lines of it.
    Logging and warnings are as before at the end.
    """
    first = is_first()
    stream = _Stream(logging.INFO if first else logging.CRITICAL)
    quiet = _Stream(logging.WARNING if first else logging.CRITICAL)
    quiet.addFilter(_is_news)
    with warnings.catch_warnings(), _handled(OUTPUT, stream, logging.DEBUG):
        for pattern in _NOISE:
            warnings.filterwarnings("ignore", pattern)
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        warnings.showwarning = _warnings_as_lines
        with (
            _handled("darts", quiet),
            _handled("pytorch_lightning", quiet, logging.WARNING),
            _handled("lightning_fabric", quiet, logging.WARNING),
            _handled("darts_kronos", quiet),
            # Of a trial that fails, tuning prints a line of its own.
            _handled("optuna", quiet, logging.ERROR),
        ):
            yield


@contextmanager
def _handled(name: str, handler: logging.Handler, level: int = logging.INFO) -> Iterator[None]:
    """Let one handler alone have the records of a logger."""
    logger = logging.getLogger(name)
    before = logger.handlers[:], logger.propagate, logger.level
    logger.handlers[:], logger.propagate = [handler], False
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.handlers[:], logger.propagate = before[0], before[1]
        logger.setLevel(before[2])


@contextmanager
def logged_to(path: Path) -> Iterator[None]:
    """Write all that is said to a file too, at its end, as lines with the time."""
    if not is_first():
        yield
        return
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setFormatter(_STAMPED)
    loggers = [logging.getLogger(name) for name in (OUTPUT, "darts_kronos", "darts")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
