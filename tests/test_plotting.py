import numpy as np
import pandas as pd
import pytest
from factories import COMPONENTS, candle_frame, candles, tiny_model
from matplotlib.figure import Figure

from darts_kronos import candles as read_candles
from darts_kronos import plotting
from darts_kronos.reconstruction import reconstruct


@pytest.fixture(scope="module", params=["h", None], ids=["timestamps", "range"])
def drawn(request):
    series = candles(80, freq=request.param)
    return series, tiny_model().fit(series[:60]).predict(8, num_samples=30)


def test_the_figure_shows_history_fan_and_what_came(drawn, tmp_path):
    series, forecast = drawn
    figure = plotting.plot_forecast(series[30:60], forecast, actual=series[60:], n_paths=3)
    assert isinstance(figure, Figure)
    prices, volumes = figure.axes
    low, high = prices.get_xlim()
    assert low < 0 and high > 37  # 30 bars of history, 8 of forecast, side by side
    median = np.median(forecast["close"].all_values()[:, 0], axis=1)
    lines = [line for line in prices.get_lines() if line.get_label() == "median close"]
    np.testing.assert_allclose(lines[0].get_ydata()[1:], median)
    assert lines[0].get_ydata()[0] == series["close"].values()[59, 0]
    assert len(volumes.patches) == 30 + 8 + 8  # history, median forecast, what came
    # Median candles stand in the forecast, and the actual ones over them.
    labels = prices.get_legend_handles_labels()[1]
    assert {"50% of paths", "90% of paths", "median candles", "what came"} <= set(labels)
    assert len(labels) == len(set(labels))
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_bars_of_the_history_from_the_forecast_on_are_left_out(drawn):
    series, forecast = drawn
    whole, short = (plotting.plot_forecast(one, forecast) for one in (series, series[:60]))
    for one, other in zip(whole.axes, short.axes, strict=True):
        assert one.get_xlim() == other.get_xlim() and one.get_ylim() == other.get_ylim()
    with pytest.raises(ValueError, match="begins before the history"):
        plotting.plot_forecast(series[60:], forecast)


def test_without_volume_there_is_one_pane(drawn):
    series, forecast = drawn
    prices = ["open", "high", "low", "close"]
    figure = plotting.plot_forecast(series[30:60][prices], forecast[prices], title="prices")
    assert [axes.get_title() for axes in figure.axes] == ["prices"]


def test_no_global_state_is_touched(drawn):
    import matplotlib.pyplot as plt

    plotting.plot_forecast(drawn[0][30:60], drawn[1])
    assert plt.get_fignums() == []


def test_when_prices_are_missing_then_the_components_are_named(drawn):
    series, forecast = drawn
    with pytest.raises(ValueError, match="history must have the components open, high, low, close"):
        plotting.plot_forecast(series[["close"]], forecast)


@pytest.fixture(scope="module")
def gappy():
    """Candles of a market with nights, and a model of them."""
    frame = candle_frame(600)
    frame = frame[(frame.index.hour >= 9) & (frame.index.hour < 16) & (frame.index.weekday < 5)]
    series = read_candles.from_dataframe(frame)
    model = tiny_model(n_epochs=2, n_epochs_tokenizer=15)
    return series, model.fit(series[:100], val_series=series[60:])


def test_the_time_axis_has_labels_of_the_bars_own_times_and_no_holes(gappy):
    series, model = gappy
    forecast = model.predict(8, series[:80], num_samples=20)
    figure = plotting.plot_forecast(series[40:80], forecast)
    axes = figure.axes[-1]
    times = read_candles.timestamps(series[40:88])
    ticks = axes.get_xticks()
    assert len(ticks) >= 2
    for tick, label in zip(ticks, axes.get_xticklabels(), strict=True):
        assert label.get_text() == f"{times[int(tick)]:%Y-%m-%d}"
        assert times[int(tick)].hour == 9
    bars = sorted(patch.get_x() + patch.get_width() / 2 for patch in axes.patches)
    np.testing.assert_allclose(bars, np.arange(48))


