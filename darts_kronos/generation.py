"""Sampling of token paths, and the candles that they stand for.

Shapes by letter: B windows, S sample paths of a window, T bars of the context, n new bars,
C components.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from darts_kronos.nn.config import is_number
from darts_kronos.nn.graphs import FEWEST_STEPS, uniforms
from darts_kronos.nn.kernels import packed
from darts_kronos.nn.predictor import KronosPredictor
from darts_kronos.nn.recorded_paths import RecordedPaths
from darts_kronos.nn.recorded_rereading import RecordedRereads
from darts_kronos.nn.rereading import Rereader
from darts_kronos.nn.rows import SPOILT
from darts_kronos.nn.strata import drawing
from darts_kronos.nn.tokenizer import KronosTokenizer

PATH_BYTES = 256 * 2**20
"""Memory that the paths drawn together may take on a CPU; more paths are drawn in turns."""

SHARE_OF_GPU = 8
"""Part of a GPU's memory that they may take there."""

LEAST_TEMPERATURE = 1e-30
"""Logits over less may be infinite in float32."""

NUCLEUS_TRIED = 128
"""Most probable tokens among which a nucleus is looked for before all are sorted."""

PACKED_STEPS = 40
"""Steps of generation from which on it pays to lay out the weights for them."""

ALL = 2**31
"""More tokens than any codebook has."""

SLIDING = ("exact", "cached")
"""Ways to go on past `max_context`: read the window again for each bar, or drop its oldest bars."""


SPOILT_BARS = "What the tokenizer makes of tokens is no finite numbers: its weights are spoilt."


class Paths(NamedTuple):
    """Sample paths: normalised bars (S, B, n, C), and their tokens, each (S, B, n)."""

    bars: Tensor
    s1: Tensor
    s2: Tensor


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

    Notes
    -----
    Tokens are drawn in the same way by ``nn.row_kernels.draw`` where it is there.

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
        if self.temperature < LEAST_TEMPERATURE:
            raise ValueError(
                f"`temperature` must be at least {LEAST_TEMPERATURE}, got {self.temperature!r}: "
                "logits over it would be infinite. `top_k=1` always takes the most probable token."
            )
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

    @property
    def plain(self) -> bool:
        """Whether tokens are drawn from all."""
        return self.top_k is None and (self.top_p is None or self.top_p == 1)

    @property
    def plain_temperature(self) -> float | None:
        """Temperature, if it is all that makes a difference; else None."""
        return self.temperature if self.plain else None

    @property
    def numbers(self) -> tuple[float, int, float]:
        """Temperature, `top_k` and `top_p`; for None, such as leave no token out."""
        top_k = ALL if self.top_k is None else min(self.top_k, ALL)
        return float(self.temperature), top_k, 1.0 if self.top_p is None else float(self.top_p)

    def draw(self, logits: Tensor, given: Tensor | None = None) -> Tensor:
        """One token id, (...), for each row of logits (..., V).

        It is drawn by numbers in [0, 1), float32, (..., 1); None: those of torch's global
        generator.

        Raises
        ------
        ValueError
            If logits are NaN or infinite.
        """
        if self.greedy:
            _check_finite(logits.amax(dim=-1))
            return logits.argmax(dim=-1)
        logits = logits.float()
        if self.temperature != 1:
            logits = logits / self.temperature
        ids = None
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            logits, ids = logits.topk(self.top_k, dim=-1)
        probabilities = logits.softmax(dim=-1)
        if self.top_p is not None and self.top_p < 1:
            if ids is None:
                probabilities, ids = _most_probable(probabilities, self.top_p)
            probabilities = _keep_nucleus(probabilities, self.top_p)
        if given is None:
            given = uniforms((*probabilities.shape[:-1], 1), probabilities.device)
        drawn = _draw(probabilities, given)
        return (drawn if ids is None else ids.gather(-1, drawn)).squeeze(-1)


