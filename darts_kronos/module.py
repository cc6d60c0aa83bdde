"""The Lightning modules of the two stages.

Shapes by letter: B windows, S sample paths, T bars of the context, n bars of the horizon,
C components, V entries of a codebook.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from darts.models.forecasting.pl_forecasting_module import PLForecastingModule, io_processor
from darts.utils.data.torch_datasets.utils import (
    PLModuleInput,
    PLModuleOutput,
    TorchInferenceBatch,
    TorchTrainingBatch,
)
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics import Metric

from darts_kronos.components import positions
from darts_kronos.generation import Sampling, generate
from darts_kronos.nn.config import PredictorConfig, TokenizerConfig
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.tokenizer import KronosTokenizer
from darts_kronos.representation import Representation, representation_named

WARM_UP = 0.03
"""Share of a one-cycle schedule in which the learning rate rises, from a tenth of its peak."""

POINT_FORECASTS = ("mean", "median", "sample")

LOG_MEANING = {
    "loss": "what the stage minimises: tokenizer (recon_loss_s1 + recon_loss + vq_loss) / 2, "
    "predictor (s1_loss + s2_loss) / 2",
    "vq_loss": "tokenizer: distance of a bar's code from its corner, plus the uncertainty of single "
    "codes, minus the entropy of the codebook. It may be negative, and falls below 0 when "
    "many codes are in use: the entropy term rewards a used codebook",
    "recon_loss_s1": "tokenizer: mean squared error of bars rebuilt from the coarse token alone, in "
    "normalised units; lower is better",
    "recon_loss": "tokenizer: the same from both tokens; below recon_loss_s1 once the fine token "
    "carries something",
    "s1_loss": "predictor: cross entropy of the next bar's coarse token in nats; guessing costs "
    "s1_bits * 0.693; exp of it is the perplexity",
    "s2_loss": "predictor: the same for the fine token, given the true coarse one",
    "codebook_usage_s1": "share of the coarse codebook that occurred in the epoch; near 0 it has "
    "collapsed",
    "codebook_usage_s2": "the same for the fine codebook",
}
"""What each logged value means; the log's names have `train_` or `val_` before it."""


class CodebookUsage(Metric):
    """Share of a codebook's entries that occurred.

    Parameters
    ----------
    n_entries
        V, the entries of the codebook.
    """

    full_state_update = False

    def __init__(self, n_entries: int):
        super().__init__()
        self.seen: Tensor
        self.add_state("seen", torch.zeros(n_entries), dist_reduce_fx="max")

    def update(self, tokens: Tensor) -> None:
        """Note the tokens of any shape."""
        self.seen[tokens.flatten()] = 1.0

    def compute(self) -> Tensor:
        """The share, a scalar in [0, 1]."""
        return self.seen.mean()


