"""``darts-kronos tune``: the parameters that the config leaves open, searched with Optuna."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import TrialState

from darts_kronos import tuning
from darts_kronos.cli import plan as planning
from darts_kronos.cli.config_file import ConfigFile
from darts_kronos.cli.console import say, warn
from darts_kronos.cli.data import read, split
from darts_kronos.cli.errors import RunError, UsageError
from darts_kronos.cli.files import check_target, write_text
from darts_kronos.cli.keys import MODEL_KEYS
from darts_kronos.cli.plan import Plan, check_trainer, first_of
from darts_kronos.cli.run_folder import RunFolder
from darts_kronos.cli.sources import sources
from darts_kronos.cli.weights import has_predictor, starting
from darts_kronos.parameters import SAMPLING
from darts_kronos.search_space import default_point, rate_about, suggest_parameters

STUDY = "tuning"
"""Folder, in that of the run, that keeps the study."""

TRAINING_KEYS = {
    "n_epochs": "basemodel_epochs",
    "n_epochs_tokenizer": "tokenizer_epochs",
}
RATE_KEYS = {
    "": "predictor_learning_rate",
    "tokenizer_": "tokenizer_learning_rate",
}
"""Keys under `training` of what is searched; those of learning rates by the prefix of the stage's
parameters."""


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--trials", type=int, default=20, metavar="N", help="trials in all; default: %(default)s"
    )
    parser.add_argument(
        "--timeout", type=float, metavar="SECONDS", help="begin no new trial after so long"
    )
    parser.add_argument("--samples", type=int, metavar="N", help="sample paths of a forecast")
    parser.add_argument(
        "--stride", type=int, metavar="BARS", help="bars between forecasts; default: the horizon"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="the config with what was found; default: NAME.tuned.yaml"
    )


def run(file: ConfigFile, arguments: argparse.Namespace) -> None:
    """Search, or go on with a search, and write a config of the best trial.

    What the config or the command line gives is not searched, nor is what belongs to weights that
    they name or to a stage that they leave out.

    Raises
    ------
    UsageError
        If there is no validation part or no predictor to judge, or the study here is of other data
        or other keys.
    RunError
        If no trial could be completed.
    """
    config = file.config
    for name in ("trials", "timeout", "stride"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise UsageError(f"--{name} must be above 0, got {value}.")
    num_samples, asked_in = config.sampling.num_samples, "sampling.num_samples"
    if arguments.samples is not None:
        num_samples, asked_in = arguments.samples, "--samples"
    if num_samples < 2:
        raise UsageError(
            f"{asked_in} must be at least 2, got {num_samples}: trials are judged by the CRPS of "
            "their paths."
        )
    if arguments.out:
        check_target("--out", arguments.out)
    if not has_predictor(config):
        raise UsageError(
            f"{file.at('experiment', 'train_basemodel')}: experiment.train_basemodel is false, and "
            "tuning judges trials by their forecasts, which would be those of a predictor that has "
            "learned nothing. Say experiment.train_basemodel: true, or name a "
            "model_paths.pretrained_predictor; experiment.train_tokenizer may be false."
        )
    parts = split(read(config.data), config.data)
    if not parts.val:
        raise UsageError("Tuning needs a validation part: data.val_ratio is 0.")
    with starting(file, planning.make(config, parts, show_progress=False)) as plan:
        for text in plan.warnings:
            warn(text)
        say(f"{arguments.trials} trials, each trained and then judged by the CRPS of its forecasts")
        folder = RunFolder(config.model_paths).path / STUDY
        fixed = _fixed(file, plan)
        check_trainer(file, fixed["pl_trainer_kwargs"])
        try:
            study = tuning.tune(
                parts.train,
                parts.val,
                n_trials=arguments.trials,
                num_samples=num_samples,
                stride=arguments.stride,
                storage=str(folder),
                study_name=str(config.model_paths.exp_name),
                timeout=arguments.timeout,
                callbacks=[_Row()],
                fit_kwargs={k: v for k, v in plan.fit.items() if k != "verbose"},
                show_progress=False,
                sampler=optuna.samplers.TPESampler(seed=config.training.seed, constant_liar=True),
                **_new_networks_rates(file, fixed),
                **fixed,
            )
            best = tuning.best_parameters(study)
        except ValueError as error:
            if "No trial" in str(error):
                raise RunError(str(error)) from error
            raise file.blame(error) from error
    target = Path(arguments.out or file.path.with_suffix(".tuned.yaml").name)
    write_text(target, yaml.safe_dump(_tuned(file, best), sort_keys=False, allow_unicode=True))
    say(f"The best is trial {study.best_trial.number + 1}, with a CRPS of {study.best_value:.6g}.")
    say(f"written: {target}; train it with `darts-kronos fit {target}`")


def _fixed(file: ConfigFile, plan: Plan) -> dict[str, Any]:
    """The parameters of a plan that are not searched."""
    fixed = dict(plan.model)
    for section, names in (("model", MODEL_KEYS), ("sampling", SAMPLING)):
        defaults = getattr(file.config, section)
        for name in names:
            # Sizes that are named elsewhere, with weights that are not read, are given too.
            if not file.gives(section, name) and fixed[name] == getattr(defaults, name):
                del fixed[name]
    for name, key in TRAINING_KEYS.items():
        given = file.gives("training", key) or file.gives("training", "epochs")
        # A stage that is left out stays so.
        if not given and fixed[name] != 0:
            fixed.pop(name)
    # One trial after the other, each on one device.
    trainer = fixed["pl_trainer_kwargs"]
    fixed["pl_trainer_kwargs"] = {
        **trainer,
        "devices": first_of(trainer["devices"]),
        "num_nodes": 1,
        "strategy": "auto",
    }
    return fixed


def _new_networks_rates(file: ConfigFile, fixed: dict[str, Any]) -> dict[str, Any]:
    """Let the learning rate of a network that is new beside weights be searched about its own.

    Where there are weights, the search space takes all rates to be those of fine-tuning.

    Parameters
    ----------
    file
        The config.
    fixed
        Parameters that are not searched; such a rate is taken from them, unless it is given.

    Returns
    -------
    dict
        `suggest` and `first` for :func:`darts_kronos.tuning.tune`; empty if there is no such rate.
    """
    rates: dict[str, float] = {}
    experiment = file.config.experiment
    trains = {"": experiment.train_basemodel, "tokenizer_": experiment.train_tokenizer}
    for prefix, key in RATE_KEYS.items():
        own = fixed[f"{prefix}optimizer_kwargs"]
        if trains[prefix] and "lr" in own and getattr(file.config.training, key) is None:
            rates[prefix] = own["lr"]
    if not rates:
        return {}
    held = dict(fixed)
    for prefix in rates:
        own = fixed[f"{prefix}optimizer_kwargs"]
        fixed[f"{prefix}optimizer_kwargs"] = {k: v for k, v in own.items() if k != "lr"}

    def suggest(trial: optuna.Trial) -> dict[str, Any]:
        found = suggest_parameters(trial, held)
        for prefix, rate in rates.items():
            found |= rate_about(trial, prefix, rate)
        return found

    own_rates = {f"{prefix}lr": rate for prefix, rate in rates.items()}
    return {"suggest": suggest, "first": default_point(fixed) | own_rates}


def _tuned(file: ConfigFile, best: Mapping[str, Any]) -> dict[str, Any]:
    """The config's own keys, and what was found for the others."""
    tree: dict[str, Any] = {name: dict(keys) for name, keys in file.given.items()}
    name = file.config.model_paths.exp_name
    paths = tree.setdefault("model_paths", {})
    paths["exp_name"] = f"{name}-tuned"
    if "{exp_name}" not in (folder := paths.get("base_save_path") or "{exp_name}"):
        paths["base_save_path"] = f"{folder.rstrip('/')}-tuned"
    # Weights to start from are where they were, whatever the new run is called.
    known = sources(file.config)
    started = {known.tokenizer, known.named_tokenizer, known.named_predictor} - {None}
    for key in ("pretrained_tokenizer", "pretrained_predictor", "finetuned_tokenizer"):
        if (path := getattr(file.config.model_paths, key)) in started:
            paths[key] = path
    for section, names in (("model", MODEL_KEYS), ("sampling", SAMPLING)):
        # Of sizes that weights have followed already, the trials knew nothing.
        found = {key: best[key] for key in names if key in best and not file.gives(section, key)}
        tree[section] = {**tree.get(section, {}), **found}
    training = tree.setdefault("training", {})
    for parameter, key in TRAINING_KEYS.items():
        if best.get(parameter):
            training[key] = best[parameter]
    for prefix, key in RATE_KEYS.items():
        if "lr" in (own := best[f"{prefix}optimizer_kwargs"]):
            training[key] = own["lr"]
    return tree


class _Row:
    """Prints a line for each trial."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        """Print what a trial was worth."""
        now = time.monotonic()
        took, self._last = now - self._last, now
        what = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
        if trial.state is TrialState.COMPLETE:
            best = study.best_trial
            worth = f"CRPS {trial.value:.6g} (best {best.value:.6g}, trial {best.number + 1})"
        else:
            worth = f"failed: {trial.user_attrs.get('error', 'no reason kept')}"
        say(f"trial {trial.number + 1}: {worth}, {took:.0f} s: {what}")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
