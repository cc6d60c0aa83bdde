"""What a config asks for, in KronosModel's terms."""

from __future__ import annotations

import os
import warnings as python_warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from darts_kronos.cli.config_file import ConfigFile
from darts_kronos.cli.data import Parts
from darts_kronos.cli.errors import UsageError
from darts_kronos.cli.keys import Config, Trainer
from darts_kronos.cli.processes import torchrun
from darts_kronos.cli.sources import sources
from darts_kronos.parameters import predictor_epochs, tokenizer_epochs

BATCH_SIZE, TOKENIZER_BATCH_SIZE = 32, 16
"""Windows in a batch where the config does not say: what KronosModel takes."""


FULL_PRECISION = "32-true"
"""What the networks run in anyway."""


@dataclass(frozen=True)
class Hardware:
    """Where a run trains.

    Attributes
    ----------
    trainer
        Parameters of Lightning's trainer.
    processes
        Processes that train together.
    on_gpu
        Whether it is a CUDA GPU.
    """

    trainer: dict[str, Any]
    processes: int
    on_gpu: bool

    @property
    def one_device(self) -> int | list[int]:
        """The first of the trainer's devices, for work that is not spread."""
        return first_of(self.trainer["devices"])


@dataclass(frozen=True)
class Plan:
    """A training as KronosModel takes it.

    Attributes
    ----------
    model
        Parameters of the model, without those of its folder.
    fit
        Parameters of its ``fit``, beside the series.
    notices
        What is to be said to the user first, a line each.
    warnings
        What the user is to be warned of.
    """

    model: dict[str, Any]
    fit: dict[str, Any]
    notices: list[str]
    warnings: list[str]


def first_of(devices: Any) -> int | list[int]:
    """A trainer's `devices`, but one."""
    return devices[:1] if isinstance(devices, list) else 1


def hardware(config: Config, warnings: list[str]) -> Hardware:
    """Where to train, or to forecast; what is not to be had goes to `warnings`.

    Raises
    ------
    UsageError
        If the strategy is one that cannot work here.
    """
    asked, given = config.trainer, config.device.use_cuda
    accelerator = asked.accelerator
    if given is not None:
        accelerator = "gpu" if given else "cpu"
    if accelerator in ("gpu", "cuda") and not torch.cuda.is_available() and given:
        accelerator = "cpu"
        warnings.append("device.use_cuda is true, but there is no CUDA GPU: it runs on the CPU.")
    if any(word in asked.strategy for word in ("spawn", "fork", "notebook")):
        raise UsageError(
            f"trainer.strategy: {asked.strategy!r} is not supported here: processes that it makes "
            "of this one cannot write its log. Use ddp."
        )
    on_gpu = accelerator in ("gpu", "cuda", "auto") and torch.cuda.is_available()
    devices: Any = asked.devices
    nodes = asked.num_nodes
    started = torchrun()
    if started is not None:
        if devices not in (None, "auto", started[0]):
            warnings.append(
                f"trainer.devices is {devices}, but torchrun started {started[0]} processes on a "
                "machine: torchrun decides."
            )
        devices, nodes = started
    elif devices is None:
        devices = [config.device.device_id] if on_gpu else 1
    many = nodes > 1 or (len(devices) if isinstance(devices, list) else devices) not in (1,)
    strategy = "ddp" if many and asked.strategy == "auto" and devices != "auto" else asked.strategy
    if many and config.distributed.backend:
        backend = config.distributed.backend
        if backend == "nccl" and not on_gpu:
            warnings.append("distributed.backend is nccl, which needs GPUs: gloo is used.")
            backend = "gloo"
        # Read by Lightning when the processes meet.
        os.environ["PL_TORCH_DISTRIBUTED_BACKEND"] = backend
    each = len(devices) if isinstance(devices, list) else devices
    return Hardware(
        trainer={
            "accelerator": accelerator,
            "devices": devices,
            "num_nodes": nodes,
            "strategy": strategy,
        },
        processes=nodes * each if isinstance(each, int) else 1,
        on_gpu=on_gpu,
    )


