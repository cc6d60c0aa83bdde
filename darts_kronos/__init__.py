"""Kronos, the two-stage K-line model, as a Darts forecasting model."""

from darts_kronos import candles, checkpoints, metrics, plotting, tuning
from darts_kronos.model import KronosModel

__all__ = ["KronosModel", "candles", "checkpoints", "metrics", "plotting", "tuning"]
