"""Sample paths and training steps on a GPU; needs torch and this folder's checkout alone.

    python benchmarks/speed_gpu.py
    python benchmarks/speed_gpu.py --original FOLDER   # with kronos_model of kronos-finance
    python benchmarks/speed_gpu.py --device cpu --sizes mini --shapes 1x1   # to try it

The networks have random weights. Without `--original` the table has our figures only. With it the
original's code, in a folder that holds its package `kronos_model`, gets the same weights; its
greedy bars are compared with ours first, and a difference ends the run without a time. Ours needs
neither Darts nor pandas nor Lightning; the original needs more. Figures carry the device's name
and belong to that device. Ratios of bf16 are over the original in float32, which is all it has. The
share of bandwidth is that of the predictor's weights, read once for each new bar, over the whole
run: reading the window and decoding the bars count as time, but not as bytes.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
import types
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
CONTEXT, HORIZON, BATCH, WINDOW = 400, 112, 32, 561

# The package's own __init__ imports Darts; its networks need torch alone.
_package = types.ModuleType("darts_kronos")
_package.__path__ = [str(ROOT / "darts_kronos")]
sys.modules.setdefault("darts_kronos", _package)

generation = importlib.import_module("darts_kronos.generation")
config = importlib.import_module("darts_kronos.nn.config")
predictor_module = importlib.import_module("darts_kronos.nn.predictor")
tokenizer_module = importlib.import_module("darts_kronos.nn.tokenizer")


def seconds_of(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """The median of `repeats` calls after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def bandwidth(device: torch.device) -> float:
    """Bytes a second that a sum of 1 GiB reads."""
    numbers = torch.ones(2**28, device=device)
    return 4 * numbers.numel() / seconds_of(numbers.sum, device, 10)