def make(config: Config, parts: Parts, show_progress: bool) -> Plan:
    """The plan of a training.

    Raises
    ------
    UsageError
        If keys do not go together.
    """
    notices: list[str] = []
    warnings: list[str] = []
    _name_what_has_no_effect(config, notices)
    where = hardware(config, warnings)
    training, data = config.training, config.data
    pieces = training.accumulation_steps
    batch = training.batch_size or BATCH_SIZE
    first_batch = training.tokenizer_batch_size or training.batch_size or TOKENIZER_BATCH_SIZE
    if pieces > min(batch, first_batch):
        raise UsageError(
            f"training.accumulation_steps: a batch of {min(batch, first_batch)} windows cannot be "
            f"split into {pieces} parts."
        )
    adamw = {
        "betas": (training.adam_beta1, training.adam_beta2),
        "weight_decay": training.adam_weight_decay,
    }
    rates = training.tokenizer_learning_rate, training.predictor_learning_rate
    stage_one, stage_two = ({"lr": rate} if rate is not None else {} for rate in rates)
    trainer = {
        **where.trainer,
        "accumulate_grad_batches": pieces,
        "enable_model_summary": False,
        "enable_progress_bar": show_progress,
        "log_every_n_steps": training.log_interval,
    }
    if config.trainer.precision != FULL_PRECISION:
        trainer["precision"] = config.trainer.precision
    for name in ("gradient_clip_val", "limit_train_batches", "limit_val_batches"):
        if (value := getattr(config.trainer, name)) is not None:
            trainer[name] = value
    params: dict[str, Any] = {
        "input_chunk_length": data.lookback_window,
        "output_chunk_length": data.predict_window,
        "max_context": data.max_context,
        "clip": data.clip,
        # What a step is made of stays the same, but for rounding.
        "batch_size": -(-batch // pieces),
        "tokenizer_batch_size": -(-first_batch // pieces),
        "optimizer_kwargs": {**adamw, **stage_two},
        "tokenizer_optimizer_kwargs": {**adamw, **stage_one},
        "random_state": training.seed,
        "pl_trainer_kwargs": trainer,
        **config.model.model_dump(),
        **sampling(config),
    }
    _check_shares(config, parts, params, where.processes)
    windows = parts.windows(data.lookback_window, data.predict_window, data.stride)
    whole = {"n_epochs_tokenizer": None, "tokenizer_batch_size": first_batch * where.processes}
    params["n_epochs_tokenizer"] = (
        training.tokenizer_epochs or training.epochs or tokenizer_epochs(whole, windows)
    )
    trained = sources(config).predictor is not None
    params["n_epochs"] = (
        training.basemodel_epochs
        or training.epochs
        or predictor_epochs({}, windows, batch * where.processes, trained=trained)
    )
    loader: dict[str, Any] = {"num_workers": training.num_workers, "pin_memory": where.on_gpu}
    if training.num_workers:
        loader["persistent_workers"] = True
    fit = {"stride": data.stride, "dataloader_kwargs": loader, "verbose": show_progress}
    return Plan(params, fit, notices, warnings)


def _check_shares(config: Config, parts: Parts, params: Mapping[str, Any], processes: int) -> None:
    """Refuse a share of an epoch's batches that is less than one batch."""
    data, experiment = config.data, config.experiment
    trains = experiment.train_tokenizer, experiment.train_basemodel
    sizes = params["tokenizer_batch_size"], params["batch_size"]
    largest = max((size for size, trained in zip(sizes, trains, strict=True) if trained), default=1)
    for name, of_val in (("limit_train_batches", False), ("limit_val_batches", True)):
        share = getattr(config.trainer, name)
        windows = parts.windows(data.lookback_window, data.predict_window, data.stride, of_val)
        batches = -(-windows // (largest * processes))
        if isinstance(share, float) and windows and share * batches < 1:
            raise UsageError(
                f"trainer.{name}: {share} of {batches} batches is less than one: it must be at "
                f"least 1/{batches}, or a whole number of batches."
            )


def check_trainer(file: ConfigFile, trainer: Mapping[str, Any]) -> None:
    """Let Lightning refuse what it makes no trainer of, before anything is written.

    Parameters
    ----------
    file
        The config.
    trainer
        Parameters of a trainer that the config asks for.

    Raises
    ------
    UsageError
        In Lightning's words, with the line of the key that they are about.
    """
    try:
        with python_warnings.catch_warnings():
            # What it warns of is said when the trainer is made that trains.
            python_warnings.simplefilter("ignore")
            pl.Trainer(**trainer, logger=False, enable_checkpointing=False)
    except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
        text = str(error)
        named = [key for key in Trainer.model_fields if key in text.lower()]
        given = [key for key in named if file.gives("trainer", key)]
        where = ["trainer", *sorted(given, key=text.lower().index)[:1]]
        raise UsageError(f"{file.at(*where)}: {'.'.join(where)}: {text}") from error


def sampling(config: Config) -> dict[str, Any]:
    """How forecasts are drawn, as ``KronosModel.set_sampling`` takes it."""
    own = config.sampling.model_dump()
    return {k: v for k, v in own.items() if k not in ("num_samples", "calibrate")}


def _name_what_has_no_effect(config: Config, notices: list[str]) -> None:
    if config.experiment.use_comet:
        notices.append(
            "experiment.use_comet has no effect: logs are CSV and TensorBoard, in the run's folder."
        )
    if config.distributed.use_ddp and torchrun() is None and config.trainer.devices is None:
        notices.append(
            "distributed.use_ddp has no effect by itself: start with torchrun, or set "
            "trainer.devices."
        )