def _most_probable(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Descending probabilities, and their ids: of all, or of enough to exceed `top_p`."""
    # Elsewhere than on a CPU it takes long to hear whether they are enough.
    if probabilities.shape[-1] > NUCLEUS_TRIED and probabilities.device.type == "cpu":
        found = probabilities.topk(NUCLEUS_TRIED, dim=-1)
        if bool((found.values.sum(dim=-1) > top_p).all()):
            return found.values, found.indices
    whole = probabilities.sort(dim=-1, descending=True)
    return whole.values, whole.indices


def _keep_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Descending probabilities, 0 in the tail that starts after they reach `top_p`."""
    outside = probabilities.cumsum(dim=-1) - probabilities > top_p
    outside[..., 0] = False
    return probabilities.masked_fill(outside, 0.0)


def _draw(probabilities: Tensor, given: Tensor) -> Tensor:
    """One place, (..., 1), for each row of float32 probabilities (..., V) in any order and scale.

    The place whose part of the sum holds the given share of it, (..., 1); one of probability 0
    holds none.
    """
    sums = probabilities.cumsum(dim=-1)
    total = sums[..., -1:]
    _check_finite(total)
    # Below the sum, also when rounded: torch's uniform numbers are multiples of 2**-24 below 1.
    places = torch.searchsorted(sums, given * total, right=True)
    return places.clamp_(max=sums.shape[-1] - 1)


def _check_finite(numbers: Tensor, message: str = SPOILT) -> None:
    """Refuse what comes of spoilt weights; what a GPU records is checked when it was played."""
    if numbers.is_cuda and torch.cuda.is_current_stream_capturing():
        return
    if not bool(numbers.isfinite().all()):
        raise ValueError(message)


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
    sliding: str = "exact",
    path_bytes: int | None = None,
) -> Tensor:
    """Normalised bars, (S, B, n, C), of joint sample paths; see :func:`sample_paths`."""
    return sample_paths(
        tokenizer,
        predictor,
        context,
        stamps,
        n=n,
        num_samples=num_samples,
        max_context=max_context,
        sampling=sampling,
        sliding=sliding,
        path_bytes=path_bytes,
    ).bars


