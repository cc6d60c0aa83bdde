"""``darts-kronos inspect``: what a run, a model or a checkpoint is."""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

from darts_kronos import checkpoints
from darts_kronos.checkpoints import CONFIG_FILE
from darts_kronos.cli.config_file import ConfigFile
from darts_kronos.cli.console import say
from darts_kronos.cli.errors import UsageError
from darts_kronos.cli.keys import Config
from darts_kronos.cli.run_folder import RunFolder


def options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "path", help="a config, the folder of a run, of a saved model, or of one checkpoint"
    )


def run(arguments: argparse.Namespace) -> None:
    """Print what there is.

    Raises
    ------
    UsageError
        If it is none of these.
    """
    path = Path(arguments.path)
    if path.is_file() and path.suffix.lower() in (".yaml", ".yml"):
        _show_run(RunFolder(ConfigFile(path).config.model_paths))
    elif (path / "run.json").is_file():
        _show_run(_run_in(path))
    elif path.is_dir():
        try:
            checkpoints.inspect(path)
        except ValueError as error:
            raise UsageError(f"{path}: {error}") from error
    elif path.is_file():
        raise UsageError(
            f"{path}: is a file, and no config, which ends in .yaml or .yml. A saved model is "
            f"inspected by its folder: {_folder_of(path)}."
        )
    else:
        raise UsageError(f"{path}: there is no such config or folder.")


def _folder_of(file: Path) -> str:
    """The folder by which a file's model can be inspected, in words."""
    for folder in file.absolute().parents[:2]:
        if (folder / "run.json").is_file() or (folder / CONFIG_FILE).is_file():
            return str(folder)
    return "of its run, or one that `KronosModel.save_pretrained` wrote"


def _run_in(folder: Path) -> RunFolder:
    """The run in a folder, wherever it was made."""
    kept = folder / "config.yaml"
    try:
        config = Config.model_validate(yaml.safe_load(kept.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{kept}: the run's config cannot be read: {error}.") from None
    return RunFolder(config.model_paths.model_copy(update={"base_save_path": str(folder)}))


def _show_run(run: RunFolder) -> None:
    known = run.known
    if known is None:
        raise UsageError(f"{run.path}: there is no run yet.")
    say(f"{run.path}: {known['state']}")
    facts = {
        "name": known["name"],
        "description": known["description"],
        "data": f"{known['data']['path']}, {known['data']['bars']}",
        "fingerprint": known["data"]["sha256"],
        "seed": known["seed"],
        "started": known["started"],
        "finished": known.get("finished"),
        "error": known.get("error") if known["state"] == "failed" else None,
        "versions": ", ".join(f"{name} {number}" for name, number in known["versions"].items()),
    }
    for name, value in facts.items():
        if value not in (None, ""):
            say(f"  {name:<16} {value}")
    for folder in (run.tokenizer, run.predictor):
        if (folder / CONFIG_FILE).is_file():
            checkpoints.inspect(folder)
