"""Weights that a run starts from, and those that it gives back in the released layout."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from darts_kronos.checkpoints import (
    CONFIG_FILE,
    PREDICTOR_FOLDER,
    TOKENIZER_FOLDER,
    predictor_config_from_released,
    read,
    settings_of,
    tokenizer_config_from_released,
    write_predictor,
    write_tokenizer,
)
from darts_kronos.cli.config_file import ConfigFile
from darts_kronos.cli.console import say
from darts_kronos.cli.errors import UsageError
from darts_kronos.cli.keys import Config
from darts_kronos.cli.plan import Plan
from darts_kronos.cli.run_folder import RunFolder
from darts_kronos.cli.sources import Sources, sources
from darts_kronos.hub import locate
from darts_kronos.model import KronosModel
from darts_kronos.model_settings import SETTINGS_FILE, write_settings
from darts_kronos.nn.config import as_dict, override, size_named
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.tokenizer import KronosTokenizer
from darts_kronos.parameters import DEFAULT_SIZE, networks
from darts_kronos.pretrained import BITS, PREDICTOR_SHAPE, TOKENIZER_SHAPE
from darts_kronos.publishing import swap

_TOKENIZER_SHAPE = {**TOKENIZER_SHAPE, "tokenizer_n_layers": "n_encoder_layers"}

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@contextmanager
def starting(file: ConfigFile, plan: Plan) -> Iterator[Plan]:
    """A plan whose model starts from the weights that the config names.

    Where only one of the networks has weights, the other starts anew, made to fit it.

    Raises
    ------
    UsageError
        If the weights are not there, or are not what they must be.
    """
    config, found = file.config, sources(file.config)
    trains = config.experiment.train_tokenizer, config.experiment.train_basemodel
    left_out = {} if trains[1] else {"n_epochs": 0}
    if found.tokenizer is None and found.predictor is None:
        shape = _named_shape(found, plan.model)
        yield replace(plan, model={**plan.model, **shape, **left_out})
        return
    if not trains[0]:
        left_out["n_epochs_tokenizer"] = 0
    # Where no stage trains there is no fine-tuning: the weights forecast as they are.
    changes: dict[str, Any] = {"enable_finetuning": any(trains)}
    if any(trains):
        changes |= left_out
    with tempfile.TemporaryDirectory(prefix="darts_kronos_") as folder:
        try:
            given: dict[str, Any] = _given(file, found)
            if found.predictor is None or found.new_tokenizer:
                changes |= _completed(Path(folder), found, given, plan.model)
                given = {"local_dir": folder}
        except ValueError as error:
            raise file.blame(error) from error
        yield replace(plan, model={**plan.model, **given, **changes})


def _given(file: ConfigFile, found: Sources) -> dict[str, str]:
    """Sources as KronosModel's parameters."""
    given = {}
    for key, source, folder, name in (
        ("pretrained_predictor", found.predictor, "local_dir", "hub_model_name"),
        ("pretrained_tokenizer", found.tokenizer, "tokenizer_local_dir", "hub_tokenizer_name"),
    ):
        if source is None:
            continue
        if Path(source).expanduser().is_dir():
            given[folder] = source
        elif _HUB_NAME.fullmatch(source):
            given[name] = source
        else:
            raise UsageError(
                f"{file.at('model_paths', key)}: model_paths.{key}: {source!r} is neither a folder "
                "that is there nor a name on the hub, such as NeoQuasar/Kronos-small."
            )
    return given


