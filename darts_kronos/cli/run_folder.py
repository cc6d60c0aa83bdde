"""The folder of a run: what lies where, and whether a run may begin, go on, or is refused."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from datetime import datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import yaml

from darts_kronos.cli.config_file import dump
from darts_kronos.cli.errors import UsageError
from darts_kronos.cli.files import write_json, write_text
from darts_kronos.cli.keys import Config, ModelPaths
from darts_kronos.storage import held

Decision = Literal["new", "predictor", "resume", "nothing"]
"""How a run begins: anew, with the second stage of one that had but the first, where it was cut
off, or not at all."""


PACKAGES = ("darts-kronos", "darts", "torch", "pytorch-lightning", "numpy", "pandas")

UNIMPORTANT = {
    "sampling": None,
    "device": None,
    "distributed": None,
    "training": {"log_interval", "num_workers"},
    "experiment": {"name", "description", "use_comet", "skip_existing"},
    "trainer": {"accelerator", "devices", "num_nodes", "strategy"},
}
"""What may differ where a run goes on: sections (None) or keys of them that no weight feels."""


class RunFolder:
    """A run's files. Nothing is read or written before it is asked for.

    Parameters
    ----------
    paths
        Of a config, :func:`resolved`.
    """

    training = "training"
    """Folder, in that of the run, of what a run that is cut off goes on from, and of its logs."""

    def __init__(self, paths: ModelPaths):
        assert paths.base_save_path is not None
        self.path = Path(paths.base_save_path)
        self.tokenizer = self.path / paths.tokenizer_save_name / "best_model"
        self.predictor = self.path / paths.basemodel_save_name / "best_model"
        self.config = self.path / "config.yaml"
        self.about = self.path / "run.json"
        self.log = self.path / "train.log"
        self.epochs = self.path / "metrics.csv"
        self.metrics = self.path / "metrics.json"
        self.curves = self.path / "training.png"
        self.model = self.path / "model.pt"

    @property
    def outputs(self) -> list[Path]:
        """All that a training writes here, but for its log."""
        return [
            self.config,
            self.about,
            self.epochs,
            self.metrics,
            self.curves,
            self.model,
            self.model.with_name(self.model.name + ".ckpt"),
            self.path / self.training,
            self.tokenizer,
            self.predictor,
        ]

    @cached_property
    def known(self) -> dict[str, Any] | None:
        """What is noted about the run that is here, if there is one."""
        try:
            found: dict[str, Any] = json.loads(self.about.read_text(encoding="utf-8"))
            return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.about}: cannot be read: {error}.") from None

    def contents(self) -> list[str]:
        """What of a run's files is there, for the user to look at."""
        shown = [self.model, self.tokenizer, self.predictor, self.curves, self.epochs, self.log]
        return [str(one.relative_to(self.path)) for one in shown if one.exists()]

    def decide(self, config: Config, data_sha256: str, force: bool) -> Decision:
        """Whether a run is new, goes on, or is finished and is to be left as it is.

        Raises
        ------
        UsageError
            If it would overwrite what is here.
        """
        if force:
            return "new"
        if self.known is None:
            self._check_free(config)
            return "new"
        differing = self._differing(config)
        is_same = self.known["data"]["sha256"] == data_sha256
        if (differing or not is_same) and self._has_trained_nothing:
            return "new"
        if differing:
            raise UsageError(
                f"{self.path}: holds a run of another config, which differs in "
                f"{', '.join(differing)}. Say another model_paths.exp_name, or --force to train "
                "anew over it."
            )
        if not is_same:
            raise UsageError(
                f"{self.path}: holds a run of other data: the candles have changed since. Say "
                "another model_paths.exp_name, or --force to train anew over it."
            )
        if self.known["state"] != "finished":
            return "resume"
        experiment = config.experiment
        if self._lacks_predictor and experiment.train_basemodel and not experiment.train_tokenizer:
            return "predictor"
        if config.experiment.skip_existing:
            return "nothing"
        raise UsageError(
            f"{self.path}: this run is finished. Say another model_paths.exp_name, --force to "
            "train anew over it, or experiment.skip_existing: true to leave it as it is."
        )

    @property
    def _lacks_predictor(self) -> bool:
        """Whether the run that is here has trained a tokenizer alone."""
        assert self.known is not None
        return self.known["state"] == "finished" and not self.known["forecasts"]

    @property
    def _has_trained_nothing(self) -> bool:
        """Whether the run that is here ended before it had finished an epoch."""
        assert self.known is not None
        kept = (self.epochs, self.model, self.tokenizer, self.predictor)
        return (
            self.known["state"] in ("failed", "interrupted")
            and not any(path.exists() for path in kept)
            and not any((self.path / self.training).glob("checkpoints*/*.ckpt"))
        )

    def _trained(self, config: Config) -> dict[Path, bool]:
        """Folders of the two networks' weights, and whether a run of this config writes them."""
        return {
            self.tokenizer: config.experiment.train_tokenizer,
            self.predictor: config.experiment.train_basemodel,
        }

    def _check_free(self, config: Config) -> None:
        weights = self._trained(config)
        for path in (*self.outputs, self.log):
            if path.exists() and path not in weights:
                raise UsageError(
                    f"{path}: is here, but no run that wrote it: a run would remove it. Say "
                    "another model_paths.base_save_path or exp_name, or --force to write over it."
                )
        for folder, is_written in weights.items():
            if is_written and folder.is_dir() and any(folder.iterdir()):
                raise UsageError(
                    f"{folder}: weights of another run are here. Say another "
                    "model_paths.exp_name, or --force to write over them."
                )

    def _differing(self, config: Config) -> list[str]:
        """Keys, of those that matter, that differ from the config of the run that is here."""
        try:
            before = Config.model_validate(
                yaml.safe_load(self.config.read_text(encoding="utf-8"))
            ).model_dump()
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UsageError(
                f"{self.config}: the run's config cannot be read: {error}. Say --force to train "
                "anew over it."
            ) from None
        differing = []
        stages = {"train_tokenizer", "train_basemodel"} if self._lacks_predictor else set()
        for section, values in config.model_dump().items():
            unimportant = UNIMPORTANT.get(section, set())
            if unimportant is not None:
                differing += [
                    f"{section}.{key}"
                    for key, value in values.items()
                    if key not in unimportant | stages and before[section][key] != value
                ]
        return differing

    def clear(
        self,
        config: Config,
        sources: Iterable[str],
        only_predictor: bool = False,
        inputs: Iterable[Path] = (),
    ) -> None:
        """Remove what a training writes, and nothing else; or what its second stage writes.

        Parameters
        ----------
        config
            Of the training.
        sources
            Folders of the weights that it starts from; they stay.
        only_predictor
            Whether what the first stage wrote stays too.
        inputs
            Files that the training reads.

        Raises
        ------
        UsageError
            If the training would write over the weights that it starts from or a file that it
            reads, or another is at work here.
        """
        kept = {self.tokenizer, self.log, self.epochs} if only_predictor else set()
        read = [Path(source).expanduser().resolve() for source in sources]
        for folder, is_written in self._trained(config).items():
            if not any(source.is_relative_to(folder.resolve()) for source in read):
                continue
            if is_written:
                raise UsageError(
                    f"{folder}: this run would start from the weights here and write over them. "
                    "Say another model_paths.exp_name, or copy them to another folder first."
                )
            kept.add(folder)
        removed = {*self.outputs, self.log} - kept
        for file in inputs:
            if any(file.resolve().is_relative_to(path.resolve()) for path in removed):
                raise UsageError(
                    f"{file}: this run would read the file and then remove it. Say another "
                    "model_paths.base_save_path or exp_name, or move it elsewhere."
                )
        training = self.path / self.training
        try:
            with held(str(training), "The run") if training.is_dir() else nullcontext():
                for path in removed:
                    if path.is_dir():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
        except ValueError as error:
            raise UsageError(f"{self.path}: {error}") from error

    def begin(self, config: Config, about: dict[str, Any]) -> None:
        """Make the folder and note what is about to run."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config, dump(config))
        self.note(state="running", started=_now(), **about)

    def finish(self, **more: Any) -> None:
        """Note that the run has ended as it should."""
        self.note(state="finished", finished=_now(), **more)

    def note(self, **more: Any) -> None:
        """Add to what is noted about the run."""
        self.known = {**(self.known or {}), **more}
        write_json(self.about, self.known)


def environment() -> dict[str, Any]:
    """Versions that a run depends on, and the command that began it."""
    return {
        "command": ["darts-kronos", *sys.argv[1:]],
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES},
        },
        "platform": platform.platform(),
    }


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
