"""``darts-kronos fit``: from a config to a trained model in the folder of its run."""

from __future__ import annotations

import json
import sys
from typing import Any

import pandas as pd

from darts_kronos.cli import plan as planning
from darts_kronos.cli.config_file import ConfigFile
from darts_kronos.cli.console import logged_to, say, warn
from darts_kronos.cli.data import Parts, files_of, fingerprint, read, span, split
from darts_kronos.cli.errors import CommandError, RunError
from darts_kronos.cli.files import write_json, written
from darts_kronos.cli.keys import Config
from darts_kronos.cli.processes import hear, is_first, part, tell
from darts_kronos.cli.report import Advice, StageBar, StageReport
from darts_kronos.cli.run_folder import RunFolder, environment
from darts_kronos.cli.seen import seen
from darts_kronos.cli.sources import sources
from darts_kronos.cli.weights import give_back, has_predictor, starting
from darts_kronos.model import KronosModel
from darts_kronos.plotting import plot_training
from darts_kronos.two_stages import STAGES

CURVES_DPI = 90


def fit(file: ConfigFile, force: bool = False) -> None:
    """Train what a config asks for, or go on with it where it was cut off.

    Parameters
    ----------
    file
        The config.
    force
        Whether a run that is here is written over.

    Raises
    ------
    UsageError
        Before anything is trained or written, if the config, the data or the folder do not do.
    RunError
        If training fails.
    """
    config, first = file.config, is_first()
    series = read(config.data)
    parts = split(series, config.data)
    plan = planning.make(config, parts, show_progress=first and sys.stderr.isatty())
    run = RunFolder(config.model_paths)
    sha256 = fingerprint(series)
    # All that may fail comes before a run that is here is removed.
    about = {
        "name": config.experiment.name,
        "description": config.experiment.description,
        "seed": config.training.seed,
        "data": {
            "path": config.data.data_path,
            "bars": span(series),
            "sha256": sha256,
            "series": seen(parts, config.data),
        },
        **environment(),
    }
    with starting(file, plan) as plan:
        try:
            KronosModel(**plan.model)
        except ValueError as error:
            raise file.blame(error) from error
        planning.check_trainer(file, plan.model["pl_trainer_kwargs"])
        decision = run.decide(config, sha256, force) if first else hear()
        if first:
            if decision in ("new", "predictor"):
                # A run's own config may be given again, and is written anew.
                own = [] if run.known is not None else [file.path]
                run.clear(
                    config,
                    sources(config).read,
                    only_predictor=decision == "predictor",
                    inputs=[*own, *files_of(config.data)],
                )
                run.begin(config, about)
            tell(decision)
        if decision == "nothing":
            say(f"{run.path}: this run is finished and is left as it is.")
            return
        with logged_to(run.log):
            try:
                _train(file, run, plan, parts, decision == "resume")
            except BaseException as error:
                if first:
                    _note_failure(run, error)
                raise


def _train(
    file: ConfigFile, run: RunFolder, plan: planning.Plan, parts: Parts, resumes: bool
) -> None:
    for text in plan.warnings:
        warn(text)
    for text in plan.notices:
        say(text)
    config = file.config
    say(f"{config.data.data_path}: {span(parts.whole)}")
    say(_parts_in_words(parts, plan.model["input_chunk_length"]))
    model = _resumed(run, plan, config) if resumes else None
    if model is None:
        model = KronosModel(
            **plan.model,
            model_name=run.training,
            work_dir=str(run.path),
            save_checkpoints=True,
            force_reset=is_first(),
            log_tensorboard=True,
        )
    _attach(model, run, plan, parts, config.training.log_interval)
    try:
        model.fit(parts.train, val_series=parts.val or None, load_best=bool(parts.val), **plan.fit)
    except ValueError as error:
        raise RunError(f"Training failed: {error}") from error
    part()
    if not is_first():
        return
    if config.sampling.calibrate and not parts.val:
        say("sampling.calibrate has no effect: there is no validation part (data.val_ratio).")
    elif config.sampling.calibrate:
        say("\nCalibrating the sampling on the validation part ...")
        tried = model.calibrate(parts.val, verbose=plan.fit["verbose"])
        say(tried[tried["before"] | tried["chosen"]].to_string(index=False))
    _keep(model, run, config)


