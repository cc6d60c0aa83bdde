"""What Darts asks of a torch model that is not about Kronos."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import wraps
from threading import RLock
from typing import Any, TypeVar, cast

import pytorch_lightning as pl
from darts import TimeSeries
from darts.models.forecasting.torch_forecasting_model import MixedCovariatesTorchModel

from darts_kronos.interrupts import interruptible
from darts_kronos.module import KronosModule
from darts_kronos.parameters import refuse_half_precision
from darts_kronos.storage import make_folder, packed, replacing, unpacked
from darts_kronos.trainers import saying_what_is_refused, with_checkpoint_io

Method = TypeVar("Method", bound=Callable[..., Any])

_SAVING: ContextVar[bool] = ContextVar("_SAVING", default=False)
"""Whether `save` is at work, which writes the networks to a file of their own."""

_turn = RLock()
"""Held by the thread that forecasts, from the moment that random numbers are seeded for it.

What a forecast is of lies in the model while it is made, on a GPU Lightning moves the networks
there and back, and all threads share torch's random numbers.
"""


def _turn_anew() -> None:
    """In a forked process: the thread that had its turn is not there."""
    global _turn
    _turn = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_turn_anew)


def _documented_as(method: Callable[..., Any]) -> Callable[[Method], Method]:
    """Give a method that only adds to one of Darts' that one's signature and documentation."""
    return cast(Callable[[Method], Method], wraps(method))


def refuse_no_series(**given: object) -> None:
    """Refuse sequences of series that hold none; None, and single series, pass.

    Raises
    ------
    ValueError
        With the argument's name.
    """
    for name, series in given.items():
        if isinstance(series, Sequence) and not len(series):
            raise ValueError(f"`{name}` is empty: give one series, or a sequence of some.")


@contextmanager
def in_turn() -> Iterator[None]:
    """Forecast while no other thread of this process does."""
    with _turn:
        yield


class StampedTorchModel(MixedCovariatesTorchModel):
    """A Darts torch model without covariates of users', whose windows carry calendar stamps.

    Stamps travel as future covariates inside the windows; statistics are computed in float64 and
    the networks run in float32, whatever the data type of the series.
    """

    # Darts sets these; the type checker cannot see it.
    trainer: pl.Trainer | None
    trainer_params: dict[str, Any]
    _fit_called: bool

    @property
    def extreme_lags(self) -> tuple[int | None, ...]:
        """Bars that a forecast needs: context and horizon, and no covariates."""
        first, last = -self.min_input_chunk_length, self.output_chunk_length - 1
        return first, last, None, None, None, None, 0

    @property
    def supports_past_covariates(self) -> bool:
        """False: calendar stamps come from the series' own index."""
        return False

    @property
    def supports_future_covariates(self) -> bool:
        """False: calendar stamps come from the series' own index."""
        return False

    def _update_covariates_use(self) -> None:
        super()._update_covariates_use()
        self._uses_future_covariates = False
        self._expect_future_covariates = False

    def _verify_dtypes(self, ds_output: Any) -> None:
        """Accept any."""

    def _setup_trainer(
        self,
        trainer: pl.Trainer | None,
        model: KronosModule,
        verbose: bool | None = None,
        epochs: int = 0,
    ) -> pl.Trainer:
        if trainer is not None:
            refuse_half_precision(trainer.precision)
        return super()._setup_trainer(trainer, model, verbose, epochs)

    @staticmethod
    def _init_trainer(trainer_params: dict[str, Any], max_epochs: int | None = None) -> pl.Trainer:
        plugins = with_checkpoint_io(trainer_params.get("plugins"))
        with saying_what_is_refused("pl_trainer_kwargs", trainer_params):
            return MixedCovariatesTorchModel._init_trainer(
                trainer_params={**trainer_params, "plugins": plugins}, max_epochs=max_epochs
            )

    def _setup_for_predict(self, *args: Any, **kwargs: Any) -> Any:
        # A forecast that was spread over devices would come back in parts.
        given = self.trainer_params
        devices = given.get("devices")
        one = [devices[0]] if isinstance(devices, (list, tuple)) and devices else 1
        self.trainer_params = {**given, "devices": one, "num_nodes": 1, "strategy": "auto"}
        try:
            return super()._setup_for_predict(*args, **kwargs)
        finally:
            self.trainer_params = given

    @_documented_as(MixedCovariatesTorchModel.predict)
    def predict(self, n: int, series: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Forecast as Darts does; the threads of a process take turns."""
        refuse_no_series(series=series)
        with in_turn():
            return super().predict(n, series, *args, **kwargs)

    @_documented_as(MixedCovariatesTorchModel.historical_forecasts)
    def historical_forecasts(self, series: Any, *args: Any, **kwargs: Any) -> Any:
        """Forecast as Darts does."""
        refuse_no_series(series=series)
        return super().historical_forecasts(series, *args, **kwargs)

    def predict_from_dataset(self, *args: Any, **kwargs: Any) -> Any:
        """Forecast as Darts does; `predict` and backtests come here, too.

        The threads of a process take turns.

        Raises
        ------
        KeyboardInterrupt
            After Ctrl-C. Lightning itself would exit from Python.
        """
        with in_turn(), interruptible():
            return super().predict_from_dataset(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """What pickle keeps: the networks too, which `save` writes to a file of their own."""
        state: dict[str, Any] = super().__getstate__()
        if self.model is not None and not _SAVING.get():
            state["_networks"] = dict(self.model.hparams), packed(self.model.state_dict())
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read what pickle kept."""
        networks = state.pop("_networks", None)
        super().__setstate__(state)
        if networks is not None:
            params, written = networks
            weights = unpacked(written)
            self.model = KronosModule(**params).to(weights["tokenizer.head.weight"].dtype)
            self.model.load_state_dict(weights)

    def _optimized_historical_forecasts(
        self, series: Sequence[TimeSeries], *args: Any, last_points_only: bool = True, **kwargs: Any
    ) -> Any:
        """Backtest as Darts does; of forecasts whose last bar is asked for, keep no other."""
        assert self.model is not None
        with in_turn():
            self.model.last_bar_only = last_points_only
            try:
                return super()._optimized_historical_forecasts(
                    series, *args, last_points_only=last_points_only, **kwargs
                )
            finally:
                self.model.last_bar_only = False

    def save(self, path: str | None = None, clean: bool = False) -> None:
        """Save the model to `path` and its weights to ``path + ".ckpt"``; see Darts' ``save``.

        Files that are there are replaced once the new ones are written.
        """
        if self.model is not None and getattr(self, "trainer", None) is None:
            # Darts writes weights through a trainer; a model that was only loaded has none yet, and
            # its own may ask for devices that are not here.
            here = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"}
            trainer = self._init_trainer(
                {**self.trainer_params, **here, "precision": None, "enable_progress_bar": False}
            )
            trainer.strategy.connect(self.model)
            self.trainer = trainer
        path = self._default_save_path() + ".pt" if path is None else os.fspath(path)
        token = _SAVING.set(True)
        try:
            with replacing(path) as written:
                super().save(written, clean=clean)
            if self.model is None:
                # Of another model that was saved there, as whose they would be loaded.
                with suppress(FileNotFoundError):
                    os.remove(path + ".ckpt")
        finally:
            _SAVING.reset(token)

    def _create_save_dirs(self) -> None:
        make_folder(os.path.join(self.work_dir, self.model_name), "work_dir")

    def to_onnx(self, path: str | None = None, **kwargs: Any) -> None:
        """Refused: a forecast is a loop that draws tokens, no single pass through a network.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError(
            "`to_onnx` is not supported by KronosModel: a forecast draws tokens in a loop, which "
            "is no graph. Use `save`."
        )