def _completed(
    folder: Path, found: Sources, given: Mapping[str, str], params: Mapping[str, Any]
) -> dict[str, Any]:
    """Make a whole model in a folder, of one network's weights and another that is new.

    Returns
    -------
    dict
        Parameters of a KronosModel that are not to be compared with the weights, as they have
        been followed, and learning rates for the network that is new.
    """
    parts = {name: folder / name for name in (TOKENIZER_FOLDER, PREDICTOR_FOLDER)}
    size = size_named(params["size"] or DEFAULT_SIZE)
    asked = {**params, **_named_shape(found, params)}
    rates: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(params["random_state"])
        if found.predictor is None:
            source = _tokenizer_folder(folder, given)
            tokenizer = tokenizer_config_from_released(read(source)[0])
            bits = {name: getattr(tokenizer, name) for name in BITS}
            predictor = override(networks(asked, tokenizer.n_components).predictor, **bits)
            shutil.copytree(source, parts[TOKENIZER_FOLDER], dirs_exist_ok=True)
            parts[PREDICTOR_FOLDER].mkdir(exist_ok=True)
            write_predictor(KronosPredictor(predictor), parts[PREDICTOR_FOLDER])
            rates["optimizer_kwargs"] = {"lr": size.predictor_lr, **params["optimizer_kwargs"]}
            settings = settings_of(source, tokenizer, predictor)
            settings = replace(
                settings,
                max_context=params["max_context"]
                or params["input_chunk_length"] + params["output_chunk_length"],
            )
        else:
            source = Path(given["local_dir"]) if "local_dir" in given else _hub_folder(given)
            if (source / PREDICTOR_FOLDER / CONFIG_FILE).is_file():
                source = source / PREDICTOR_FOLDER
            predictor = predictor_config_from_released(read(source)[0])
            bits = {name: getattr(predictor, name) for name in BITS}
            tokenizer = override(networks(asked, n_components=6).tokenizer, **bits)
            shutil.copytree(source, parts[PREDICTOR_FOLDER], dirs_exist_ok=True)
            parts[TOKENIZER_FOLDER].mkdir()
            write_tokenizer(KronosTokenizer(tokenizer), parts[TOKENIZER_FOLDER])
            own = params["tokenizer_optimizer_kwargs"]
            rates["tokenizer_optimizer_kwargs"] = {"lr": size.tokenizer_lr, **own}
            settings = settings_of(None, tokenizer, predictor)
    write_settings(settings, folder)
    followed = ("size", *PREDICTOR_SHAPE, *_TOKENIZER_SHAPE, *BITS)
    return {**dict.fromkeys(followed), **rates}


def _tokenizer_folder(folder: Path, given: Mapping[str, str]) -> Path:
    """Where a tokenizer's files are; downloaded, if they are on the hub."""
    if "tokenizer_local_dir" in given:
        source = Path(given["tokenizer_local_dir"]).expanduser()
        inner = source / TOKENIZER_FOLDER
        return inner if (inner / CONFIG_FILE).is_file() else source
    # The hub is asked for a whole model: the predictor that is to come stands in.
    (folder / PREDICTOR_FOLDER).mkdir()
    (folder / PREDICTOR_FOLDER / CONFIG_FILE).write_text("{}", encoding="utf-8")
    return locate({"local_dir": str(folder), **given}).tokenizer


def _hub_folder(given: Mapping[str, str]) -> Path:
    return locate(given).predictor


def _named_shape(found: Sources, params: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of the networks that the config names without reading their weights.

    What `params` say about a size themselves is not replaced.
    """
    shape: dict[str, Any] = {}
    for source in (found.named_predictor, found.named_tokenizer):
        path = None if source is None else Path(source).expanduser() / CONFIG_FILE
        if source is None or path is None:
            continue
        if not path.is_file():
            size = re.search(r"Kronos-(mini|small|base|large)$", source.rstrip("/"))
            if size is not None and all(params[name] is None for name in PREDICTOR_SHAPE):
                shape.setdefault("size", size[1])
            continue
        values = json.loads(path.read_text(encoding="utf-8"))
        if "d_in" in values:
            tokenizer = as_dict(tokenizer_config_from_released(values))
            shape |= {ours: tokenizer[own] for ours, own in _TOKENIZER_SHAPE.items()}
            shape |= {name: tokenizer[name] for name in BITS}
        else:
            predictor = as_dict(predictor_config_from_released(values))
            shape |= {name: predictor[name] for name in (*PREDICTOR_SHAPE, *BITS)}
    return {name: value for name, value in shape.items() if params[name] is None}


def give_back(model: KronosModel, run: RunFolder, config: Config) -> None:
    """Write what a run has trained, in the released layout; each folder at once."""
    trained = config.experiment
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".weights-") as beside:
        whole = Path(beside) / "model"
        with warnings.catch_warnings(record=True) as caught:
            model.save_pretrained(whole)
        for one in caught:
            say(str(one.message).replace(str(whole), str(run.path)))
        for part, target, wanted in (
            (TOKENIZER_FOLDER, run.tokenizer, trained.train_tokenizer),
            (PREDICTOR_FOLDER, run.predictor, has_predictor(config)),
        ):
            if not wanted and (target / CONFIG_FILE).is_file():
                continue
            if part == PREDICTOR_FOLDER and not wanted:
                continue
            # So that a network is understood by itself too.
            shutil.copy(whole / SETTINGS_FILE, whole / part)
            target.parent.mkdir(parents=True, exist_ok=True)
            swap(whole / part, target, Path(beside) / f"old-{part}")


def has_predictor(config: Config) -> bool:
    """Whether a run of this config ends with a predictor that can forecast."""
    return config.experiment.train_basemodel or sources(config).predictor is not None