def one_cycle(optimizer: torch.optim.Optimizer, trainer: pl.Trainer) -> Any:
    """`optimizer` as Lightning wants it, with a one-cycle schedule over the trainer's steps.

    The learning rate stays constant where the number of steps is not known.
    """
    steps = trainer.estimated_stepping_batches
    if steps == float("inf"):
        return optimizer
    schedule = OneCycleLR(
        optimizer,
        max_lr=[group["lr"] for group in optimizer.param_groups],
        # One step more than there are, so that the last one still moves the weights.
        total_steps=int(steps) + 1,
        pct_start=WARM_UP,
        div_factor=10.0,
        cycle_momentum=False,
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _StageLog(nn.Module):
    """Codebook usage of both tokens, in training and validation, and the logging of a stage."""

    def __init__(self, s1_bits: int, s2_bits: int):
        super().__init__()
        self.usage = nn.ModuleDict(
            {
                f"{role}_{token}": CodebookUsage(2**bits)
                for role in ("train", "val")
                for token, bits in (("s1", s1_bits), ("s2", s2_bits))
            }
        )

    def write(
        self,
        module: pl.LightningModule,
        role: str,
        losses: Mapping[str, Tensor],
        s1: Tensor,
        s2: Tensor,
    ) -> None:
        """Log means over an epoch's windows, and the codebooks' usage, from within a step."""
        kwargs: dict[str, Any] = {
            "prog_bar": True,
            "on_step": False,
            "on_epoch": True,
            "batch_size": len(s1),
        }
        named = {f"{role}_{name}": value.detach() for name, value in losses.items()}
        module.log_dict(named, sync_dist=True, **kwargs)
        for token, ids in (("s1", s1), ("s2", s2)):
            usage = self.usage[f"{role}_{token}"]
            usage.update(ids)
            module.log(f"{role}_codebook_usage_{token}", usage, **kwargs)


def _normalised(
    representation: Representation, batch: TorchTrainingBatch, volume_dropout: float
) -> Tensor:
    """A training batch as the tokenizer sees it, (B, T + n, C).

    With probability `volume_dropout`, a window's volume and amount are as if unknown: 0.
    """
    bars = torch.cat((batch.past_target, batch.future_target), dim=1)
    normalised, _ = representation.encode(bars, batch.past_target.shape[1])
    if volume_dropout > 0 and representation.volumes:
        dropped = torch.rand(len(bars), 1, 1, device=bars.device) < volume_dropout
        volumes = normalised[..., representation.volumes]
        normalised[..., representation.volumes] = volumes.masked_fill(dropped, 0.0)
    return normalised


class TokenizerStage(pl.LightningModule):
    """Stage one: trains a tokenizer on normalised windows.

    Parameters
    ----------
    tokenizer
        The tokenizer to train, in place.
    representation
        How it sees bars.
    volume_dropout
        Probability that a training window's volume and amount are zeroed.
    optimizer_kwargs
        Of AdamW.
    """

    def __init__(
        self,
        tokenizer: KronosTokenizer,
        representation: Representation,
        volume_dropout: float,
        optimizer_kwargs: dict[str, Any],
    ):
        super().__init__()
        self.tokenizer = tokenizer
        self.representation = representation
        self.volume_dropout = volume_dropout
        self.optimizer_kwargs = optimizer_kwargs
        self.stage_log = _StageLog(tokenizer.config.s1_bits, tokenizer.config.s2_bits)

    def _step(self, batch: TorchTrainingBatch, role: str, volume_dropout: float) -> Tensor:
        parts = self.tokenizer(_normalised(self.representation, batch, volume_dropout))
        losses = parts._asdict()
        s1, s2 = losses.pop("s1"), losses.pop("s2")
        self.stage_log.write(self, role, losses, s1, s2)
        return parts.loss

    def training_step(self, batch: TorchTrainingBatch, batch_idx: int) -> Tensor:
        """The loss of a training batch."""
        return self._step(batch, "train", self.volume_dropout)

    def validation_step(self, batch: TorchTrainingBatch, batch_idx: int) -> Tensor:
        """The loss of a validation batch."""
        return self._step(batch, "val", 0.0)

    def configure_optimizers(self) -> Any:
        """AdamW with a one-cycle schedule."""
        optimizer = torch.optim.AdamW(self.tokenizer.parameters(), **self.optimizer_kwargs)
        return one_cycle(optimizer, self.trainer)


class KeepBest(pl.Callback):
    """Keeps the weights of the epoch with the least `val_loss` in memory, and puts them back."""

    def __init__(self) -> None:
        self.best = float("inf")
        self.weights: dict[str, Tensor] | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights if they are the best so far."""
        loss = trainer.callback_metrics.get("val_loss")
        if trainer.sanity_checking or loss is None or not float(loss) < self.best:
            return
        self.best = float(loss)
        state = pl_module.state_dict()
        self.weights = {name: value.detach().cpu().clone() for name, value in state.items()}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the best weights back."""
        if self.weights is not None:
            pl_module.load_state_dict(self.weights)


class KronosModule(PLForecastingModule):
    """Both networks as Darts' Lightning module: stage two's training, and the forecasts.

    Parameters
    ----------
    tokenizer_config, predictor_config
        Values of the two networks' configurations, as plain data.
    components
        Names of the C components, in the networks' order.
    representation
        Name of how the tokenizer sees bars, "window" or "returns".
    clip
        Bound on the absolute normalised values.
    max_context
        Bars that the predictor sees at most.
    volume_dropout
        Probability that a training window's volume and amount are zeroed.
    sampling
        What :meth:`set_sampling` takes.
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
        volume_dropout: float,
        sampling: dict[str, Any],
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.tokenizer = KronosTokenizer(TokenizerConfig(**tokenizer_config))
        self.predictor = KronosPredictor(PredictorConfig(**predictor_config))
        self.representation = representation_named(representation, components, clip)
        self.max_context = max_context
        self.volume_dropout = volume_dropout
        self.stage_log = _StageLog(self.predictor.config.s1_bits, self.predictor.config.s2_bits)
        self.tokenizer_fitted: Tensor
        self.register_buffer("tokenizer_fitted", torch.tensor(False))
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
    ) -> None:
        """Say how forecasts are drawn; see :class:`~darts_kronos.KronosModel`.

        Raises
        ------
        ValueError
            If a value is out of range.
        """
        check_point_forecast(point_forecast, num_point_samples)
        self.sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        self.point_forecast = point_forecast
        self.num_point_samples = num_point_samples
        self.valid_candles = valid_candles

    def train(self, mode: bool = True) -> KronosModule:
        """Set the mode of the predictor; the tokenizer is fixed here, so it always evaluates."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def training_step(self, train_batch: TorchTrainingBatch, batch_idx: int) -> Tensor:
        """The loss of a training batch."""
        return self._step(train_batch, "train", self.volume_dropout)

    def validation_step(self, val_batch: TorchTrainingBatch, batch_idx: int) -> Tensor:
        """The loss of a validation batch."""
        return self._step(val_batch, "val", 0.0)

    def _step(self, batch: TorchTrainingBatch, role: str, volume_dropout: float) -> Tensor:
        with torch.no_grad():
            s1, s2 = self.tokenizer.encode(_normalised(self.representation, batch, volume_dropout))
        stamps = _stamps(batch)
        # As in generation, the tokenizer sees the whole window, the predictor `max_context` bars.
        s1, s2 = s1[:, -self.max_context :], s2[:, -self.max_context :]
        stamps = None if stamps is None else stamps[:, -self.max_context :]
        parts = self.predictor.loss(s1, s2, stamps)
        self.stage_log.write(self, role, parts._asdict(), s1, s2)
        return parts.loss

    def configure_optimizers(self) -> Any:
        """Darts' optimizer; a one-cycle schedule unless the user gave one."""
        configured = super().configure_optimizers()
        return configured if self.lr_scheduler_cls else one_cycle(configured, self.trainer)

    @property
    def supports_probabilistic_prediction(self) -> bool:
        """True: forecasts are joint sample paths."""
        return True

    @io_processor
    def forward(self, x_in: PLModuleInput) -> PLModuleOutput:
        """One sample path of ``output_chunk_length`` bars, (B, n, C, 1), in the input's units."""
        paths = self._paths(x_in.past_target, _stamps(x_in), self.output_chunk_length or 1, 1)
        return PLModuleOutput(prediction=paths[0].unsqueeze(-1))

    def predict_step(
        self, batch: TorchInferenceBatch, batch_idx: int, dataloader_idx: int | None = None
    ) -> tuple[Tensor, Sequence[dict[str, Any] | None], Sequence[Any]]:
        """Forecasts of a batch of windows.

        Returns
        -------
        tuple
            Paths or, for one sample, point forecasts, (S, B, n, C), in the units, data type and
            component order of each series; the series' schemas; the times of the first bars.
        """
        schemas, times = batch.series_schema, batch.pred_time
        assert schemas is not None and times is not None and self.pred_n is not None
        components = self.representation.components
        order = torch.tensor(
            [positions(list(schema["columns"]), components) for schema in schemas],
            device=batch.past_target.device,
        )
        context = batch.past_target.gather(-1, order.unsqueeze(1).expand_as(batch.past_target))
        n, num_samples = self.pred_n, self.pred_num_samples or 1
        point = num_samples == 1 and self.point_forecast != "sample"
        paths = self._paths(
            context, _stamps(batch), n, self.num_point_samples if point else num_samples
        )
        if point:
            mean = self.point_forecast == "mean"
            paths = (paths.mean(dim=0) if mean else paths.median(dim=0).values).unsqueeze(0)
        back = order.argsort(dim=-1)[None, :, None].expand_as(paths)
        return paths.gather(-1, back).to(batch.past_target.dtype), schemas, times

    def _paths(self, context: Tensor, stamps: Tensor | None, n: int, num_samples: int) -> Tensor:
        """Sample paths, (S, B, n, C), float64, after contexts (B, T, C) in the networks' order."""
        T = context.shape[1]
        normalised, statistics = self.representation.encode(context, T)
        paths = generate(
            self.tokenizer,
            self.predictor,
            normalised.to(self.predictor.s1_head.weight.dtype),
            None if stamps is None else stamps[:, : T + n],
            n=n,
            num_samples=num_samples,
            max_context=self.max_context,
            sampling=self.sampling,
        )
        bars = self.representation.decode(paths, statistics)
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
    if not isinstance(num_point_samples, int) or num_point_samples < 1:
        raise ValueError(f"`num_point_samples` must be an integer >= 1, got {num_point_samples!r}.")


def _stamps(batch: TorchTrainingBatch | TorchInferenceBatch | PLModuleInput) -> Tensor | None:
    """Calendar stamps of context and horizon, (B, T + n, 5), which travel as covariates."""
    known, ahead = batch.historic_future_covariates, batch.future_covariates
    if known is None or ahead is None:
        return None
    return torch.cat((known, ahead), dim=1).long()
