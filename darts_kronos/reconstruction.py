"""What a tokenizer keeps of candles: bars written as tokens and read back."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from darts import TimeSeries

from darts_kronos.components import positions
from darts_kronos.datasets import check_values
from darts_kronos.parameters import require_int

if TYPE_CHECKING:
    from darts_kronos.model import KronosModel

_WINDOWS_AT_ONCE = 128


class Reconstruction(NamedTuple):
    """The last bars of a series, and what the tokenizer makes of them.

    Attributes
    ----------
    actual, coarse, both
        The bars, as read back from the coarse token alone, and from both tokens.
    s1_counts, s2_counts
        How often each entry of the two codebooks stands for a bar of the whole series.
    """

    actual: TimeSeries
    coarse: TimeSeries
    both: TimeSeries
    s1_counts: np.ndarray
    s2_counts: np.ndarray


def reconstruct(
    model: KronosModel, series: TimeSeries, n_bars: int | None = None
) -> Reconstruction:
    """Write a series' bars as tokens, and read the last of them back.

    The bars are seen as a forecast's are, by the statistics of the ``input_chunk_length`` bars
    before them; each is read back over the actual close before it.

    Parameters
    ----------
    model
        A fitted model.
    series
        Bars with the model's components, at least ``input_chunk_length + n_bars``.
    n_bars
        Number of bars to read back; None: the model's ``output_chunk_length``.

    Raises
    ------
    ValueError
        If the model is not fitted, or the series is too short, stochastic, or not finite, has
        other components, or prices that are not above 0 where the model sees returns.
    """
    module = model.model
    if module is None:
        raise ValueError("The model has no tokenizer yet: fit or load it first.")
    context = model.input_chunk_length
    n_bars = model.output_chunk_length if n_bars is None else n_bars
    require_int("n_bars", n_bars, 1)
    if len(series) < context + n_bars:
        raise ValueError(
            f"`n_bars` must leave {context} bars of context before them, got "
            f"{n_bars} of {len(series)} bars."
        )
    representation, tokenizer = module.representation, module.tokenizer
    order = positions(list(series.components), representation.given)
    values = series.values(copy=False)[:, order].astype(np.float64)
    check_values(0, series, slice(None), representation.name == "returns")
    dtype, device = tokenizer.head.weight.dtype, tokenizer.head.weight.device
    bars = torch.as_tensor(values, device=device)
    # Windows whose last bars are, together, all that have a context; the first ends the series.
    ends = torch.arange(len(bars), context + n_bars - 1, -n_bars)
    windows = bars.unfold(0, context + n_bars, 1).transpose(1, 2)[ends - context - n_bars]
    config = tokenizer.config
    counts = [torch.zeros(2**bits, dtype=torch.long) for bits in (config.s1_bits, config.s2_bits)]
    tokenizer.eval()
    with torch.inference_mode():
        for chunk in windows.split(_WINDOWS_AT_ONCE):
            tokens = tokenizer.encode(representation.encode(chunk, context)[0].to(dtype))
            for count, ids in zip(counts, tokens, strict=True):
                count += ids[:, -n_bars:].flatten().cpu().bincount(minlength=len(count))
        normalised, statistics = representation.encode(windows[:1], context)
        s1, s2 = tokenizer.encode(normalised.to(dtype))
        last = series[-n_bars:]
        coarse, both = (
            last.with_values(
                representation.read_back(decoded, windows[:1], statistics)[0, -n_bars:]
                .cpu()
                .numpy()[:, np.argsort(order)]
            )
            for decoded in (tokenizer.decode_coarse(s1), tokenizer.decode(s1, s2))
        )
    return Reconstruction(last, coarse, both, counts[0].numpy(), counts[1].numpy())
