"""Sampling of token paths, and the candles that they stand for.

Shapes by letter: B windows, S sample paths of a window, T bars of the context, n new bars,
C components.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from darts_kronos.nn.config import is_number
from darts_kronos.nn.layers import Cache
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.tokenizer import KronosTokenizer

PATH_BYTES = 256 * 2**20
"""Memory that the paths drawn together may take; more paths are drawn in turns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are drawn from the predictor's probabilities.

    Parameters
    ----------
    temperature
        Divides the logits: below 1 narrows the distribution, above 1 widens it.
    top_k
        Draw from the `top_k` most probable tokens only; 1 is greedy; None keeps all.
    top_p
        Of the tokens that `top_k` leaves, draw from the most probable whose probabilities reach
        `top_p` together; None keeps all.

    Raises
    ------
    ValueError
        If `temperature` is not a positive number, `top_k` not an integer >= 1, or `top_p` not in
        (0, 1].
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not is_number(self.temperature) or not 0 < self.temperature < float("inf"):
            raise ValueError(f"`temperature` must be a number > 0, got {self.temperature!r}.")
        if self.top_k is not None and (
            not isinstance(self.top_k, int) or isinstance(self.top_k, bool) or self.top_k < 1
        ):
            raise ValueError(f"`top_k` must be an integer >= 1 or None, got {self.top_k!r}.")
        if self.top_p is not None and (not is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise ValueError(f"`top_p` must be a number in (0, 1] or None, got {self.top_p!r}.")

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return self.top_k == 1

    def draw(self, logits: Tensor) -> Tensor:
        """One token id, (...), for each row of logits (..., V), by torch's global generator."""
        if self.greedy:
            return logits.argmax(dim=-1)
        logits = logits.float() / self.temperature
        ids = None
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            logits, ids = logits.topk(self.top_k, dim=-1)
        if self.top_p is not None and self.top_p < 1:
            if ids is None:
                logits, ids = logits.sort(dim=-1, descending=True)
            logits = _keep_nucleus(logits, self.top_p)
        drawn = torch.multinomial(logits.softmax(dim=-1).flatten(0, -2), 1)
        drawn = drawn.view(*logits.shape[:-1], 1)
        return (drawn if ids is None else ids.gather(-1, drawn)).squeeze(-1)


def _keep_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Descending logits without the tail that starts after their probabilities reach `top_p`."""
    probabilities = logits.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    outside = before > top_p
    outside[..., 0] = False
    return logits.masked_fill(outside, float("-inf"))


@torch.inference_mode()
def generate(
    tokenizer: KronosTokenizer,
    predictor: KronosPredictor,
    context: Tensor,
    stamps: Tensor | None,
    *,
    n: int,
    num_samples: int = 1,
    max_context: int,
    sampling: Sampling,
    path_bytes: int = PATH_BYTES,
) -> Tensor:
    """Draw joint sample paths of the `n` bars after each context.

    A context is encoded once and read once; its keys and values serve all its paths. All `n` bars
    are written token by token, with no normalisation in between, then decoded together with the
    context. Both networks run in evaluation mode, whatever mode they are in, and are left in it.

    The predictor sees the last `max_context` bars. Once context and new bars exceed it, the
    window slides: each further bar is computed as if its window were read from the start.

    Parameters
    ----------
    tokenizer, predictor
        The networks, with equal `s1_bits` and `s2_bits`.
    context
        Normalised bars, (B, T, C); they may be more than `max_context`.
    stamps
        Calendar stamps of the context and of the bars to come, integers (B, T + n, 5) in the
        order minute, hour, weekday, day, month; None for a predictor that was trained without.
    n
        Bars to write.
    num_samples
        S, paths for each window. A greedy path is drawn once and repeated.
    max_context
        Bars that the predictor sees at most, >= 1.
    sampling
        How tokens are drawn.
    path_bytes
        Bound on the memory of the paths that are drawn together: more wait their turn.

    Returns
    -------
    Tensor
        Normalised bars, (S, B, n, C).

    Raises
    ------
    ValueError
        If `n`, `num_samples` or `max_context` is below 1, or the stamps do not cover the bars.
    """
    for name, value in (("n", n), ("num_samples", num_samples), ("max_context", max_context)):
        if value < 1:
            raise ValueError(f"`{name}` must be an integer >= 1, got {value}.")
    B, T, _ = context.shape
    if stamps is not None and stamps.shape != (B, T + n, 5):
        raise ValueError(
            f"`stamps` must have shape {(B, T + n, 5)} to cover the context and the {n} bars to "
            f"come, got {tuple(stamps.shape)}."
        )

    drawn_samples = 1 if sampling.greedy else num_samples
    rows = max(1, path_bytes // _bytes_per_path(tokenizer, predictor, T, n, max_context))
    windows_per_turn = max(1, rows // drawn_samples)
    paths_per_turn = min(rows, drawn_samples)
    with _evaluating(tokenizer, predictor):
        turns = []
        for first in range(0, B, windows_per_turn):
            chosen = slice(first, first + windows_per_turn)
            window = _Window(
                tokenizer,
                predictor,
                context[chosen],
                None if stamps is None else stamps[chosen],
                n,
                max_context,
            )
            paths = [
                window.draw(min(paths_per_turn, drawn_samples - done), sampling)
                for done in range(0, drawn_samples, paths_per_turn)
            ]
            turns.append(torch.cat(paths, dim=1))
        bars = torch.cat(turns).transpose(0, 1)
    return bars.expand(num_samples, -1, -1, -1) if sampling.greedy else bars


class _Window:
    """A batch of contexts that has been read, from which paths can be drawn in turns."""

    def __init__(
        self,
        tokenizer: KronosTokenizer,
        predictor: KronosPredictor,
        context: Tensor,
        stamps: Tensor | None,
        n: int,
        max_context: int,
    ):
        self.tokenizer = tokenizer
        self.predictor = predictor
        self.stamps = stamps
        self.n = n
        self.max_context = max_context
        self.s1, self.s2 = tokenizer.encode(context)
        self.length = context.shape[1]
        # Bars that can be written before the window slides.
        self.room = min(n, max(1, max_context - self.length + 1))
        hidden, self.cache = self._read(max(0, self.length - max_context), self.room)
        self.hidden = hidden[:, -1:]

    def _stamps(self, start: int, end: int) -> Tensor | None:
        return None if self.stamps is None else self.stamps[:, start:end]

    def _read(self, start: int, capacity: int) -> tuple[Tensor, Cache]:
        """Read the context from bar `start` on, once for all paths."""
        return self.predictor.prefill(
            self.s1[:, start:],
            self.s2[:, start:],
            self._stamps(start, self.length),
            capacity,
        )

    def draw(self, num_samples: int, sampling: Sampling) -> Tensor:
        """Normalised bars, (B, S, n, C), of `num_samples` new paths."""
        s1 = self.s1.new_empty(len(self.s1), num_samples, self.n)
        s2 = torch.empty_like(s1)
        cache = self.cache.restart()
        hidden = self.hidden.expand(-1, num_samples, -1)
        for i in range(self.n):
            if i >= self.room:
                hidden, cache = self._slide(s1[:, :, :i], s2[:, :, :i])
            elif i > 0:
                last, at = slice(i - 1, i), self.length + i - 1
                stamps = self._stamps(at, at + 1)
                hidden = self.predictor.extend(s1[:, :, last], s2[:, :, last], stamps, cache)
            s1[:, :, i] = sampling.draw(self.predictor.s1_logits(hidden))
            s2[:, :, i] = sampling.draw(self.predictor.s2_logits(hidden, s1[:, :, i], cache))
        return self._decode(s1, s2)

    def _slide(self, s1: Tensor, s2: Tensor) -> tuple[Tensor, Cache]:
        """Read the last `max_context` bars, of which (B, S, i) tokens are new, from the start."""
        i = s1.shape[2]
        end = self.length + i
        start = end - self.max_context
        known = max(0, start - self.length)
        _, cache = self._read(min(start, self.length), i - known)
        new_s1, new_s2 = s1[:, :, known:], s2[:, :, known:]
        hidden = self.predictor.extend(
            new_s1, new_s2, self._stamps(self.length + known, end), cache
        )
        return hidden, cache

    def _decode(self, s1: Tensor, s2: Tensor) -> Tensor:
        """Normalised bars, (B, S, n, C), of the paths' tokens, read after the context's.

        The decoder sees `max_context` bars that end with the last of the block it decodes: of all
        `n` bars, unless these alone fill it, then of half a window at a time.
        """
        block = self.n if self.n < self.max_context else max(1, self.max_context // 2)
        parts = []
        for first in range(0, self.n, block):
            end = min(first + block, self.n)
            start = max(0, self.length + end - self.max_context)
            known = max(0, start - self.length)
            new = slice(known, end)
            cache = self.tokenizer.prefill(
                self.s1[:, start:], self.s2[:, start:], capacity=end - known
            )
            bars = self.tokenizer.extend(s1[:, :, new], s2[:, :, new], cache)
            parts.append(bars[:, :, first - end :])
        return torch.cat(parts, dim=2)


def _bytes_per_path(
    tokenizer: KronosTokenizer, predictor: KronosPredictor, length: int, n: int, max_context: int
) -> int:
    """Memory that one path of `n` bars takes, in both networks, after `length` bars of context.

    Its keys and values, the widest layer's activations for the bars that are read together, and
    the attention scores of a window that slides.
    """
    kept = (predictor.config.n_layers + 1) * predictor.config.d_model
    kept += tokenizer.config.n_decoder_layers * tokenizer.config.d_model
    together = min(n, max_context)
    wide = max(2 * net.config.ff_dim + 4 * net.config.d_model for net in (tokenizer, predictor))
    scores = 0
    if length + n > max_context:
        n_heads = max(tokenizer.config.n_heads, predictor.config.n_heads)
        scores = 2 * n_heads * together * max_context
    return (2 * n * kept + together * wide + scores) * predictor.s1_head.weight.element_size()


@contextmanager
def _evaluating(*networks: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; every module's own mode is restored after it."""
    modules = [module for network in networks for module in network.modules()]
    modes = [module.training for module in modules]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training
