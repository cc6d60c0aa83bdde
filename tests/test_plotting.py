import numpy as np
import pytest
from factories import candles, tiny_model
from matplotlib.figure import Figure

from darts_kronos import plotting


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
    assert len(volumes.patches) == 38
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


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
