"""What other packages say while a benchmark runs."""

from __future__ import annotations

import logging
import warnings


def quiet() -> None:
    """Hide Lightning's and Darts' messages below errors, and all warnings."""
    for name in ("pytorch_lightning", "darts"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
