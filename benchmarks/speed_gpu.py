"""Sample paths and training steps on a GPU; needs torch and this folder's checkout alone.

    python benchmarks/speed_gpu.py
    python benchmarks/speed_gpu.py --original FOLDER   # that holds the package kronos_finance
    python benchmarks/speed_gpu.py --device cpu --sizes mini --shapes 1x1   # to try it

The networks have random weights. Without `--original` the table has our figures only. With it the
original's code gets the same weights; greedy tokens of all paths of the first window, and losses,
are compared with ours first, and a difference ends the run without a time. Ours needs neither Darts
nor pandas nor Lightning; the original needs more. `--shapes` are paths whose bars fit into the
window, `--sliding` such whose window slides, exactly, as the original's always does.

Figures carry the device's name and belong to that device. A time is the median over repeats.
Ratios of bf16 are over the original in float32, which is all it has for paths; its training gets
the same autocast as ours. Paths of the original with more than `--rows` rows are measured on so
many, and on three of its steps, and scaled: the table says so. The share of bandwidth is that of
the predictor's weights, read once for each new bar, over the whole run: reading the window and
decoding the bars count as time, but not as bytes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import types
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timing.clock import Seconds, WrongAnswer, now, seconds_of
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
MAX_CONTEXT = 512
FITTING, SLIDING = (400, 112), (512, 120)
"""Bars of context and new ones."""
BATCH, WINDOW = 32, 561
WARM_UP, STEPS = 3, 10
"""Training steps before those that count, and these."""

# The package's own __init__ imports Darts; its networks need torch alone.
_package = types.ModuleType("darts_kronos")
_package.__path__ = [str(ROOT / "darts_kronos")]
sys.modules.setdefault("darts_kronos", _package)

generation = importlib.import_module("darts_kronos.generation")
config = importlib.import_module("darts_kronos.nn.config")
predictor_module = importlib.import_module("darts_kronos.nn.predictor")
tokenizer_module = importlib.import_module("darts_kronos.nn.tokenizer")

both = importlib.import_module("timing.given")


@dataclass(frozen=True)
class Setting:
    """What is measured, and where.

    Attributes
    ----------
    device
        The device.
    repeats
        How often paths are timed.
    rows
        Rows above which the original's paths are measured on a part.
    bandwidth
        Bytes a second that are read from the device's memory.
    """

    device: torch.device
    repeats: int
    rows: int
    bandwidth: float

    def of_precision(self, name: str) -> AbstractContextManager[Any]:
        """Autocast for "bf16", nothing for "fp32"."""
        lower = torch.autocast(self.device.type, torch.bfloat16)
        return lower if name == "bf16" else nullcontext()


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a sum of 1 GiB reads, at best."""
    numbers = torch.ones(2**28, device=device)
    return 4 * numbers.numel() / min(seconds_of(numbers.sum) for _ in range(10))


def inputs(windows: int, bars: int, ahead: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Windows and stamps as both sides get them, on the device."""
    walks, stamps = both.random_windows(windows, bars, ahead)
    return walks.to(device), stamps.to(device)


def networks(size: str, original: Any, device: torch.device) -> Any:
    """Random networks of a size; of the original's too, if that module is given."""
    if original is not None:
        return original.networks(size, device=device)
    sizes = config.size_named(size)
    torch.manual_seed(0)
    tokenizer = tokenizer_module.KronosTokenizer(sizes.tokenizer)
    predictor = predictor_module.KronosPredictor(sizes.predictor)
    return types.SimpleNamespace(
        size=size, tokenizer=tokenizer.eval().to(device), predictor=predictor.eval().to(device)
    )


def paths(nets: Any, given: tuple[Tensor, Tensor], n: int, count: int, sampling: Any) -> Any:
    """So many paths of `n` bars of ours, of each window."""
    return generation.sample_paths(
        nets.tokenizer,
        nets.predictor,
        *given,
        n=n,
        num_samples=count,
        max_context=MAX_CONTEXT,
        sampling=sampling,
    )


def check(nets: Any, original: Any, bars: tuple[int, int], device: torch.device) -> None:
    """Compare greedy tokens of one path, and of ten, with the original's.

    `bars` are those of context and the new ones.

    Raises
    ------
    WrongAnswer
        If one token of one path differs.
    """
    given = inputs(1, *bars, device)
    theirs = original.greedy(nets, *given, bars[1], MAX_CONTEXT)
    for count in (1, 10):
        ours = paths(nets, given, bars[1], count, both.NEARLY_GREEDY)
        for mine, other in zip((ours.s1, ours.s2), theirs, strict=True):
            if not (mine == other).all():
                raise WrongAnswer(f"{nets.size}: tokens of {count} paths are not the original's.")


def generate(
    nets: Any, original: Any, bars: tuple[int, int], shape: str, setting: Setting
) -> list[dict[str, Any]]:
    """Rows of a shape, "windows x paths", of so many bars, in both precisions."""
    context, horizon = bars
    windows, count = map(int, shape.split("x"))
    given = inputs(windows, *bars, setting.device)
    theirs, part = None, ""
    if original is not None:
        arguments = (nets, *given, horizon, MAX_CONTEXT, count)
        if windows * count <= setting.rows:
            # The check has warmed it up.
            theirs = original.sampled_seconds(*arguments)
        else:
            theirs, part = original.scaled_seconds(*arguments, setting.rows)
    rows = []
    for precision in ("fp32", "bf16"):
        with setting.of_precision(precision):
            run = lambda: paths(nets, given, horizon, count, generation.Sampling())  # noqa: E731
            run()
            seconds = Seconds([seconds_of(run) for _ in range(setting.repeats)])
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        rate = both.weight_bytes(nets.predictor, dtype) * horizon / seconds.median
        found = {
            "case": f"{nets.size} {context}/{horizon} {windows} x {count} {precision}",
            "ours s": seconds.median,
            "spread": seconds.spread,
            "bars/s": windows * count * horizon / seconds.median,
            "weights GB/s": rate / 1e9,
            "share of bandwidth": rate / setting.bandwidth,
        }
        if theirs is not None:
            found |= {
                "original s": theirs,
                "ratio": theirs / seconds.median,
                "original measured": part or "whole",
            }
        rows.append(found)
    return rows


def training_steps(network: nn.Module, loss: Callable[[], Tensor], precision: Any) -> Seconds:
    """Steps with gradients, clipping and AdamW."""
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=1e-4,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        fused=next(network.parameters()).is_cuda,
    )

    def step() -> None:
        with precision:
            value = loss()
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 3.0)
        optimizer.step()

    network.train()
    seconds = [seconds_of(step) for _ in range(WARM_UP + STEPS)][WARM_UP:]
    network.eval()
    return Seconds(seconds)