@torch.inference_mode()
def sample_paths(
    tokenizer: KronosTokenizer,
    predictor: KronosPredictor,
    context: Tensor,
    stamps: Tensor | None,
    *,
    n: int,
    num_samples: int = 1,
    max_context: int,
    sampling: Sampling,
    sliding: str = "exact",
    path_bytes: int | None = None,
) -> Paths:
    """Draw joint sample paths of the `n` bars after each context.

    A context is encoded once and read once; its keys and values serve all its paths. All `n` bars
    are written token by token, with no normalisation in between, then decoded together with the
    context. Both networks run in evaluation mode, whatever mode they are in, and are left in it.

    Each path is drawn as if it were alone. Those of one context, as far as they are drawn together
    (`path_bytes`), share out the probable tokens of each bar among them; see
    :func:`~darts_kronos.nn.strata.stratified`.

    The predictor sees the last `max_context` bars. Once context and new bars exceed it, the
    window slides: each further bar is computed as if its window were read from the start or, with
    `sliding` "cached", from what was kept of the bars that are still in it.

    Under autocast the predictor's products are made in its data type; tokens of the context and
    bars of the paths are always computed in the networks' own.

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
    sliding
        "exact" or "cached". What was kept of a bar still knows of bars that left the window
        since, so "cached" is no window of `max_context` bars, but costs no new reading of it.
    path_bytes
        Bound on the memory of the paths that are drawn together: more wait their turn. None:
        ``PATH_BYTES``, and on a GPU an eighth of its memory.

    Returns
    -------
    Paths
        Normalised bars and their tokens.

    Raises
    ------
    ValueError
        If `n`, `num_samples` or `max_context` is below 1, `sliding` is unknown, the stamps do not
        cover the bars, or logits are NaN or infinite.
    """
    for name, value in (("n", n), ("num_samples", num_samples), ("max_context", max_context)):
        if value < 1:
            raise ValueError(f"`{name}` must be an integer >= 1, got {value}.")
    check_sliding(sliding)
    B, T, _ = context.shape
    if stamps is not None and stamps.shape != (B, T + n, 5):
        raise ValueError(
            f"`stamps` must have shape {(B, T + n, 5)} to cover the context and the {n} bars to "
            f"come, got {tuple(stamps.shape)}."
        )

    drawn_samples = 1 if sampling.greedy else num_samples
    # The last bar is not read.
    rereads = T + n - 1 > max_context and sliding == "exact"
    alone = drawn_samples == 1
    of_window, of_path = _bytes_needed(tokenizer, predictor, T, n, max_context, rereads, alone)
    if path_bytes is None:
        path_bytes = _path_bytes(context.device)
    paths_per_turn = min(max(1, (path_bytes - of_window) // of_path), drawn_samples)
    windows_per_turn = max(1, path_bytes // (of_window + paths_per_turn * of_path))
    if paths_per_turn < drawn_samples:
        windows_per_turn = 1
    turns = -(-B // windows_per_turn) * -(-drawn_samples // paths_per_turn)
    rows = min(B, windows_per_turn) * paths_per_turn if n * turns >= PACKED_STEPS else 0
    # What turns leave goes to its place at once: kept apart it would lie between the memory that
    # they take and give back, and all of it would be held twice in the end.
    found = Paths(
        context.new_empty(drawn_samples, B, n, context.shape[-1]),
        # They have at most 20 bits.
        *(context.new_empty(drawn_samples, B, n, dtype=torch.int32) for _ in range(2)),
    )
    with _ready(tokenizer, predictor, rows, rereads) as dtype:
        for first in range(0, B, windows_per_turn):
            chosen = slice(first, first + windows_per_turn)
            window = _Window(
                tokenizer,
                predictor,
                context[chosen],
                None if stamps is None else stamps[chosen],
                n,
                max_context,
                sliding,
                dtype,
            )
            for done in range(0, drawn_samples, paths_per_turn):
                turn = slice(done, min(done + paths_per_turn, drawn_samples))
                paths = window.draw(turn.stop - done, sampling)
                for whole, part in zip(found, paths, strict=True):
                    whole[turn, chosen] = part
    _check_finite(found.bars, SPOILT_BARS)
    if sampling.greedy:
        return Paths(*(one.expand(num_samples, *one.shape[1:]) for one in found))
    return found


def _path_bytes(device: torch.device) -> int:
    """Memory that the paths drawn together may take."""
    if device.type != "cuda":
        return PATH_BYTES
    return max(PATH_BYTES, torch.cuda.get_device_properties(device).total_memory // SHARE_OF_GPU)


def check_sliding(sliding: str) -> None:
    """Check a way to go on past `max_context`.

    Raises
    ------
    ValueError
        If it is unknown.
    """
    if sliding not in SLIDING:
        raise ValueError(
            f"`sliding` must be one of {', '.join(map(repr, SLIDING))}, got {sliding!r}."
        )


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
        sliding: str,
        dtype: torch.dtype,
    ):
        self.tokenizer = tokenizer
        self.predictor = predictor
        self.stamps = stamps
        self.n = n
        self.max_context = max_context
        self.dtype = dtype
        self.recorded: RecordedPaths | None = None
        self.s1, self.s2 = tokenizer.encode(context)
        self.length = context.shape[1]
        # Bars that can be written before the window is read again.
        self.room = n if sliding == "cached" else min(n, max(1, max_context - self.length + 1))
        # The context from its first bar on that is seen, once for all paths.
        start = max(0, self.length - max_context)
        hidden, self.cache = predictor.prefill(
            self.s1[:, start:], self.s2[:, start:], self._stamps(start, self.length), self.room
        )
        self.hidden = hidden[:, -1:]

    def _stamps(self, start: int, end: int) -> Tensor | None:
        return None if self.stamps is None else self.stamps[:, start:end]

    def draw(self, num_samples: int, sampling: Sampling) -> Paths:
        """`num_samples` new paths of each context."""
        s1 = self.s1.new_empty(len(self.s1), num_samples, self.n)
        s2 = torch.empty_like(s1)
        cache = self.cache.restart()
        written = self._written_by_kernels(num_samples, sampling)
        if written is None:
            written = self._written_by_graphs(num_samples, sampling)
        done = 0
        if written is not None:
            done = self.room
            s1[:, :, :done], s2[:, :, :done] = written
        hidden = self.hidden.expand(-1, num_samples, -1)
        numbers = self._numbers(self.room - done, num_samples, sampling)
        for i in range(done, self.room):
            for_s1, for_s2 = numbers[i - done]
            if i > 0:
                last, at = slice(i - 1, i), self.length + i - 1
                stamps = self._stamps(at, at + 1)
                cache.keep(self.max_context)
                hidden = self.predictor.extend(s1[:, :, last], s2[:, :, last], stamps, cache)
            s1[:, :, i] = sampling.draw(self.predictor.s1_logits(hidden), for_s1)
            s2_logits = self.predictor.s2_logits(hidden, s1[:, :, i], cache)
            s2[:, :, i] = sampling.draw(s2_logits, for_s2)
        del cache
        if self.room < self.n:
            self._draw_sliding(s1, s2, sampling)
        return Paths(*(one.transpose(0, 1) for one in (self._decode(s1, s2), s1, s2)))

    def _written_by_kernels(self, num_samples: int, sampling: Sampling) -> Tensor | None:
        """Tokens of paths, (2, B, S, room), by compiled kernels; None if torch is to draw them."""
        return self.predictor.write(
            self.room,
            num_samples,
            self.hidden,
            self._stamps(self.length, self.length + self.room - 1),
            self.cache,
            most=self.max_context,
            sampling=sampling.numbers,
        )

    def _written_by_graphs(self, num_samples: int, sampling: Sampling) -> Tensor | None:
        """The same by steps that a GPU records; None if there is none, or too few of them."""
        if not self._records(self.room - 1):
            return None
        if self.recorded is None or self.recorded.tokens.shape[2] != num_samples:
            self.recorded = RecordedPaths(
                self.predictor,
                self.cache,
                self._stamps(self.length, self.length + self.room - 1),
                num_samples=num_samples,
                n=self.room,
                most=self.max_context,
                dtype=self.dtype,
                draw=sampling.draw,
                temperature=sampling.plain_temperature,
            )
        return self.recorded.write(self.hidden)

    def _draw_sliding(self, s1: Tensor, s2: Tensor, sampling: Sampling) -> None:
        """Draw the rest of the paths' tokens, (B, S, n), reading all windows again for each bar."""
        # Bars before these have left the window already.
        first = self.length + self.room - self.max_context
        reader = Rereader(
            self.predictor,
            self.s1[:, first:],
            self.s2[:, first:],
            self._stamps(first, self.length + self.n),
            s1.shape[1],
            self.n,
        )
        if self._records(self.n - self.room):
            recorded = RecordedRereads(
                *(reader, s1, s2, self.room),
                dtype=self.dtype,
                draw=sampling.draw,
                temperature=sampling.plain_temperature,
            )
            s1[:], s2[:] = recorded.write()
            return
        numbers = self._numbers(self.n - self.room, s1.shape[1], sampling)
        for i, (for_s1, for_s2) in zip(range(self.room, self.n), numbers, strict=True):
            states = reader.read(s1[:, :, :i], s2[:, :, :i], i - self.room)
            s1[:, :, i] = sampling.draw(self.predictor.s1_logits(states.newest), for_s1)
            s2[:, :, i] = sampling.draw(reader.s2_logits(states, s1[:, :, i]), for_s2)

    def _numbers(self, bars: int, num_samples: int, sampling: Sampling) -> Tensor:
        """What draws both tokens of new bars, (bars, 2, B, S, 1)."""
        B, device = len(self.s1), self.s1.device
        numbers = drawing(bars, B, num_samples, device, greedy=sampling.greedy)
        return numbers.view(bars, 2, B, num_samples, 1)

    def _records(self, steps: int) -> bool:
        """Whether so many steps are such as a GPU can record."""
        return self.s1.device.type == "cuda" and steps >= FEWEST_STEPS

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


def _bytes_needed(
    tokenizer: KronosTokenizer,
    predictor: KronosPredictor,
    length: int,
    n: int,
    max_context: int,
    rereads: bool,
    alone: bool,
) -> tuple[int, int]:
    """Memory that a window of `length` bars takes, and each of its paths of `n` bars.

    Keys and values in both networks, the widest layer's activations for the bars that are read
    together, and the attention's scores: of one bar at a time in the predictor, unless it reads
    its window again, and of all new bars in the tokenizer's decoder. A path that is its window's
    only one has, where torch draws it, the window's keys and values before its own.
    """
    kept = (predictor.config.n_layers + 1) * predictor.config.d_model
    kept += tokenizer.config.n_decoder_layers * tokenizer.config.d_model
    wide = max(2 * net.config.ff_dim + 4 * net.config.d_model for net in (tokenizer, predictor))
    known, new = min(length, max_context), min(n, max_context)
    n_heads = tokenizer.config.n_heads
    if rereads:
        # What enters the first layer, and its queries, keys and values.
        kept += 2 * predictor.config.d_model
        n_heads = max(n_heads, predictor.config.n_heads)
    scores = 2 * n_heads * new * min(length + n, max_context)
    size = predictor.s1_head.weight.element_size()
    of_path = 2 * n * kept + new * wide + scores + (2 * known * kept if alone else 0)
    return known * (2 * kept + wide) * size, of_path * size


@contextmanager
def _ready(
    tokenizer: KronosTokenizer, predictor: KronosPredictor, rows: int, rereads: bool
) -> Iterator[torch.dtype]:
    """Both networks as generation wants them for the block: evaluating, folded and packed.

    Yields the data type of the predictor's products.

    `rows` are those of a step, and 0 if there are too few steps to lay weights out for them. Of the
    predictor, torch has steps to make if the window is read again (`rereads`), or without kernels.

    Every module's own mode is restored after it.
    """
    device = predictor.s1_head.weight.device.type
    own = predictor.s1_head.weight.dtype
    lower = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if lower else own
    with ExitStack() as stack:
        stack.enter_context(_evaluating(tokenizer, predictor))
        stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(predictor.folded(dtype))
        by_torch = rereads or predictor.compiled is None
        stack.enter_context(packed(predictor, dtype, rows if by_torch else 0))
        # It makes a few large products.
        stack.enter_context(packed(tokenizer, tokenizer.head.weight.dtype, 0))
        yield dtype


@contextmanager
def _evaluating(*networks: nn.Module) -> Iterator[None]:
    """Evaluation mode for the block; every module's own mode is restored after it."""
    # Modules that evaluate are not touched: to set what all are takes longer than a step on a GPU.
    training = [one for network in networks for one in network.modules() if one.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