def _resumed(run: RunFolder, plan: planning.Plan, config: Config) -> KronosModel | None:
    """The model of a run that was cut off; None if it had not finished an epoch."""
    if not any((run.path / run.training).glob("checkpoints*/*.ckpt")):
        say(f"{run.path}: this run was cut off in its first epoch; it begins anew.")
        return None
    try:
        model: KronosModel = KronosModel.load_from_checkpoint(
            run.training, str(run.path), best=False
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise RunError(
            f"{run.path}: the checkpoints of this run cannot be read: {error} Say --force to train "
            "anew over it."
        ) from error
    say(f"{run.path}: going on where this run was cut off.")
    kept = {"callbacks", "logger"}
    given = plan.model["pl_trainer_kwargs"]
    model.trainer_params |= {name: value for name, value in given.items() if name not in kept}
    model.set_sampling(**planning.sampling(config))
    return model


def _attach(
    model: KronosModel, run: RunFolder, plan: planning.Plan, parts: Parts, log_interval: int
) -> None:
    """Let both stages report. These callbacks are no part of a saved model."""
    workers = plan.fit["dataloader_kwargs"]["num_workers"]
    n_bars = sum(map(len, parts.train))
    shows = plan.model["pl_trainer_kwargs"]["enable_progress_bar"]
    tokenizer, predictor = (
        [
            StageReport(stage, log_interval, run.epochs),
            Advice(stage, n_bars, workers),
            *([StageBar()] if shows else []),
        ]
        for stage in STAGES
    )
    model.trainer_params["callbacks"] = [*model.trainer_params.get("callbacks", []), *predictor]
    model.tokenizer_trainer_kwargs = {**model.tokenizer_trainer_kwargs, "callbacks": tokenizer}


def _parts_in_words(parts: Parts, context: int) -> str:
    texts = [f"training {sum(map(len, parts.train)):,} bars"]
    if parts.n_val:
        borrowed = (
            f" (after a context of {context} bars from training)" if parts.val_borrows else ""
        )
        texts.append(f"validation {parts.n_val:,}{borrowed}")
    if parts.n_test:
        texts.append(f"test {parts.n_test:,}")
    return ", ".join(texts)


def _keep(model: KronosModel, run: RunFolder, config: Config) -> None:
    """Save a trained model, its weights in the released layout, its figures and its curves."""
    model.save(str(run.model), clean=True)
    say("")
    give_back(model, run, config)
    history = model.training_history
    if len(history):
        metrics = {stage: _best(history[history["stage"] == stage]) for stage in STAGES}
        write_json(run.metrics, {stage: values for stage, values in metrics.items() if values})
        figure = plot_training(model, title=str(run.path.name))
        with written(run.curves) as unfinished:
            figure.savefig(unfinished, dpi=CURVES_DPI)
        for stage, values in metrics.items():
            which, loss = ("best", "val_loss") if "val_loss" in values else ("last", "train_loss")
            if values:
                say(f"{stage}: {which} epoch {values['epoch']}, {loss} {values[loss]:.4f}")
    run.finish(forecasts=has_predictor(config))
    say(f"{run.path}: {', '.join(run.contents())}")


def _best(epochs: pd.DataFrame) -> dict[str, Any]:
    """The epoch of a stage that is kept: of the least validation loss, else the last."""
    if epochs.empty:
        return {}
    validated = "val_loss" in epochs and epochs["val_loss"].notna().all()
    row = epochs.iloc[int(epochs["val_loss"].argmin()) if validated else -1]
    values: dict[str, Any] = json.loads(row.dropna().to_json())
    return values


def _note_failure(run: RunFolder, error: BaseException) -> None:
    state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    try:
        if run.about.exists():
            run.note(state=state, error=str(error))
    except (OSError, CommandError):
        # A full disk is reported by the error itself.
        pass
