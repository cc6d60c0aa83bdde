"""KronosModel: Kronos as a Darts forecasting model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from darts import TimeSeries
from darts.logging import get_logger
from darts.typing import TimeSeriesLike
from darts.utils.data import (
    TorchInferenceDataset,
    TorchTrainingDataset,
)
from darts.utils.data.torch_datasets.utils import TorchTrainingSample
from darts.utils.likelihood_models.torch import QuantileRegression
from darts.utils.serialization import add_safe_globals
from darts.utils.ts_utils import series2seq

from darts_kronos.adjustable_model import AdjustableTorchModel
from darts_kronos.calibration import calibrate
from darts_kronos.darts_base import refuse_no_series
from darts_kronos.datasets import (
    KronosInferenceDataset,
    KronosTrainingDataset,
    WindowRules,
    learn_series,
    sequential_inference_dataset,
    sequential_training_dataset,
    warn_of_small_values,
)
from darts_kronos.module import KronosModule
from darts_kronos.nn.config import as_dict
from darts_kronos.parameters import (
    SAMPLING,
    TRAINING_ONLY,
    check_parameters,
    check_sampling,
    context_bounds,
    networks,
    plain,
    predictor_epochs,
    with_defaults,
)
from darts_kronos.training import explain_log

logger = get_logger(__name__)


class KronosModel(AdjustableTorchModel):
    """Kronos: candles as a language (arXiv 2508.02739).

    ``fit`` trains in two stages. A tokenizer, a causal autoencoder with binary spherical
    quantization, learns to write each bar as a coarse and a fine token. A decoder-only transformer
    then learns to write the next bar's tokens. A forecast is written token by token and turned
    back into bars; each sample is one joint path of all components over the whole horizon. Samples
    of one forecast are stratified: each of them is drawn from the model's distribution, and
    together they are spread over it more evenly than if they knew nothing of each other, so that
    means and quantiles of a hundred change less from draw to draw.

    Components are matched by name: open, high, low, close, volume and amount, in any order and
    case, any subset of them. Other components and univariate series work too. Calendar stamps
    come by themselves, for the future too, from a DatetimeIndex or from the trading calendar of
    series that ``darts_kronos.candles`` read. Covariates are not supported.

    Parameters
    ----------
    input_chunk_length
        Bars of context that a forecast starts from; ``(least, most)`` lets a series that is
        shorter than `most` be trained on and forecast from too.
    output_chunk_length
        Bars of horizon in a training window. A forecast may have more: all its bars are written
        in one go.
    output_chunk_shift
        Must be 0: paths start with the bar after the context.
    size
        Name of the networks' size: "nano" (for CPUs and small data), or the published "mini",
        "small", "base", "large". None is "nano".
    max_context
        Bars that the predictor sees at most; None: `input_chunk_length` + `output_chunk_length`.
        A longer forecast slides its window, as `sliding` says.
    representation
        How the tokenizer sees bars. "returns": log returns over the previous close in units of
        the context's volatility, volume and amount as logarithms. "window": each component less
        the context's mean, over its standard deviation, as released. None: "returns" if open,
        high, low and close are among the components and positive, else "window".
    d_model, n_heads, n_layers, ff_dim
        Width, attention heads, number of blocks and feed-forward width of the predictor.
        None, here and for the networks' other parameters: the value of `size`.
    ffn_dropout, attn_dropout, resid_dropout, token_dropout
        The predictor's dropout after feed-forward layers, on attention weights, after attention,
        and on embedded bars.
    s1_bits, s2_bits
        Bits of the coarse and of the fine token.
    tokenizer_d_model, tokenizer_n_heads, tokenizer_n_layers, tokenizer_ff_dim
        Shape of the tokenizer; `tokenizer_n_layers` blocks in its encoder and in its decoder.
    beta, gamma0, gamma, zeta
        Weights of the tokenizer's VQ loss: commitment, entropy of single codes, entropy of the
        codebook, both entropies together.
    clip
        Bound on the absolute normalised values that the networks get.
    mirror, price_jitter, volume_jitter, volume_dropout, date_shift
        How training windows are varied, so that the networks do not learn the training set by
        heart: probability that prices are turned upside down (in "returns" each bar by itself, in
        "window" whole windows), so that no drift is learned; standard deviations of a window's
        logarithmic factor on prices and of noise on each bar's volume, both in normalised units;
        probability that a window's volume and amount are hidden, so that the model also works
        without them; probability that its days and months are shifted, so that no date tells what
        came next. 0 leaves that out.
    n_epochs_tokenizer
        Epochs of the tokenizer stage. `n_epochs`, of Darts, are those of the predictor stage.
        With weights to start from, 0 leaves a network as it is.
        If not given, a stage takes as many as make enough steps: 4 epochs and 500 steps of the
        tokenizer, 2 and 300 of the predictor (from weights 2 and 150), at most 50 epochs of a
        small set.
    tokenizer_batch_size
        Windows in a batch of the tokenizer stage: it gains from many small steps.
    tokenizer_optimizer_kwargs
        Values for the tokenizer stage's AdamW that replace the defaults.
    tokenizer_trainer_kwargs
        Parameters of the tokenizer stage's Lightning trainer. It takes `pl_trainer_kwargs` too,
        but for callbacks, loggers and limits on epochs, steps and time.
    temperature
        Divides the logits of both tokens; 1 keeps the learned distribution.
    top_k, top_p
        Draw from the `top_k` most probable tokens only, then from the most probable of these that
        reach `top_p` together. None keeps all. `top_k=1` is greedy.
    point_forecast
        What ``num_samples=1`` returns: "mean" or "median" over `num_point_samples` paths, or one
        "sample" path.
    num_point_samples
        Paths that a point forecast, or quantiles, are made of.
    valid_candles
        Whether every path is made of valid candles: high the highest and low the lowest price,
        prices above 0, volume and amount at least 0.
    anchor
        Whether the prices of "window" paths are shifted so that they start from the last close
        and not from its reconstruction. Paths of "returns" always start there.
    antithetic
        Whether paths come in pairs: half of them are drawn, which takes half as long, and each of
        these has its opposite, turned upside down about the last close. Then no direction is
        forecast: the median is the last close. Volatility and intervals stay the model's. That
        suits models of "returns", which learn no drift (`mirror`), so that what they still tell
        of a direction is chance; :meth:`calibrate` tries it.
    sliding
        How a forecast goes on past `max_context`. "exact" reads the window anew for every bar, as
        the original does. "cached" drops the oldest bars from what was kept of the window, which
        is many times faster; what was kept of the others still knows of the dropped ones.
    likelihood
        Darts' ``QuantileRegression``, or None. With it ``predict_likelihood_parameters=True`` gives
        its quantiles, those of `num_point_samples` paths; it changes nothing else.
    hub_model_name, hub_model_revision
        Weights to start from: a model on the hub, such as "NeoQuasar/Kronos-small", and its
        branch, tag or commit. Without `enable_finetuning` (True, or Darts' patterns of names,
        such as ``{"freeze": ["tokenizer.*"]}``) ``fit`` trains nothing. What the weights have
        decides sizes, bits, representation and, unless given, `max_context`.
    local_dir
        A folder with the weights: one that :meth:`save_pretrained` wrote, or a predictor's. With
        `hub_model_name`, what is missing there is downloaded to it.
    hub_tokenizer_name, hub_tokenizer_revision, tokenizer_local_dir
        The same for the tokenizer, where it is not the one that belongs to the predictor.
    lora
        Parameters of peft's ``LoraConfig``, such as ``{"r": 8}``: fine-tuning learns low-rank
        updates of the predictor and leaves its own weights. Needs the extra `lora`.
    **kwargs
        See Darts' ``TorchForecastingModel`` and ``PLForecastingModule``: `n_epochs`, `batch_size`,
        `optimizer_cls`, `optimizer_kwargs`, `lr_scheduler_cls`, `lr_scheduler_kwargs`,
        `pl_trainer_kwargs`, `enable_finetuning`, `random_state`, `model_name`, `work_dir`,
        `save_checkpoints`, `log_tensorboard`, ... The default optimiser is AdamW under a one-cycle
        schedule, with gradients clipped at 3 (tokenizer stage: 2). Window statistics are computed
        in float64 and the networks run in float32, whatever the series' data type.

    Raises
    ------
    ValueError
        If a parameter is unknown, out of range, or has no meaning for this model.

    References
    ----------
    .. [1] Y. Shi et al. "Kronos: A Foundation Model for the Language of Financial Markets",
           https://arxiv.org/abs/2508.02739

    Examples
    --------
    >>> from darts_kronos import KronosModel
    >>> model = KronosModel(input_chunk_length=96, output_chunk_length=24, random_state=0)
    >>> model.fit(train, val_series=val)
    >>> paths = model.predict(24, num_samples=200)
    """

    def __init__(
        self,
        input_chunk_length: int | tuple[int, int],
        output_chunk_length: int,
        output_chunk_shift: int = 0,
        size: str | None = None,
        max_context: int | None = None,
        representation: str | None = None,
        d_model: int | None = None,
        n_heads: int | None = None,
        n_layers: int | None = None,
        ff_dim: int | None = None,
        ffn_dropout: float | None = None,
        attn_dropout: float | None = None,
        resid_dropout: float | None = None,
        token_dropout: float | None = None,
        s1_bits: int | None = None,
        s2_bits: int | None = None,
        tokenizer_d_model: int | None = None,
        tokenizer_n_heads: int | None = None,
        tokenizer_n_layers: int | None = None,
        tokenizer_ff_dim: int | None = None,
        beta: float | None = None,
        gamma0: float | None = None,
        gamma: float | None = None,
        zeta: float | None = None,
        clip: float = 5.0,
        mirror: float = 0.5,
        price_jitter: float = 0.2,
        volume_jitter: float = 0.3,
        volume_dropout: float = 0.05,
        date_shift: float = 1.0,
        n_epochs_tokenizer: int | None = None,
        tokenizer_batch_size: int = 16,
        tokenizer_optimizer_kwargs: dict[str, Any] | None = None,
        tokenizer_trainer_kwargs: dict[str, Any] | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        point_forecast: str = "mean",
        num_point_samples: int = 100,
        valid_candles: bool = True,
        anchor: bool = False,
        antithetic: bool = False,
        sliding: str = "exact",
        likelihood: QuantileRegression | None = None,
        hub_model_name: str | None = None,
        hub_model_revision: str | None = None,
        local_dir: str | PathLike[str] | None = None,
        hub_tokenizer_name: str | None = None,
        hub_tokenizer_revision: str | None = None,
        tokenizer_local_dir: str | PathLike[str] | None = None,
        lora: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        # Darts keeps what it finds here.
        self.model_params.update({k: plain(v) for k, v in self.model_params.items()})
        check_parameters(self.model_params)
        self._pretrained = self._find_pretrained()
        params = with_defaults(self.model_params)
        self._context_bounds = context_bounds(params["input_chunk_length"])
        at_most = {**params, "input_chunk_length": self._context_bounds[1]}
        super().__init__(**self._extract_torch_model_params(**at_most))
        self.pl_module_params = self._extract_pl_module_params(**at_most)

        self.tokenizer_optimizer_kwargs = params["tokenizer_optimizer_kwargs"]
        self.tokenizer_trainer_kwargs = params["tokenizer_trainer_kwargs"]
        # Darts sets these; the type checker cannot see it.
        self.train_sample: TorchTrainingSample
        self._know_nothing()

    def _know_nothing(self) -> None:
        # Told by the first series that the model is trained on:
        self._components: list[str] | None = None
        self._representation: str | None = self._wanted_representation
        self._uses_stamps: bool | None = None
        self._history = []
        self._tokenizer_ckpt_path = self.load_ckpt_path = None
        self._planned_epochs, self._epochs_done = None, 0
        self._fit_called = False

    def reset_model(self) -> None:
        """Forget all that was learned and logged, and remove what was saved of it."""
        super().reset_model()
        self._know_nothing()

    # --- training -----------------------------------------------------------------------------

    def fit(
        self,
        series: TimeSeriesLike,
        past_covariates: TimeSeriesLike | None = None,
        future_covariates: TimeSeriesLike | None = None,
        val_series: TimeSeriesLike | None = None,
        val_past_covariates: TimeSeriesLike | None = None,
        val_future_covariates: TimeSeriesLike | None = None,
        trainer: pl.Trainer | None = None,
        verbose: bool | None = None,
        epochs: int = 0,
        max_samples_per_ts: int | None = None,
        dataloader_kwargs: dict[str, Any] | None = None,
        sample_weight: TimeSeriesLike | str | None = None,
        val_sample_weight: TimeSeriesLike | str | None = None,
        stride: int = 1,
        load_best: bool = False,
        retrain_tokenizer: bool = False,
    ) -> KronosModel:
        """Train the tokenizer, then the predictor, on one or several series.

        With `val_series`, the tokenizer of the epoch with the least validation loss goes into the
        second stage. A second call goes on with the predictor, under a new learning-rate cycle,
        and leaves the tokenizer as it is. Where the user gave no learning rate and no epochs, it
        is gentle: a third of the rate, and half of the steps.

        Parameters
        ----------
        series
            One or several series with the same components, each of at least
            ``input_chunk_length + output_chunk_length`` bars.
        val_series
            One or several series to validate on.
        trainer
            A Lightning trainer for the predictor stage.
        epochs
            If above 0, epochs of the predictor stage for this call.
        retrain_tokenizer
            Whether a fitted tokenizer is trained again before the predictor, which then has other
            tokens to learn: its rate and its steps are those of a first fit.
        past_covariates, future_covariates, val_past_covariates, val_future_covariates
            Must be None: covariates are not supported.
        sample_weight, val_sample_weight
            What bars count in the losses of both stages; see Darts. A token stands for a whole
            bar: weights of several components are averaged. Bars of a window's context count as
            its horizon does in the mean; those of weight 0 are left out.
        verbose, max_samples_per_ts, dataloader_kwargs, stride, load_best
            See Darts' ``TorchForecastingModel.fit``.

        Returns
        -------
        KronosModel
            This model, fitted.

        Raises
        ------
        ValueError
            Before anything is trained, if the series cannot be trained on; the message says why.
        """
        refuse_no_series(series=series, val_series=val_series)
        self._retrain_tokenizer = retrain_tokenizer
        try:
            super().fit(
                series,
                past_covariates=past_covariates,
                future_covariates=future_covariates,
                val_series=val_series,
                val_past_covariates=val_past_covariates,
                val_future_covariates=val_future_covariates,
                trainer=trainer,
                verbose=verbose,
                epochs=epochs,
                max_samples_per_ts=max_samples_per_ts,
                dataloader_kwargs=dataloader_kwargs,
                sample_weight=sample_weight,
                val_sample_weight=val_sample_weight,
                stride=stride,
                load_best=load_best,
            )
        finally:
            self._retrain_tokenizer = False
        return self

    def fit_from_dataset(
        self,
        train_dataset: TorchTrainingDataset,
        val_dataset: TorchTrainingDataset | None = None,
        trainer: pl.Trainer | None = None,
        verbose: bool | None = None,
        epochs: int = 0,
        dataloader_kwargs: dict[str, Any] | None = None,
        load_best: bool = False,
    ) -> KronosModel:
        """Train on the windows of a dataset; see :meth:`fit` and Darts' method of this name.

        Parameters
        ----------
        train_dataset, val_dataset
            Darts' ``SequentialTorchTrainingDataset`` with this model's chunk lengths. Component
            names and calendar stamps are taken from its series.
        trainer, verbose, epochs, dataloader_kwargs, load_best
            See :meth:`fit`.

        Raises
        ------
        ValueError
            If a dataset is of another kind, or holds covariates.
        """
        windows = self._own_train_dataset(train_dataset, tells=True)
        if epochs <= 0:
            trained = self._goes_on_trained and not self._retrain_tokenizer
            epochs = predictor_epochs(self._model_params, len(windows), self.batch_size, trained)
            if epochs > 0 and self.load_ckpt_path is not None:
                epochs = self._planned_epochs or epochs
        with self._keeping_its_folder():
            return super().fit_from_dataset(
                windows,
                None if val_dataset is None else self._own_train_dataset(val_dataset, tells=False),
                trainer=trainer,
                verbose=verbose,
                epochs=epochs,
                # Darts takes out of it what it has read.
                dataloader_kwargs=dict(dataloader_kwargs) if dataloader_kwargs else None,
                load_best=load_best,
            )

    def _own_train_dataset(
        self, dataset: TorchTrainingDataset, tells: bool
    ) -> KronosTrainingDataset:
        """The same windows as this model has them; the training set `tells` what bars are."""
        if isinstance(dataset, KronosTrainingDataset):
            return dataset
        checked = sequential_training_dataset(
            dataset, self._context_bounds, self.output_chunk_length
        )
        if tells:
            self._learn_series(checked.series)
        return self._build_train_dataset(
            series=checked.series,
            past_covariates=None,
            future_covariates=None,
            sample_weight=checked.sample_weight,
            max_samples_per_ts=checked.max_samples_per_ts,
            stride=checked.stride,
        )

    def _setup_for_fit_from_dataset(self, series: TimeSeriesLike, *args: Any, **kwargs: Any) -> Any:
        self._learn_series(series2seq(series))
        return super()._setup_for_fit_from_dataset(series, *args, **kwargs)

    def _learn_series(self, series: Sequence[TimeSeries]) -> None:
        """Let the first training series tell components, representation and use of stamps."""
        if self.model is None:
            self._components, self._representation, self._uses_stamps = learn_series(
                series, self._wanted_representation, self.min_input_chunk_length
            )
            check_sampling(self.sampling, self._components)
            self._fit_to_pretrained(series)
            if self._representation == "window":
                warn_of_small_values(series, self._context_bounds[1])

    @property
    def _window_rules(self) -> WindowRules:
        assert self._components is not None
        assert self._uses_stamps is not None
        return WindowRules(
            components=self._components,
            input_chunk_length=self._context_bounds,
            output_chunk_length=self.output_chunk_length,
            with_stamps=self._uses_stamps,
            positive_prices=self._representation == "returns",
        )

    def _build_train_dataset(
        self,
        series: Sequence[TimeSeries],
        past_covariates: Sequence[TimeSeries] | None,
        future_covariates: Sequence[TimeSeries] | None,
        sample_weight: Sequence[TimeSeries] | str | None,
        max_samples_per_ts: int | None,
        stride: int = 1,
    ) -> KronosTrainingDataset:
        rules = self._window_rules
        if not self._requires_training:
            # Nothing is learned from a horizon, so none is needed.
            rules = replace(rules, output_chunk_length=0)
        return KronosTrainingDataset(
            series,
            rules,
            stride=stride,
            max_samples_per_ts=max_samples_per_ts,
            sample_weight=sample_weight,
        )

    def _init_model(self, trainer: pl.Trainer | None = None) -> KronosModule:
        # Darts takes the networks' precision from the series' data type; ours run in float32.
        arrays = self.train_sample.feature_arrays()
        self.train_sample = TorchTrainingSample(
            **{k: None if v is None else v.astype(np.float32) for k, v in arrays.items()}
        )
        return super()._init_model(trainer)

    def _create_model(self, train_sample: TorchTrainingSample) -> KronosModule:
        if self._components is None or self._representation is None:
            raise ValueError(
                "The components that the model was trained on are not known: load weights with "
                "`skip_checks=False`."
            )
        if not self._uses_stamps and self._wants_stamps:
            warnings.warn(
                "The series have no timestamps (a RangeIndex without a trading calendar, such as "
                "darts_kronos.candles gives): the model is trained without calendar stamps.",
                UserWarning,
                stacklevel=2,
            )
        if self._pretrained is None:
            size = networks(self._model_params, n_components=len(self._components))
            chunks = self.input_chunk_length + self.output_chunk_length
            configured = {
                "tokenizer_config": as_dict(size.tokenizer),
                "predictor_config": as_dict(size.predictor),
                "clip": self._model_params["clip"],
                "max_context": self._model_params["max_context"] or chunks,
            }
        else:
            configured = self._pretrained.module_params(self._model_params)
        module = KronosModule(
            components=self._components,
            representation=self._representation,
            variable_context=self.min_input_chunk_length < self.input_chunk_length,
            augmentation=self.augmentation,
            sampling=self.sampling,
            **configured,
            **(self.pl_module_params or {}),
        )
        self._start_from_pretrained(module)
        return module

    # --- forecasting --------------------------------------------------------------------------

    calibrate = calibrate

    def _build_inference_dataset(
        self,
        n: int,
        series: Sequence[TimeSeries],
        past_covariates: Sequence[TimeSeries] | None,
        future_covariates: Sequence[TimeSeries] | None,
        stride: int = 0,
        bounds: np.ndarray | None = None,
    ) -> KronosInferenceDataset:
        # Backtests come here without `predict`, where Darts itself would refuse them.
        if any(one is not None for one in (past_covariates, future_covariates)):
            raise ValueError(
                "KronosModel takes no covariates: calendar stamps come from the series' own index."
            )
        return KronosInferenceDataset(series, self._window_rules, n=n, stride=stride, bounds=bounds)

    def _setup_for_predict(self, n: int, dataset: TorchInferenceDataset, **kwargs: Any) -> Any:
        if kwargs.get("mc_dropout"):
            raise ValueError(
                "`mc_dropout` is not supported by KronosModel: ask for sample paths with "
                "`num_samples`."
            )
        if not isinstance(dataset, KronosInferenceDataset):
            foreign = sequential_inference_dataset(dataset)
            dataset = self._build_inference_dataset(
                n, foreign.series, None, None, foreign.stride, foreign.bounds
            )
        self.model.set_sampling(**self.sampling)
        return super()._setup_for_predict(n=n, dataset=dataset, **kwargs)

    # --- what is known, saving and loading ----------------------------------------------------

    @property
    def min_input_chunk_length(self) -> int:
        """Bars of context that a forecast needs at least."""
        return self._context_bounds[0]

    @property
    def representation(self) -> str | None:
        """How the tokenizer sees bars; None before the first fit, if not given."""
        return self._representation

    @property
    def training_history(self) -> pd.DataFrame:
        """What both stages logged: a row for each epoch, its `stage` and `epoch` (from 1) first.

        Saved with the model; :func:`darts_kronos.plotting.plot_training` draws it.
        """
        return pd.DataFrame(self._history)

    @staticmethod
    def explain_log() -> str:
        """What each value in the training log means, as text to print."""
        return explain_log()

    @property
    def _ckpt_skipped_params(self) -> list[str]:
        return super()._ckpt_skipped_params + list(TRAINING_ONLY + SAMPLING)

    def _check_ckpt_parameters(self, tfm_save: KronosModel) -> None:
        super()._check_ckpt_parameters(tfm_save)
        self._components = tfm_save._components
        self._representation = tfm_save._representation
        self._uses_stamps = tfm_save._uses_stamps


# Darts loads no classes from outside its own package unless they are registered.
add_safe_globals([KronosModel, KronosModule])