def inputs(windows: int, bars: int, ahead: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Normalised random walks (B, T, 6), and stamps (B, T + ahead, 5)."""
    torch.manual_seed(0)
    walks = torch.randn(windows, bars, 6).cumsum(dim=1)
    walks = (walks - walks.mean(dim=1, keepdim=True)) / walks.std(dim=1, keepdim=True)
    stamps = torch.stack(
        [
            torch.randint(low, high, (windows, bars + ahead))
            for low, high in ((0, 60), (0, 24), (0, 7), (1, 32), (1, 13))
        ],
        dim=-1,
    )
    return walks.clamp(-5, 5).to(device), stamps.to(device)


def precision_of(name: str, device: torch.device) -> Any:
    """Autocast for "bf16", nothing for "fp32"."""
    return torch.autocast(device.type, torch.bfloat16) if name == "bf16" else nullcontext()


def generate(
    networks: tuple[Any, Any], windows: int, paths: int, precision: str, device: torch.device
) -> Callable[[], Any]:
    """A run of ours."""
    context, stamps = inputs(windows, CONTEXT, HORIZON, device)

    def run() -> Any:
        with precision_of(precision, device):
            return generation.sample_paths(
                *networks,
                context,
                stamps,
                n=HORIZON,
                num_samples=paths,
                max_context=512,
                sampling=generation.Sampling(),
                path_bytes=8 * 2**30 if device.type == "cuda" else generation.PATH_BYTES,
            )

    return run


def train(network: Any, precision: str, device: torch.device) -> Callable[[], None]:
    """A training step of the predictor on windows of tokens."""
    _, stamps = inputs(BATCH, 1, WINDOW - 1, device)
    entries = 2**network.config.s1_bits
    s1, s2 = torch.randint(entries, (2, BATCH, WINDOW), device=device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=device.type == "cuda")

    def step() -> None:
        network.train()
        with precision_of(precision, device):
            loss = network.loss(s1, s2, stamps).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


class Original:
    """The original's networks with our weights.

    Parameters
    ----------
    folder
        Holds the package `kronos_model`, which needs more than torch.
    size
        Name of the size.
    device
        Where the networks are.
    """

    def __init__(self, folder: Path, size: str, device: torch.device):
        sys.path.insert(0, str(folder))
        package = importlib.import_module("kronos_model")
        self.infer = importlib.import_module("kronos_model.kronos").auto_regressive_inference
        sizes, checkpoints = config.size_named(size), _checkpoints()
        own = sizes.tokenizer
        tokenizer_config = {
            "d_in": own.n_components,
            "n_enc_layers": own.n_encoder_layers + 1,
            "n_dec_layers": own.n_decoder_layers + 1,
            "group_size": 4,
            **_common(own),
            **{name: getattr(own, name) for name in ("beta", "gamma0", "gamma", "zeta")},
        }
        own = sizes.predictor
        predictor_config = {
            "n_layers": own.n_layers,
            "token_dropout_p": own.token_dropout,
            "learn_te": own.learn_time_embedding,
            **_common(own),
        }
        torch.manual_seed(0)
        self.tokenizer = package.KronosTokenizer(**tokenizer_config).eval().to(device)
        self.predictor = package.Kronos(**predictor_config).eval().to(device)
        self.ours = (
            tokenizer_module.KronosTokenizer(sizes.tokenizer).eval(),
            predictor_module.KronosPredictor(sizes.predictor).eval(),
        )
        checkpoints.load_released_tokenizer(self.ours[0], self.tokenizer.cpu().state_dict())
        checkpoints.load_released_predictor(self.ours[1], self.predictor.cpu().state_dict())
        self.tokenizer.to(device), self.predictor.to(device)
        self.ours = tuple(network.to(device) for network in self.ours)

    def generate(self, windows: int, paths: int, device: torch.device, top_k: int = 0) -> Any:
        """The original's bars, the mean over paths."""
        context, stamps = inputs(windows, CONTEXT, HORIZON, device)
        known, ahead = stamps[:, :CONTEXT].float(), stamps[:, CONTEXT:].float()
        return self.infer(
            self.tokenizer,
            self.predictor,
            context,
            known,
            ahead,
            512,
            HORIZON,
            top_k=top_k,
            top_p=1.0,
            sample_count=paths,
        )[:, -HORIZON:]

    def check(self, device: torch.device) -> None:
        """End the run if greedy bars differ: one other token moves a bar by far more."""
        context, stamps = inputs(1, CONTEXT, HORIZON, device)
        mine = generation.generate(
            *self.ours,
            context,
            stamps,
            n=HORIZON,
            max_context=512,
            sampling=generation.Sampling(top_k=1),
        )[0]
        theirs = torch.from_numpy(self.generate(1, 1, device, top_k=1))
        if not torch.allclose(mine.cpu(), theirs, rtol=1e-3, atol=1e-3):
            sys.exit("No time is reported: greedy bars differ from the original's.")


def _checkpoints() -> Any:
    return importlib.import_module("darts_kronos.checkpoints")


def _common(own: Any) -> dict[str, Any]:
    same = ("d_model", "n_heads", "ff_dim", "s1_bits", "s2_bits")
    dropouts = ("ffn_dropout", "attn_dropout", "resid_dropout")
    return {name: getattr(own, name) for name in same} | {
        f"{name}_p": getattr(own, name) for name in dropouts
    }


def weight_bytes(predictor: Any, precision: str) -> int:
    """Bytes of weights that a step reads."""
    parts = (
        *predictor.transformer.blocks,
        predictor.s2_conditioning,
        predictor.s1_head,
        predictor.s2_head,
    )
    size = 2 if precision == "bf16" else 4
    return sum(p.numel() for part in parts for p in part.parameters()) * size


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", default=["mini", "small", "base"])
    parser.add_argument("--shapes", nargs="+", default=["1x1", "8x10", "64x100"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--original", type=Path, help="folder that holds kronos_model")
    parser.add_argument("--no-training", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    peak = bandwidth(device)
    print(f"{name}, torch {torch.__version__}, read bandwidth {peak / 1e9:.0f} GB/s", flush=True)
    print("| case | s | bars/s | original s | ratio | weights GB/s | share of bandwidth |")
    print("|---|---|---|---|---|---|---|")
    for size in args.sizes:
        original = None if args.original is None else Original(args.original, size, device)
        if original is not None:
            original.check(device)
            networks = original.ours
        else:
            sizes = config.size_named(size)
            torch.manual_seed(0)
            networks = (
                tokenizer_module.KronosTokenizer(sizes.tokenizer).eval().to(device),
                predictor_module.KronosPredictor(sizes.predictor).eval().to(device),
            )
        for shape in args.shapes:
            windows, paths = map(int, shape.split("x"))
            theirs = None
            if original is not None:
                call = partial(original.generate, windows, paths, device)
                theirs = seconds_of(call, device, 1)
            for precision in ("fp32", "bf16"):
                run = generate(networks, windows, paths, precision, device)
                mine = seconds_of(run, device, args.repeats)
                rate = weight_bytes(networks[1], precision) * HORIZON / mine
                print(
                    f"| {size} {shape} {precision} | {mine:.3f} "
                    f"| {windows * paths * HORIZON / mine:,.0f} "
                    f"| {'–' if theirs is None else f'{theirs:.2f}'} "
                    f"| {'–' if theirs is None else f'{theirs / mine:.1f}'} "
                    f"| {rate / 1e9:.1f} | {rate / peak:.2f} |",
                    flush=True,
                )
        if args.no_training:
            continue
        for precision in ("fp32", "bf16"):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            mine = seconds_of(train(networks[1], precision, device), device, args.repeats)
            held = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
            print(
                f"| {size} training {BATCH} x {WINDOW} {precision}, {held:.1f} GiB | {mine:.3f} "
                f"| {BATCH * (WINDOW - 1) / mine:,.0f} | – | – | – | – |",
                flush=True,
            )


if __name__ == "__main__":
    main()