def train(nets: Any, theirs: Any, setting: Setting) -> list[dict[str, Any]]:
    """Rows of both stages in both precisions; `theirs` is the module of the original's training."""
    bars, stamps = inputs(BATCH, WINDOW, 0, setting.device)
    tokenizer, predictor = nets.tokenizer, nets.predictor
    with torch.no_grad():
        s1, s2 = tokenizer.encode(bars)

    def first_epoch() -> Tensor:
        with torch.no_grad():
            encoded = tokenizer.encode(bars)
        return predictor.loss(*encoded, stamps).loss

    cases: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "tokenizer": (tokenizer, lambda: tokenizer(bars).loss),
        "predictor": (predictor, first_epoch),
        "predictor, tokens kept": (predictor, lambda: predictor.loss(s1, s2, stamps).loss),
    }
    rows = []
    for precision in ("fp32", "bf16"):
        original: dict[str, tuple[float, float]] = {}
        for name, (network, loss) in cases.items():
            stage = name.split(",")[0]
            if theirs is not None and stage not in original:
                reset_peak(setting.device)
                batch = theirs.Batch(bars, stamps)
                named = "bf16-mixed" if precision == "bf16" else "32-true"
                training = theirs.Training(nets, stage, named)
                steps = [seconds_of(lambda: training.step(batch)) for _ in range(WARM_UP + STEPS)]  # noqa: B023
                original[stage] = Seconds(steps[WARM_UP:]).median, peak(setting.device)
            reset_peak(setting.device)
            seconds = training_steps(network, loss, setting.of_precision(precision))
            found = {
                "case": f"{nets.size} {name} {precision} {BATCH} x {WINDOW}",
                "ours s": seconds.median,
                "spread": seconds.spread,
                "tokens/s": BATCH * WINDOW / seconds.median,
                "GiB": peak(setting.device),
            }
            if stage in original:
                median, held = original[stage]
                found |= {
                    "original s": median,
                    "ratio": median / seconds.median,
                    "original GiB": held,
                }
            rows.append(found)
            network.zero_grad()
    return rows


def reset_peak(device: torch.device) -> None:
    """Forget the most memory that was held."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak(device: torch.device) -> float:
    """The most GiB that tensors have taken since, with weights and their gradients."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def show(rows: list[dict[str, Any]], headed: bool) -> None:
    """Print rows of a Markdown table, after its head or without."""
    if headed:
        print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for one in rows:
        cells = (f"{v:.3g}" if isinstance(v, float) and v < 1000 else v for v in one.values())
        text = (f"{cell:,.0f}" if isinstance(cell, float) else str(cell) for cell in cells)
        print("| " + " | ".join(text) + " |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", default=["mini", "small", "base"])
    parser.add_argument("--shapes", nargs="*", default=["1x1", "8x10", "64x100"])
    parser.add_argument("--sliding", nargs="*", default=["1x10"])
    parser.add_argument("--train", nargs="*", default=["base"], help="sizes that are trained")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--original", type=Path, help="folder that holds kronos_finance")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    args = parser.parse_args()
    device = torch.device(args.device)
    setting = Setting(device, args.repeats, args.rows, bandwidth(device))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(
        f"{name}, torch {torch.__version__}, read bandwidth {setting.bandwidth / 1e9:.0f} GB/s",
        flush=True,
    )
    original = training = None
    if args.original is not None:
        sys.path.insert(0, str(args.original))
        original = importlib.import_module("timing.original")
        training = importlib.import_module("timing.original_training")
    started = now()
    found: list[dict[str, Any]] = []

    def keep(rows: list[dict[str, Any]]) -> None:
        # At once: a run that is cut off is not lost.
        found.extend(rows)
        if args.json is not None:
            text = {"device": name, "torch": torch.__version__, "rows": found}
            args.json.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")

    try:
        for size in dict.fromkeys((*args.sizes, *args.train)):
            nets = networks(size, original, device)
            for bars, shapes in ((FITTING, args.shapes), (SLIDING, args.sliding)):
                if size not in args.sizes or not shapes:
                    continue
                if original is not None:
                    check(nets, original, bars, device)
                for shape in shapes:
                    rows = generate(nets, original, bars, shape, setting)
                    show(rows, headed=shape == shapes[0])
                    keep(rows)
            if size in args.train:
                if training is not None:
                    training.check(nets, training.Batch(*inputs(2, WINDOW, 0, device)))
                rows = train(nets, training, setting)
                show(rows, headed=True)
                keep(rows)
    except WrongAnswer as wrong:
        sys.exit(f"No time is reported, because the answers differ. {wrong}")
    print(f"{now() - started:.0f} s")


if __name__ == "__main__":
    main()
