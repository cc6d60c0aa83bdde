import numpy as np
import pytest
import torch
from factories import COMPONENTS, candle_frame

from darts_kronos.representation import representation_named

CONTEXT, HORIZON = 40, 8


def windows(n=3):
    frames = [candle_frame(CONTEXT + HORIZON, seed).to_numpy() for seed in range(n)]
    return torch.from_numpy(np.stack(frames))


def around(bars, name, components=COMPONENTS, clip=1e9):
    representation = representation_named(name, components, clip)
    normalised, statistics = representation.encode(bars, CONTEXT)
    return normalised, representation.decode(normalised[None, :, CONTEXT:], statistics)[0]


@pytest.mark.parametrize("name", ["window", "returns"])
def test_the_horizon_survives_the_round_trip(name):
    bars = windows()
    normalised, back = around(bars, name)
    assert normalised.dtype == torch.float32
    assert back.dtype == torch.float64
    torch.testing.assert_close(back, bars[:, CONTEXT:], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["window", "returns"])
def test_the_horizon_does_not_reach_the_context(name):
    bars = windows()
    changed = bars.clone()
    changed[:, CONTEXT:] *= 1.5
    representation = representation_named(name, COMPONENTS, 5.0)
    one, statistics = representation.encode(bars, CONTEXT)
    other, of_changed = representation.encode(changed, CONTEXT)
    assert torch.equal(one[:, :CONTEXT], other[:, :CONTEXT])
    for a, b in zip(statistics, of_changed, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


def test_window_is_mean_and_population_deviation_as_released():
    bars = windows()
    normalised, _ = around(bars, "window", clip=5.0)
    context = bars[:, :CONTEXT].numpy()
    expected = (bars.numpy() - context.mean(1, keepdims=True)) / (
        context.std(1, keepdims=True) + 1e-5
    )
    np.testing.assert_allclose(normalised, np.clip(expected, -5, 5), rtol=1e-5, atol=1e-6)


def test_returns_are_over_the_previous_close_in_units_of_volatility():
    bars = windows(1)
    normalised, _ = around(bars, "returns")
    logs = bars[0, :, :4].log().numpy()
    close_returns = np.diff(logs[:CONTEXT, 3])
    scale = close_returns.std()
    for bar in (1, CONTEXT - 1, CONTEXT + 3):
        expected = (logs[bar] - logs[bar - 1, 3]) / scale
        np.testing.assert_allclose(normalised[0, bar, :4], expected, rtol=1e-5, atol=1e-6)
    assert normalised[0, 0, 0] == 0  # the first bar's previous close is its own open
    volume = np.log1p(bars[0, :, 4].numpy())
    np.testing.assert_allclose(
        normalised[0, :, 4],
        (volume - volume[:CONTEXT].mean()) / volume[:CONTEXT].std(),
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("value", [0.0, 1234.5])
def test_a_constant_volume_is_zero_and_comes_back_as_itself(value):
    bars = windows()
    bars[..., 4:] = value
    normalised, back = around(bars, "returns")
    assert (normalised[..., 4:] == 0).all()
    torch.testing.assert_close(back[..., 4:], bars[:, CONTEXT:, 4:], rtol=1e-9, atol=1e-9)


def test_a_column_that_is_constant_in_the_context_alone_is_zero_throughout():
    bars = windows()
    bars[:, :CONTEXT, 5] = 0.0
    normalised, _ = around(bars, "returns", clip=5.0)
    assert (normalised[..., 5] == 0).all()


def test_zero_volume_in_single_bars_is_finite():
    bars = windows()
    bars[:, ::7, 4] = 0.0
    normalised, back = around(bars, "returns")
    assert torch.isfinite(normalised).all()
    torch.testing.assert_close(back, bars[:, CONTEXT:], rtol=1e-4, atol=1e-4)


def test_a_standstill_of_all_prices_forecasts_a_standstill():
    bars = windows()
    bars[..., :4] = 7.0
    normalised, _ = around(bars, "returns")
    assert (normalised[..., :4] == 0).all()
    representation = representation_named("returns", COMPONENTS, 5.0)
    _, statistics = representation.encode(bars, CONTEXT)
    paths = representation.decode(torch.randn(4, 3, HORIZON, 6), statistics)
    torch.testing.assert_close(paths[..., :4], torch.full_like(paths[..., :4], 7.0))


def test_values_are_clipped():
    bars = windows()
    bars[:, CONTEXT + 1, :4] *= 3
    for name in ("window", "returns"):
        normalised, _ = around(bars, name, clip=2.5)
        assert normalised.abs().max() == 2.5


def test_float32_prices_of_a_large_level_keep_their_returns():
    # Statistics in float32 would lose these: the level is 10^7 ticks.
    bars = windows(1)
    bars[..., :4] = 1e5 + bars[..., :4]
    normalised, _ = around(bars, "window")
    assert abs(normalised[0, :CONTEXT, 3].mean().item()) < 1e-5
    assert normalised[0, :CONTEXT, 3].std(correction=0).item() == pytest.approx(1, abs=1e-4)


def test_other_components_are_scaled_by_the_window():
    bars = torch.cat((windows(), torch.randn(3, CONTEXT + HORIZON, 1, dtype=torch.float64)), -1)
    normalised, back = around(bars, "returns", [*COMPONENTS, "funding"])
    torch.testing.assert_close(back, bars[:, CONTEXT:], rtol=1e-5, atol=1e-6)
    assert normalised[0, :CONTEXT, 6].std(correction=0).item() == pytest.approx(1, abs=1e-4)


class TestValidCandles:
    def paths(self):
        torch.manual_seed(0)
        context = windows(2)[:, :CONTEXT]
        wild = context[None, :, -HORIZON:] * (1 + torch.randn(5, 2, HORIZON, 6).double())
        return wild, context

    def test_high_and_low_become_the_extremes_and_nothing_is_negative(self):
        wild, context = self.paths()
        valid = representation_named("window", COMPONENTS, 5.0).valid(wild, context)
        prices = valid[..., :4]
        assert (prices > 0).all()
        assert torch.equal(valid[..., 1], prices.amax(-1))
        assert torch.equal(valid[..., 2], prices.amin(-1))
        assert (valid[..., 4:] >= 0).all()

    def test_valid_candles_stay_as_they_are(self):
        _, context = self.paths()
        paths = context[None, :, -HORIZON:]
        valid = representation_named("window", COMPONENTS, 5.0).valid(paths, context)
        assert torch.equal(valid, paths)

    def test_prices_may_be_negative_where_the_context_is(self):
        wild, context = self.paths()
        context[:, 3, 2] = -1.0
        valid = representation_named("window", COMPONENTS, 5.0).valid(wild - 500, context)
        assert (valid[..., 3] < 0).any()

    @pytest.mark.parametrize(
        "names", [["high", "low", "close"], ["open", "high", "low"], ["high", "close"]]
    )
    def test_a_subset_of_prices_is_in_order(self, names):
        wild, context = self.paths()
        columns = [COMPONENTS.index(name) for name in names]
        representation = representation_named("window", names, 5.0)
        valid = representation.valid(wild[..., columns], context[..., columns])
        assert (valid[..., names.index("high")] == valid.amax(dim=-1)).all()
        if "low" in names:
            assert (valid[..., names.index("low")] == valid.amin(dim=-1)).all()
        same = [i for i, name in enumerate(names) if name in ("open", "close")]
        kept = wild[..., [columns[i] for i in same]]
        torch.testing.assert_close(valid[..., same], kept.maximum(valid[..., same]))

    def test_a_subset_of_prices_is_kept_positive_without_an_order(self):
        wild, context = self.paths()
        representation = representation_named("window", ["close", "volume"], 5.0)
        columns = [3, 4]
        valid = representation.valid(wild[..., columns], context[..., columns])
        assert (valid[..., 0] > 0).all()
        assert (valid[..., 1] >= 0).all()


def test_when_returns_lack_prices_then_the_error_names_the_components():
    with pytest.raises(ValueError, match="open, high, low and close"):
        representation_named("returns", ["close", "volume"], 5.0)


def test_when_the_representation_is_unknown_then_they_are_named():
    with pytest.raises(ValueError, match="'window', 'returns'"):
        representation_named("logs", COMPONENTS, 5.0)


@pytest.mark.parametrize("name", ["window", "returns"])
def test_bars_read_back_unchanged_are_themselves(name):
    bars = torch.from_numpy(candle_frame(40).to_numpy())[None]
    representation = representation_named(name, COMPONENTS, clip=1e6)
    normalised, statistics = representation.encode(bars, 30)
    torch.testing.assert_close(representation.read_back(normalised, bars, statistics), bars)


def test_returns_are_read_back_over_the_actual_close_before_them():
    bars = torch.from_numpy(candle_frame(40).to_numpy())[None]
    representation = representation_named("returns", COMPONENTS, clip=1e6)
    normalised, statistics = representation.encode(bars, 30)
    wrong = normalised.clone()
    wrong[:, 20] += 3.0
    back = representation.read_back(wrong, bars, statistics)
    assert not torch.allclose(back[:, 20], bars[:, 20])
    torch.testing.assert_close(back[:, 21:], bars[:, 21:])


@pytest.mark.parametrize("name", ["window", "returns"])
def test_a_mirrored_window_is_a_valid_market_upside_down(name):
    bars = windows(1)
    representation = representation_named(name, COMPONENTS, clip=1e9)
    normalised, statistics = representation.encode(bars, CONTEXT)
    turned = representation.mirrored(normalised)
    torch.testing.assert_close(representation.mirrored(turned), normalised)
    torch.testing.assert_close(turned[..., 4:], normalised[..., 4:])
    torch.testing.assert_close(turned[..., 3], -normalised[..., 3])
    if name == "returns":
        seen = representation.decode(normalised[None, :, CONTEXT:], statistics)[0, 0]
        mirrored = representation.decode(turned[None, :, CONTEXT:], statistics)[0, 0]
        last = bars[0, CONTEXT - 1, 3]
        # A price that rose by a factor falls by it, so highs are lows.
        torch.testing.assert_close(
            seen[:, 3] * mirrored[:, 3] / last**2, torch.ones(HORIZON).double()
        )
        torch.testing.assert_close(
            seen[:, 1] * mirrored[:, 2] / last**2, torch.ones(HORIZON).double()
        )
        assert (mirrored[:, 1] >= mirrored[:, :4].amax(dim=-1) * (1 - 1e-12)).all()


def test_a_mirrored_close_alone_is_negated():
    representation = representation_named("window", ["close", "other"], clip=5.0)
    bars = torch.randn(2, 10, 2, dtype=torch.float64)
    turned = representation.mirrored(bars)
    torch.testing.assert_close(turned[..., 0], -bars[..., 0])
    torch.testing.assert_close(turned[..., 1], bars[..., 1])
