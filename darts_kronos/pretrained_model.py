"""A two-stage model that may start from weights, and gives its own back."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from os import PathLike
from tempfile import TemporaryDirectory
from typing import Any

import torch
from darts import TimeSeries
from darts.utils.serialization import add_safe_globals
from torch import nn

from darts_kronos.finetuning import add_lora, plain_name, trainable
from darts_kronos.hub import TOKENIZER_OF, names_weights
from darts_kronos.model_settings import ModelSettings
from darts_kronos.module import KronosModule
from darts_kronos.nn.config import PredictorConfig, TokenizerConfig
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.tokenizer import KronosTokenizer
from darts_kronos.pretrained import Pretrained, load_pretrained, network_weights
from darts_kronos.publishing import card_text, not_for_the_original, push, warn_of, write_model
from darts_kronos.storage import packed, unpacked
from darts_kronos.trading_calendar import timestamps
from darts_kronos.two_stages import TwoStageTorchModel

_START: ContextVar[Pretrained | None] = ContextVar("_START", default=None)
"""Weights that a copy of a model starts from, so that it need not read them again."""


class PretrainedTorchModel(TwoStageTorchModel):
    """A two-stage model that starts from weights, if its parameters name some."""

    _pretrained: Pretrained | None
    _components: list[str] | None
    _representation: str | None
    _uses_stamps: bool | None
    # Darts sets it; the type checker cannot see it.
    training_series: TimeSeries | None

    def _find_pretrained(self) -> Pretrained | None:
        """The weights that the parameters name, read and checked; None if they name none."""
        params = self.model_params
        for name in ("local_dir", "tokenizer_local_dir"):
            if params[name] is not None:
                # Darts loads no saved model that holds a Path.
                params[name] = os.fspath(params[name])
        if not names_weights(params):
            return None
        if params.get("enable_finetuning") is None:
            params["enable_finetuning"] = False
        pretrained = _START.get() or load_pretrained(params)
        tuning = params["enable_finetuning"]
        pretrained.check(params, fine_tuned=bool(tuning))
        # A network without weights of its own tells what patterns of names mean.
        with torch.device("meta"):
            tokenizer = KronosTokenizer(TokenizerConfig(**pretrained.tokenizer_config))
            predictor = KronosPredictor(PredictorConfig(**pretrained.predictor_config))
        if params["lora"] is not None:
            add_lora(predictor, params["lora"])
        networks = nn.ModuleDict({"tokenizer": tokenizer, "predictor": predictor})
        names = [name for name, _ in networks.named_parameters()]
        trainable(names, tuning, params["lora"] is not None)
        return pretrained

    @property
    def _wanted_representation(self) -> str | None:
        """The representation that is given, or that the weights have."""
        given: str | None = self._model_params["representation"]
        if given is None and self._pretrained is not None:
            return str(self._pretrained.settings["representation"])
        return given

    @property
    def _wants_stamps(self) -> bool:
        """Whether the model, or the weights that it starts from, learned from calendar stamps."""
        return self._pretrained is None or bool(self._pretrained.settings["calendar_stamps"])

    def _fit_to_pretrained(self, series: Sequence[TimeSeries]) -> None:
        """Let the weights say which components are used, and whether stamps are."""
        if self._pretrained is None:
            return
        self._components = self._pretrained.take_series(list(series[0].components))
        self._uses_stamps = bool(self._uses_stamps) and self._wants_stamps
        missing = set(self._pretrained.components) - set(self._components)
        if "volume" in missing and "amount" in self._components:
            warnings.warn(
                "The series have an amount but no volume: as in the original, the networks then "
                "see neither, and forecasts of the amount mean nothing.",
                UserWarning,
                stacklevel=2,
            )

    def _start_from_pretrained(self, module: KronosModule) -> None:
        """Give a new module the weights that it starts from, if there are any."""
        if self._pretrained is None:
            return
        weights = self._start_weights()
        state = {
            name: weights[plain_name(name)] if plain_name(name) in weights else tensor
            for name, tensor in module.state_dict().items()
        }
        module.load_state_dict(state)
        module.tokenizer_fitted.fill_(True)

    def _start_weights(self) -> dict[str, torch.Tensor]:
        """The weights that the model started from, wherever they are now."""
        assert self._pretrained is not None
        if self._pretrained.weights is None:
            if self.model is not None:
                self._pretrained.weights = network_weights(self.model)
            else:
                self._pretrained = load_pretrained(self._model_params)
        assert self._pretrained.weights is not None
        return self._pretrained.weights

    def untrained_model(self) -> Any:
        """A new model with the same parameters, which starts from the same weights."""
        if self._pretrained is not None:
            self._start_weights()
        token = _START.set(self._pretrained)
        try:
            return super().untrained_model()
        finally:
            _START.reset(token)

    def _check_ckpt_parameters(self, tfm_save: PretrainedTorchModel) -> None:
        super()._check_ckpt_parameters(tfm_save)
        own, theirs = (
            None if one is None else one.module_params(model.model_params)
            for model, one in ((self, self._pretrained), (tfm_save, tfm_save._pretrained))
        )
        if own != theirs:
            names = [
                "random weights" if one is None else f"'{one.name}'"
                for one in (self._pretrained, tfm_save._pretrained)
            ]
            raise ValueError(
                f"The saved model started from {names[1]}, this one from {names[0]}, and their "
                "networks are not the same: name the same weights, or use `KronosModel.load`."
            )

    # --- giving weights back ------------------------------------------------------------------

    def save_pretrained(self, folder: str | PathLike[str]) -> None:
        """Write the networks to a folder in the released layout.

        ``KronosModel(local_dir=folder)`` starts from it. There will be ``tokenizer`` and
        ``predictor``, each a ``config.json`` and a ``model.safetensors``, and
        ``darts_kronos.json`` with what the networks do not say themselves. LoRA's updates are
        merged. A crash leaves the old folder or the new one.

        The original's code can run models of open, high, low, close, volume and amount, with
        `s1_bits` equal to `s2_bits` and the representation "window"; of others a warning says why
        it cannot.

        Parameters
        ----------
        folder
            It may be missing, empty, or one that was written before, which is replaced.

        Raises
        ------
        ValueError
            If the model is not fitted, or `folder` holds other files.
        """
        module = self._given_back
        write_model(module, folder, self._settings, self._group_size)
        warn_of(not_for_the_original(module, self._settings), folder)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        data: str | None = None,
        dates: str | None = None,
        metrics: Mapping[str, float] | None = None,
        licence: str = "mit",
        private: bool | None = None,
        token: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload what :meth:`save_pretrained` writes, and a short card, to the Hugging Face hub.

        ``KronosModel(hub_model_name=repo_id)`` starts from it.

        Parameters
        ----------
        repo_id
            Name of the repository, such as "me/my-kronos"; it is created if it does not exist.
        data
            What the model was trained on, in words.
        dates
            From when to when; None: of the series that the model was fitted on, if it is known.
        metrics
            Numbers by name; None: the losses of the last epoch of each stage.
        licence
            Of the weights. Those released are under the MIT licence.
        private, token, commit_message
            See ``huggingface_hub.HfApi``.

        Returns
        -------
        str
            Address of the commit.

        Raises
        ------
        ValueError
            If the model is not fitted, or the hub does not take the upload.
        HubUnreachableError
            If there is no network.
        """
        module, settings = self._given_back, self._settings
        start = self._pretrained.name if self._pretrained is not None else None
        card = card_text(
            repo_id,
            settings,
            data=data or "not stated",
            dates=dates or self._known_dates or "not stated",
            metrics=self._last_losses if metrics is None else metrics,
            licence=licence,
            base_model=start if start in TOKENIZER_OF else None,
            reasons=not_for_the_original(module, settings),
        )
        with TemporaryDirectory() as folder:
            write_model(module, folder, settings, self._group_size)
            return push(
                folder, repo_id, card, private=private, token=token, commit_message=commit_message
            )

    @property
    def _given_back(self) -> KronosModule:
        if self.model is None or not self.model.tokenizer_fitted:
            raise ValueError("The model has no weights to give yet: fit or load it first.")
        module: KronosModule = self.model
        return module

    @property
    def _settings(self) -> ModelSettings:
        module = self._given_back
        return ModelSettings(
            components=module.representation.components,
            representation=module.representation.name,
            clip=float(module.representation.clip),
            max_context=module.max_context,
            calendar_stamps=bool(self._uses_stamps),
        )

    @property
    def _group_size(self) -> int | None:
        return None if self._pretrained is None else self._pretrained.group_size

    @property
    def _known_dates(self) -> str | None:
        """First and last time of the series that the model was fitted on, if it is one."""
        series = self.training_series
        times = None if series is None else timestamps(series)
        return None if times is None else f"{times[0]} to {times[-1]}"

    @property
    def _last_losses(self) -> dict[str, float]:
        """What was logged last of each stage."""
        last = {row["stage"]: row for row in self._history if row["epoch"] > 0}
        return {
            f"{stage} {name}": float(row[name])
            for stage, row in last.items()
            for name in ("train_loss", "val_loss")
            if name in row
        }

    def __getstate__(self) -> dict[str, Any]:
        """What is saved; a model's own weights, which Darts saves beside it, are left out."""
        state: dict[str, Any] = super().__getstate__()
        pretrained, model = self._pretrained, self.model
        if pretrained is None or pretrained.weights is None:
            return state
        without_weights = Pretrained(**{**vars(pretrained), "weights": None})
        own = {} if model is None else model.state_dict()
        if all(
            name in own and torch.equal(own[name].cpu(), tensor)
            for name, tensor in pretrained.weights.items()
        ):
            return state | {"_pretrained": without_weights}
        return state | {"_pretrained": without_weights, "_start": packed(pretrained.weights)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read what was saved."""
        start = state.pop("_start", None)
        super().__setstate__(state)
        if start is not None:
            own = {**vars(self._pretrained), "weights": unpacked(start)}
            self._pretrained = Pretrained(**own)


# Darts loads no classes from outside its own package unless they are registered.
add_safe_globals([Pretrained])
