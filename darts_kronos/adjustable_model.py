"""A model of which some parameters may change after it is fitted or loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from darts_kronos.augmentation import Augmentation
from darts_kronos.parameters import (
    AUGMENTATION,
    SAMPLING,
    check_augmentation,
    check_sampling,
    plain,
)
from darts_kronos.pretrained_model import PretrainedTorchModel


class AdjustableTorchModel(PretrainedTorchModel):
    """What KronosModel knows of the parameters that are not its networks'."""

    def set_sampling(self, **changes: Any) -> Self:
        """Change how forecasts are drawn, before or after the model is fitted or loaded.

        Parameters
        ----------
        **changes
            Any of `temperature`, `top_k`, `top_p`, `point_forecast`, `num_point_samples`,
            `valid_candles`, `anchor`, `antithetic` and `sliding`; see the class. The others stay
            as they are.

        Returns
        -------
        KronosModel
            This model.

        Raises
        ------
        ValueError
            If a name is unknown or a value out of range; nothing is changed then.
        """
        changes = plain(changes)
        check_sampling(self.sampling | changes, self._components)
        self._change("sampling", self.sampling | changes)
        return self

    @property
    def sampling(self) -> dict[str, Any]:
        """What :meth:`set_sampling` can change, as it is."""
        return {name: self._model_params[name] for name in SAMPLING}

    def set_augmentation(self, **changes: float) -> Self:
        """Change how windows are varied in training, from the next ``fit`` on.

        A model that was pretrained can so be trained further in another way.

        Parameters
        ----------
        **changes
            Any of `mirror`, `price_jitter`, `volume_jitter`, `volume_dropout` and `date_shift`;
            see the class. The others stay as they are.

        Returns
        -------
        KronosModel
            This model.

        Raises
        ------
        ValueError
            If a name is unknown or a value out of range; nothing is changed then.
        """
        changes = plain(changes)
        check_augmentation(self.augmentation | changes)
        self._change("augmentation", self.augmentation | changes)
        if self.model is not None:
            self.model.augmentation = Augmentation(**self.augmentation)
        return self

    @property
    def augmentation(self) -> dict[str, float]:
        """What :meth:`set_augmentation` can change, as it is."""
        return {name: self._model_params[name] for name in AUGMENTATION}

    def _change(self, kind: str, values: Mapping[str, Any]) -> None:
        self._model_params.update(values)
        if self.model is not None:
            self.model.hparams[kind] = dict(values)
