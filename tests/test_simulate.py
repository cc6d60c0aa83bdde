import numpy as np
import pytest
import torch
from factories import COMPONENTS, candles, tiny_model

from darts_kronos.simulate import pretrain, simulate_candles


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
        ({"seed": -1}, "`seed` must be an integer >= 0, got -1"),
        ({"seed": None}, "`seed` must be an integer >= 0, got None"),
    ],
)
def test_bad_parameters_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        simulate_candles(**wrong)


class TestPretrain:
    SHORT = {"n_series": 2, "n_bars": 60, "stride": 8, "epochs": 1}

    def test_a_pretrained_model_goes_on_with_real_candles(self):
        model = tiny_model()
        assert pretrain(model, seed=1, **self.SHORT) is model
        tokenizer = {k: v.clone() for k, v in model.model.tokenizer.state_dict().items()}
        predictor = model.model.predictor.s1_head.weight.clone()
        model.fit(candles(80))
        assert list(model.training_history["stage"]).count("tokenizer") == 1
        for name, value in model.model.tokenizer.state_dict().items():
            assert torch.equal(value, tokenizer[name])
        assert not torch.equal(model.model.predictor.s1_head.weight, predictor)
        assert model.predict(3, num_samples=5).n_components == 6

    def test_the_components_are_those_of_the_series_to_come(self):
        prices = ["open", "high", "low", "close"]
        model = pretrain(tiny_model(), components=prices, **self.SHORT)
        model.fit(candles(80)[prices])
        assert model.predict(3).n_components == 4

    def test_a_fitted_model_is_refused(self):
        model = pretrain(tiny_model(), **self.SHORT)
        with pytest.raises(ValueError, match="Only a new model"):
            pretrain(model, **self.SHORT)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"components": ["close", "bid"]},
            {"components": []},
            {"components": ["close", "close"]},
            {"epochs": 0},
            {"n_bars": 5},
            {"n_series": 0},
            {"seed": None},
        ],
    )
    def test_bad_values_are_refused_before_training(self, wrong):
        model = tiny_model()
        with pytest.raises(ValueError):
            pretrain(model, **(self.SHORT | wrong))
        assert model.model is None
