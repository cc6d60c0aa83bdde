"""The two stages under MLflow's autologging, which ``darts.utils.mlflow.autolog`` turns on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def not_autologged() -> Iterator[None]:
    """Keep what runs inside out of MLflow's autologging, if MLflow is in use at all.

    MLflow logs every run of a Lightning trainer under the same names. Two in one ``fit`` would mix
    their losses, and their parameters would contradict each other.
    """
    if "mlflow" not in sys.modules:
        yield
        return
    from mlflow.utils.autologging_utils import disable_autologging

    with disable_autologging():
        yield
