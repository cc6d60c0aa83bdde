"""Several processes of one run: who they are, and what the first of them tells the others."""

from __future__ import annotations

import os
from datetime import timedelta

import torch.distributed as dist
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch.distributed import TCPStore

_DECISION = "DARTS_KRONOS_DECISION"
"""Tells the processes that Lightning starts what the first one decided."""

_TIMEOUT = timedelta(minutes=30)


def is_first() -> bool:
    """Whether this process is the one that writes, of all that train together."""
    return not getattr(rank_zero_only, "rank", None)


def torchrun() -> tuple[int, int] | None:
    """Processes of each machine and number of machines, if torchrun started this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    each, together = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    return each, together // each


def part() -> None:
    """End the training's community of processes: what the first does now concerns no other."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def tell(decision: str) -> None:
    """Let the other processes know what the first one decided."""
    # Those that Lightning starts later inherit it.
    os.environ[_DECISION] = decision
    if torchrun() is not None:
        _store().set(_key(), decision)


def hear() -> str:
    """What the first process decided; waits for it."""
    if torchrun() is None:
        return os.environ[_DECISION]
    return str(_store().get(_key()).decode())


def _store() -> TCPStore:
    """The store of torchrun, by which its processes find each other."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(host, port, None, False, _TIMEOUT)


def _key() -> str:
    names = ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
    return "/".join([_DECISION, *(os.environ.get(name, "") for name in names)])
