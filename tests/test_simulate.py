import numpy as np
import pytest
from factories import COMPONENTS, tiny_model

from darts_kronos.simulate import simulate_candles


@pytest.fixture(scope="module", params=["garch", "stochastic_volatility"])
def simulated(request):
    return simulate_candles(6, 4000, market=request.param, seed=3)


def returns_of(series):
    return np.diff(np.log(series["close"].values()[:, 0]))


def test_they_are_valid_candles(simulated):
    for series in simulated:
        assert list(series.components) == COMPONENTS
        bars = series.values()
        assert np.isfinite(bars).all() and (bars > 0).all()
        np.testing.assert_array_equal(bars[:, 1], bars[:, :4].max(axis=1))
        np.testing.assert_array_equal(bars[:, 2], bars[:, :4].min(axis=1))
        np.testing.assert_allclose(bars[:, 5], bars[:, 4] * bars[:, :4].mean(axis=1))


def test_volatility_clusters_and_tails_are_heavy_but_returns_are_not_forecastable(simulated):
    clustering, kurtosis, direction = [], [], []
    for series in simulated:
        r = returns_of(series)
        r = r / r.std()
        clustering.append(np.corrcoef(np.abs(r[1:]), np.abs(r[:-1]))[0, 1])
        kurtosis.append((r**4).mean())
        direction.append(np.corrcoef(r[1:], r[:-1])[0, 1])
    assert np.median(clustering) > 0.05
    assert np.median(kurtosis) > 4
    assert abs(np.mean(direction)) < 0.03


def test_volume_rises_with_volatility(simulated):
    together = [
        np.corrcoef(np.abs(returns_of(one)), np.log(one["volume"].values()[1:, 0]))[0, 1]
        for one in simulated
    ]
    assert np.mean(together) > 0.1


def test_a_seed_repeats_each_series_whatever_their_number():
    few, many = simulate_candles(2, 50, seed=1), simulate_candles(5, 50, seed=1)
    assert few == many[:2]
    assert few != simulate_candles(2, 50, seed=2)
    assert few[0] != few[1]


def test_a_model_trains_on_them_and_goes_on_with_real_ones():
    model = tiny_model().fit(simulate_candles(2, 80), stride=4)
    model.fit(simulate_candles(1, 60, seed=9), retrain_tokenizer=True)
    assert model.predict(3).n_timesteps == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_series": 0}, "`n_series` must be an integer >= 1, got 0"),
        ({"n_bars": 1.5}, "`n_bars` must be an integer"),
        ({"market": "bull"}, "'both', got 'bull'"),
    ],
)
def test_bad_parameters_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        simulate_candles(**wrong)
