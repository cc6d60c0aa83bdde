"""Paths that start from the last close, and not from what the tokenizer makes of it."""

import numpy as np
import torch
from factories import TINY, candles, tiny_model


def test_anchored_window_paths_start_from_the_last_close():
    series = candles(140)
    model = tiny_model(representation="window", valid_candles=False).fit(series[:120])
    context = series[:120]
    options = {"n": 3, "num_samples": 4, "random_state": 7, "show_warnings": False}
    loose = model.predict(series=context, **options).all_values()
    model.set_sampling(anchor=True)
    anchored = model.predict(series=context, **options).all_values()
    # What the tokenizer made of the last bar of the context.
    bars = torch.tensor(context.values()[None, -model.input_chunk_length :])
    module = model.model.eval()
    normalised, statistics = module.representation.encode(bars, bars.shape[1])
    with torch.no_grad():
        rebuilt = module.tokenizer.decode(*module.tokenizer.encode(normalised))
    close = module.representation.decode(rebuilt[None], statistics)[0, 0, -1, 3].item()
    gap = context["close"].last_value() - close
    assert abs(gap) > 1e-6
    np.testing.assert_allclose(anchored[:, :4] - loose[:, :4], gap, rtol=1e-6)
    np.testing.assert_allclose(anchored[:, 4:], loose[:, 4:])


def test_paths_of_returns_need_no_anchor():
    series = candles(140)
    model = tiny_model().fit(series[:120])
    options = {"n": 3, "num_samples": 4, "random_state": 7}
    loose = model.predict(**options)
    assert model.set_sampling(anchor=True).predict(**options) == loose


def test_the_anchor_is_made_in_full_precision(monkeypatch):
    trainer = TINY["pl_trainer_kwargs"] | {"precision": "bf16-mixed"}
    model = tiny_model(representation="window", anchor=True, pl_trainer_kwargs=trainer)
    model.fit(candles(60))
    seen = []
    decode = model.model.tokenizer.decode
    monkeypatch.setattr(
        model.model.tokenizer,
        "decode",
        lambda *tokens: (seen.append(torch.is_autocast_enabled("cpu")), decode(*tokens))[1],
    )
    model.predict(3)
    assert seen == [False]
