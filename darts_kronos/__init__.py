"""Kronos, the two-stage K-line model, as a Darts forecasting model."""

from darts_kronos.model import KronosModel

__all__ = ["KronosModel"]
