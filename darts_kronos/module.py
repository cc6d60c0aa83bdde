"""The Lightning module around both networks: stage two's training, and the forecasts.

Shapes by letter: B windows, S sample paths, T bars of the context, n bars of the horizon,
C components that the tokenizer sees, G of these that series have, V entries of a codebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import torch
from darts.models.forecasting.pl_forecasting_module import PLForecastingModule, io_processor
from darts.utils.data.torch_datasets.utils import (
    PLModuleInput,
    PLModuleOutput,
    TorchInferenceBatch,
    TorchTrainingBatch,
)
from torch import Tensor
from torchmetrics import MetricCollection

from darts_kronos.augmentation import Augmentation
from darts_kronos.components import positions
from darts_kronos.finetuning import add_lora
from darts_kronos.generation import Sampling, check_sliding, generate
from darts_kronos.nn.config import PredictorConfig, TokenizerConfig
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.tokenizer import KronosTokenizer
from darts_kronos.representation import representation_named
from darts_kronos.token_cache import TokenCache
from darts_kronos.trainers import move_states
from darts_kronos.training import OneCycle, StageLog
from darts_kronos.windows import TrainingWindows, missing_bars, stamps_of, training_windows

POINT_FORECASTS = ("mean", "median", "sample")


class KronosModule(PLForecastingModule):
    """Both networks as Darts' Lightning module: stage two's training, and the forecasts.

    Parameters
    ----------
    tokenizer_config, predictor_config
        Values of the two networks' configurations, as plain data.
    components
        Names of the series' components, in the networks' order.
    representation
        Name of how the tokenizer sees bars, "window" or "returns".
    clip
        Bound on the absolute normalised values.
    max_context
        Bars that the predictor sees at most.
    variable_context
        Whether contexts may be shorter than `input_chunk_length`, and begin with bars of NaN.
    augmentation
        How training windows are varied: the values of an
        :class:`~darts_kronos.augmentation.Augmentation`.
    sampling
        What :meth:`set_sampling` takes.
    network_components
        Names of the C components that the tokenizer sees; None: those of the series.
    lora
        Of the predictor; see :func:`~darts_kronos.finetuning.add_lora`. None: it has none.
    **kwargs
        See Darts' ``PLForecastingModule``.
    """

    def __init__(
        self,
        tokenizer_config: dict[str, Any],
        predictor_config: dict[str, Any],
        components: list[str],
        representation: str,
        clip: float,
        max_context: int,
        variable_context: bool,
        augmentation: dict[str, float],
        sampling: dict[str, Any],
        network_components: list[str] | None = None,
        lora: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.tokenizer = KronosTokenizer(TokenizerConfig(**tokenizer_config))
        self.predictor = KronosPredictor(PredictorConfig(**predictor_config))
        if lora is not None:
            add_lora(self.predictor, lora)
        self.representation = representation_named(
            representation, network_components or components, clip, given=components
        )
        self.max_context = max_context
        self.variable_context = variable_context
        self.augmentation = Augmentation(**augmentation)
        self.stage_log = StageLog(self.predictor.config.s1_bits, self.predictor.config.s2_bits)
        self.one_cycle = OneCycle()
        self.tokenizer_fitted: Tensor
        self.register_buffer("tokenizer_fitted", torch.tensor(False))
        # While the module is trained.
        self._token_cache: TokenCache | None = None
        # Whether `predict_step` gives the last bars of its forecasts alone.
        self.last_bar_only = False
        # Where the run lies whose checkpoint it was loaded from.
        self.run_folder: str | None = None
        self.tokenizer.eval()
        self.set_sampling(**sampling)

    def set_sampling(
        self,
        *,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        point_forecast: str,
        num_point_samples: int,
        valid_candles: bool,
        anchor: bool,
        antithetic: bool,
        sliding: str,
    ) -> None:
        """Say how forecasts are drawn; see :class:`~darts_kronos.KronosModel`.

        Raises
        ------
        ValueError
            If a value is out of range.
        """
        check_point_forecast(point_forecast, num_point_samples)
        check_sliding(sliding)
        self.sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        self.point_forecast = point_forecast
        self.num_point_samples = num_point_samples
        self.valid_candles = valid_candles
        self.anchor = anchor
        self.antithetic = antithetic
        self.sliding = sliding

    def train(self, mode: bool = True) -> KronosModule:
        """Set the mode of the predictor; the tokenizer is fixed here, so it always evaluates."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def training_step(self, train_batch: TorchTrainingBatch, batch_idx: int) -> Tensor:
        """The loss of a training batch."""
        return self._step(train_batch, "train", self.augmentation)

    def validation_step(self, val_batch: TorchTrainingBatch, batch_idx: int) -> Tensor:
        """The loss of a validation batch."""
        return self._step(val_batch, "val", Augmentation())

    def on_fit_start(self) -> None:
        """Keep the tokens of windows from now on."""
        self._token_cache = TokenCache()

    def on_fit_end(self) -> None:
        """Let go of them, and of what Darts changed for sample weights."""
        super().on_fit_end()
        self.forget_tokens()

    def forget_tokens(self) -> None:
        """Let go of the windows' tokens that were kept for further epochs."""
        self._token_cache = None

    def windows(self, batch: TorchTrainingBatch, augmentation: Augmentation) -> TrainingWindows:
        """A training batch as the networks of both stages see it."""
        return training_windows(
            batch,
            self.representation,
            augmentation,
            self.variable_context,
            self.tokenizer.head.weight.dtype,
        )

    def _step(self, batch: TorchTrainingBatch, role: str, augmentation: Augmentation) -> Tensor:
        windows = self.windows(batch, augmentation)
        with torch.no_grad():
            # Windows that are varied are never the same again.
            if self._token_cache is not None and augmentation.leaves_bars:
                s1, s2 = self._token_cache.encode(self.tokenizer, windows.bars)
            else:
                s1, s2 = self.tokenizer.encode(windows.bars)
        # As in generation, the tokenizer sees the whole window, the predictor `max_context` bars.
        (s1, s2), seen = windows.last(self.max_context, s1, s2)
        parts = self.predictor.loss(s1, s2, seen.stamps, seen.weights)
        used = seen.counted(s1), seen.counted(s2)
        self.stage_log.write(self, role, parts._asdict(), *used, seen.n_counted(1))
        metrics = self.train_metrics if role == "train" else self.val_metrics
        if len(metrics):
            self._update_with_next_bars(batch, metrics)
        return parts.loss

    def _update_with_next_bars(self, batch: TorchTrainingBatch, metrics: MetricCollection) -> None:
        """Compare the most probable bars after the contexts with those that came."""
        found = self._paths(batch.past_target, stamps_of(batch), 1, 1, Sampling(top_k=1))[0, :, 0]
        metrics.update(found.to(batch.future_target.dtype), batch.future_target[:, 0].contiguous())

    def configure_optimizers(self) -> Any:
        """Darts' optimizer; a one-cycle schedule unless the user gave one."""
        configured = super().configure_optimizers()
        if self.lr_scheduler_cls:
            return configured
        return self.one_cycle.configure(configured, self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what belongs to Darts, and how many epochs the run is to have."""
        super().on_save_checkpoint(checkpoint)
        # Weights may be written without a run that could go on.
        if self._trainer is not None:
            checkpoint["planned_epochs"] = self._trainer.max_epochs

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read what belongs to Darts and to the schedule."""
        super().on_load_checkpoint(checkpoint)
        # Weights may be read without a run to go on with.
        if self._trainer is not None:
            self.one_cycle.resume(checkpoint)
            if self.run_folder is not None:
                move_states(checkpoint.get("callbacks", {}), self.run_folder)

    @property
    def supports_probabilistic_prediction(self) -> bool:
        """True: forecasts are joint sample paths."""
        return True

    @io_processor
    def forward(self, x_in: PLModuleInput) -> PLModuleOutput:
        """One sample path of ``output_chunk_length`` bars, (B, n, G, 1), in the input's units."""
        paths = self._paths(x_in.past_target, stamps_of(x_in), self.output_chunk_length or 1, 1)
        return PLModuleOutput(prediction=paths[0].unsqueeze(-1))

    def predict_step(
        self, batch: TorchInferenceBatch, batch_idx: int, dataloader_idx: int | None = None
    ) -> tuple[Tensor, Sequence[dict[str, Any] | None], Sequence[Any]]:
        """Forecasts of a batch of windows.

        Returns
        -------
        tuple
            Paths or, for one sample, point forecasts, (S, B, n, G), in the units, data type and
            component order of each series, or quantiles of each component, (1, B, n, G * Q); the
            series' schemas; the times of the first bars.
        """
        schemas, times = batch.series_schema, batch.pred_time
        assert schemas is not None and times is not None and self.pred_n is not None
        components = self.representation.given
        order = torch.tensor(
            [positions(list(schema["columns"]), components) for schema in schemas],
            device=batch.past_target.device,
        )
        context = batch.past_target.gather(-1, order.unsqueeze(1).expand_as(batch.past_target))
        n, num_samples = self.pred_n, self.pred_num_samples or 1
        as_quantiles = bool(self.predict_likelihood_parameters)
        point = as_quantiles or (num_samples == 1 and self.point_forecast != "sample")
        paths = self._paths(
            context, stamps_of(batch), n, self.num_point_samples if point else num_samples
        )
        back = order.argsort(dim=-1)[None, :, None].expand_as(paths)
        paths = paths.gather(-1, back)
        if as_quantiles:
            wanted = paths.new_tensor(self.likelihood.quantiles)
            paths = paths.quantile(wanted, dim=0).movedim(0, -1).flatten(-2).unsqueeze(0)
        elif point:
            mean = self.point_forecast == "mean"
            paths = (paths.mean(dim=0) if mean else paths.quantile(0.5, dim=0)).unsqueeze(0)
        if self.last_bar_only:
            # A copy, so that the other bars are let go of.
            paths = paths[:, :, -1:].clone()
        return paths.to(batch.past_target.dtype), schemas, times

    def _paths(
        self,
        context: Tensor,
        stamps: Tensor | None,
        n: int,
        num_samples: int,
        sampling: Sampling | None = None,
    ) -> Tensor:
        """Sample paths, (S, B, n, G), float64, after contexts (B, T, G) in the networks' order."""
        missing = missing_bars(context) if self.variable_context else None
        if missing is not None and missing.any():
            # Contexts of one length at a time, so that each is read as if it were alone.
            paths = context.new_empty(
                (num_samples, len(context), n, context.shape[2]), dtype=torch.float64
            )
            for m in missing.unique().tolist():
                rows = missing == m
                known = None if stamps is None else stamps[rows, m:]
                paths[:, rows] = self._read_paths(
                    context[rows, m:], known, n, num_samples, sampling
                )
            return paths
        return self._read_paths(context, stamps, n, num_samples, sampling)

    def _read_paths(
        self,
        context: Tensor,
        stamps: Tensor | None,
        n: int,
        num_samples: int,
        sampling: Sampling | None,
    ) -> Tensor:
        """The same, of whole contexts."""
        T = context.shape[1]
        normalised, statistics = self.representation.encode(context, T)
        normalised = normalised.to(self.predictor.s1_head.weight.dtype)
        sampling = sampling or self.sampling
        # A greedy path is drawn from nothing, so it has no opposite.
        in_pairs = self.antithetic and not sampling.greedy
        paths = generate(
            self.tokenizer,
            self.predictor,
            normalised,
            None if stamps is None else stamps[:, : T + n],
            n=n,
            num_samples=ceil(num_samples / 2) if in_pairs else num_samples,
            max_context=self.max_context,
            sampling=sampling,
            sliding=self.sliding,
        )
        bars = self.representation.decode(paths, statistics)
        if self.anchor:
            # Prices are made in full precision, whatever the networks are under.
            with torch.inference_mode(), torch.autocast(context.device.type, enabled=False):
                last = self.tokenizer.decode(*self.tokenizer.encode(normalised))[:, -1]
            bars = self.representation.anchored(bars, context, last, statistics)
        if in_pairs:
            others = bars[: num_samples - len(bars)]
            bars = torch.cat((bars, self.representation.opposite(others, context)))
        return self.representation.valid(bars, context) if self.valid_candles else bars


def check_point_forecast(point_forecast: str, num_point_samples: int) -> None:
    """Check how a point forecast is made.

    Raises
    ------
    ValueError
        If `point_forecast` is unknown or `num_point_samples` is not an integer >= 1.
    """
    if point_forecast not in POINT_FORECASTS:
        raise ValueError(
            f"`point_forecast` must be one of {', '.join(map(repr, POINT_FORECASTS))}, "
            f"got {point_forecast!r}."
        )
    whole = isinstance(num_point_samples, int) and not isinstance(num_point_samples, bool)
    if not whole or num_point_samples < 1:
        raise ValueError(f"`num_point_samples` must be an integer >= 1, got {num_point_samples!r}.")
