"""The model that a run has ended with."""

from __future__ import annotations

import torch

from darts_kronos.cli.config_file import ConfigFile
from darts_kronos.cli.console import warn
from darts_kronos.cli.errors import UsageError
from darts_kronos.cli.plan import hardware, sampling
from darts_kronos.cli.run_folder import RunFolder
from darts_kronos.model import KronosModel


def load(file: ConfigFile, show_progress: bool = False) -> KronosModel:
    """The fitted model of a config's run, with the config's sampling where it says one.

    A sampling that ``fit`` calibrated stays, unless the config or the command line gives it.

    Raises
    ------
    UsageError
        If there is none yet.
    """
    run = RunFolder(file.config.model_paths)
    if not run.model.exists():
        raise UsageError(
            f"{run.path}: there is no fitted model: run `darts-kronos fit {file.path}` first."
        )
    if run.known is not None and not run.known.get("forecasts", True):
        raise UsageError(
            f"{run.path}: only the tokenizer was trained; train the predictor too "
            "(experiment.train_basemodel: true, experiment.train_tokenizer: false)."
        )
    warnings: list[str] = []
    where = hardware(file.config, warnings)
    for text in warnings:
        warn(text)
    trainer = {
        "accelerator": where.trainer["accelerator"],
        "devices": where.one_device,
        "enable_progress_bar": show_progress,
        "logger": False,
    }
    on_cpu = trainer["accelerator"] == "cpu" or not torch.cuda.is_available()
    model: KronosModel = KronosModel.load(
        str(run.model), map_location="cpu" if on_cpu else None, pl_trainer_kwargs=trainer
    )
    given = {k: v for k, v in sampling(file.config).items() if file.gives("sampling", k)}
    if file.config.sampling.calibrate:
        # What was found on the validation part stays, but for what the command line says.
        given = {
            name: value
            for name, value in given.items()
            if name not in ("temperature", "top_p") or file.at("sampling", name).startswith("--")
        }
    try:
        model.set_sampling(**given)
    except ValueError as error:
        raise file.blame(error) from error
    asked, has = file.config.data.lookback_window, model.input_chunk_length
    if asked != has:
        raise UsageError(
            f"{file.at('data', 'lookback_window')}: data.lookback_window is {asked}, but the model "
            f"in {run.path} was trained with {has}. Train another run (model_paths.exp_name)."
        )
    return model