def test_the_reconstruction_shows_both_readings_and_the_codebooks(gappy):
    series, model = gappy
    found = reconstruct(model, series, 12)
    assert found.actual == series[-12:]
    assert found.coarse.components.equals(series.components)
    # Every bar that has a context is counted once, but for the remainder of the division.
    counted = (len(series) - 24) // 12 * 12
    assert found.s1_counts.shape == (16,) and found.s1_counts.sum() == counted
    assert found.s2_counts.shape == (8,) and found.s2_counts.sum() == counted
    figure = plotting.plot_reconstruction(model, series, 12, title="bars")
    coarse, both, s1, s2 = figure.axes
    used = int((found.s1_counts > 0).sum())
    assert f"{used} of 16 entries" in s1.get_title()
    error = np.abs(found.both["close"].values() / series["close"].values()[-12:] - 1).mean()
    assert f"{error:.2%}" in both.get_title()


def test_the_reconstruction_does_not_depend_on_the_order_of_components(gappy):
    series, model = gappy
    straight = reconstruct(model, series, 12)
    turned = reconstruct(model, series[COMPONENTS[::-1]], 12)
    np.testing.assert_array_equal(turned.both[COMPONENTS].values(), straight.both.values())


def test_a_tokenizer_that_learned_reads_back_better_than_one_that_did_not(gappy):
    series, trained = gappy
    untrained = tiny_model(tokenizer_optimizer_kwargs={"lr": 1e-9}).fit(series[:100])

    def error(model):
        found = reconstruct(model, series, 12)
        return np.abs(np.log(found.both["close"].values() / found.actual["close"].values())).mean()

    assert error(trained) < 0.9 * error(untrained)


def test_the_reconstruction_needs_a_fitted_model_and_enough_bars(gappy):
    series, model = gappy
    with pytest.raises(ValueError, match="fit or load it first"):
        plotting.plot_reconstruction(tiny_model(), series)
    with pytest.raises(ValueError, match="leave 24 bars of context before them, got 12 of 30"):
        plotting.plot_reconstruction(model, series[:30], 12)
    with pytest.raises(ValueError, match="must have the components"):
        plotting.plot_reconstruction(model, series["close"], 12)


def test_training_curves_have_a_panel_with_an_explanation_for_each_value(gappy):
    model = gappy[1]
    figure = plotting.plot_training(model)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert {"tokenizer: vq_loss", "predictor: s2_loss", "tokenizer: recon_loss_s1"} <= set(panels)
    vq = panels["tokenizer: vq_loss"]
    assert "may be negative" in vq.get_xlabel().replace("\n", " ")
    history = model.training_history
    for line, role in zip(vq.get_lines(), ("train", "val"), strict=True):
        expected = history.loc[history["stage"] == "tokenizer", f"{role}_vq_loss"]
        np.testing.assert_array_equal(line.get_ydata(), expected)
    with pytest.raises(ValueError, match="fit the model first"):
        plotting.plot_training(tiny_model())


def test_bodies_are_as_tall_as_bars_move_on_any_scale():
    for scale, shift in ((1e-5, 1.1), (1.0, 100.0), (1.0, -100.0)):
        opened = pd.Series([0.0, 1.0, 3.0, 2.0]) * scale + shift
        bars = pd.DataFrame({"open": opened, "close": opened + [scale, 2 * scale, -scale, 0]})
        bars["high"] = bars.max(axis=1) + 0.1 * scale
        bars["low"] = bars[["open", "close"]].min(axis=1) - 0.1 * scale
        axes = Figure().subplots()
        plotting._draw_candles(axes, np.arange(4), bars)
        heights = {round(one.get_x() + 0.35): one.get_height() for one in axes.patches}
        found = [heights[i] for i in range(4)]
        np.testing.assert_allclose(found[:3], [scale, 2 * scale, scale], rtol=1e-3)
        assert 0 < found[3] < 0.01 * scale


def test_the_reconstruction_refuses_prices_that_are_no_prices():
    model = tiny_model().fit(candles(60))
    wrong = candles(60)
    values = wrong.values().copy()
    values[50, 3] = 0.0
    with pytest.raises(ValueError, match="not above 0, as prices must be for returns: 'close'"):
        reconstruct(model, wrong.with_values(values), 6)


@pytest.mark.parametrize("n_bars", [0, 1.5, True])
def test_the_number_of_reconstructed_bars_is_an_integer(gappy, n_bars):
    series, model = gappy
    with pytest.raises(ValueError, match="`n_bars` must be an integer >= 1"):
        reconstruct(model, series, n_bars)
