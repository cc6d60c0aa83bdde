"""Where a config says that weights come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from darts_kronos.checkpoints import CONFIG_FILE
from darts_kronos.cli.errors import UsageError
from darts_kronos.cli.keys import Config


@dataclass(frozen=True)
class Sources:
    """Where both networks' weights come from: a folder, a name on the hub, or None for nowhere.

    Attributes
    ----------
    tokenizer, predictor
        What each starts from.
    named_tokenizer, named_predictor
        What the config names though it is not to be read: it tells the networks' sizes.
    new_tokenizer
        Whether the tokenizer is new even where one belongs to the predictor.
    """

    tokenizer: str | None
    predictor: str | None
    named_tokenizer: str | None
    named_predictor: str | None
    new_tokenizer: bool

    @property
    def read(self) -> list[str]:
        """Those that weights are read from."""
        return [one for one in (self.tokenizer, self.predictor) if one is not None]


def sources(config: Config) -> Sources:
    """What a config says about the weights to start from.

    Raises
    ------
    UsageError
        If the tokenizer is not to be trained and there is none.
    """
    paths, experiment = config.model_paths, config.experiment
    flags = experiment.pre_trained_tokenizer, experiment.pre_trained_predictor
    reads = [experiment.pre_trained if flag is None else flag for flag in flags]
    tokenizer = None if reads[0] is False else paths.pretrained_tokenizer
    predictor = None if reads[1] is False else paths.pretrained_predictor
    finetuned = paths.finetuned_tokenizer or ""
    if not experiment.train_tokenizer and (Path(finetuned) / CONFIG_FILE).is_file():
        tokenizer = finetuned
    if not experiment.train_tokenizer and tokenizer is None and predictor is None:
        raise UsageError(
            "experiment.train_tokenizer is false, and there is no tokenizer: neither a "
            "model_paths.pretrained_tokenizer nor weights in model_paths.finetuned_tokenizer "
            f"({finetuned})."
        )
    return Sources(
        tokenizer,
        predictor,
        paths.pretrained_tokenizer,
        paths.pretrained_predictor,
        new_tokenizer=tokenizer is None and reads[0] is False,
    )
