"""Paths in pairs, each with its opposite about the last close."""

import numpy as np
import pytest
from factories import GREEDY, candles, tiny_model

OPTIONS = {"n": 6, "random_state": 7, "show_warnings": False}


@pytest.fixture(scope="module", params=["returns", "window"])
def fitted(request):
    return tiny_model(representation=request.param).fit(candles(120))


def drawn(model, antithetic, num_samples, **changes):
    """Prices over the last close, (n, 4, S), and volumes, (n, 2, S)."""
    model.set_sampling(antithetic=antithetic, **changes)
    values = model.predict(num_samples=num_samples, **OPTIONS).all_values()
    last = model.training_series["close"].last_value()
    return values[:, :4] / last, values[:, 4:]


def test_half_of_the_paths_are_drawn_and_the_others_are_their_opposites(fitted):
    alone, volumes = drawn(fitted, False, 4)
    paired, paired_volumes = drawn(fitted, True, 8)
    np.testing.assert_array_equal(paired[..., :4], alone)
    opened, high, low, close = paired[..., 4:].transpose(1, 0, 2)
    if fitted.model.representation.name == "returns":
        opposite = 1 / alone
    else:
        opposite = 2 - alone
    for found, price in zip((opened, high, low, close), (0, 2, 1, 3), strict=True):
        np.testing.assert_allclose(found, opposite[:, price], rtol=1e-9)
    # Volume is not turned.
    np.testing.assert_array_equal(paired_volumes[..., 4:], volumes)


def test_no_direction_is_forecast_and_candles_stay_valid(fitted):
    paths, _ = drawn(fitted, True, 50)
    np.testing.assert_allclose(np.median(paths[:, 3], axis=-1), 1.0, rtol=1e-3)
    opened, high, low, close = paths.transpose(1, 0, 2)
    assert (high >= np.maximum(opened, close)).all()
    assert (low <= np.minimum(opened, close)).all()
    assert (low > 0).all()


def test_the_median_of_pairs_is_the_last_close(fitted):
    before = fitted.sampling
    fitted.set_sampling(antithetic=True, point_forecast="median", num_point_samples=100)
    last = fitted.training_series["close"].last_value()
    close = fitted.predict(**OPTIONS)["close"].values() / last
    fitted.set_sampling(**before)
    np.testing.assert_allclose(close, 1.0, rtol=1e-3)


def test_an_odd_number_and_a_single_path_are_possible(fitted):
    odd, _ = drawn(fitted, True, 5)
    assert odd.shape[-1] == 5
    paired, _ = drawn(fitted, True, 6)
    np.testing.assert_array_equal(odd, paired[..., :5])
    one, _ = drawn(fitted, True, 1, point_forecast="sample")
    alone, _ = drawn(fitted, False, 1)
    fitted.set_sampling(point_forecast="mean")
    np.testing.assert_array_equal(one, alone)


def test_a_greedy_path_has_no_opposite(fitted):
    before = fitted.sampling
    greedy, _ = drawn(fitted, False, 2, **GREEDY)
    same, _ = drawn(fitted, True, 2, **GREEDY)
    fitted.set_sampling(**before)
    np.testing.assert_array_equal(greedy, same)


def test_a_lower_temperature_still_narrows_forecasts(fitted):
    narrow, _ = drawn(fitted, True, 100, temperature=0.3)
    wide, _ = drawn(fitted, True, 100, temperature=2.0)
    fitted.set_sampling(temperature=1.0)
    assert narrow[-1, 3].std() < wide[-1, 3].std()


def test_series_without_a_close_are_refused_before_training():
    prices = candles(120)["close"].with_columns_renamed("close", "spread")
    with pytest.raises(ValueError, match="`antithetic=True` needs candles"):
        tiny_model(antithetic=True).fit(prices)
    model = tiny_model().fit(prices)
    with pytest.raises(ValueError, match=r"the components are \['spread'\]"):
        model.set_sampling(antithetic=True)
    assert not model.sampling["antithetic"]


def test_without_an_open_high_and_low_are_exchanged_too():
    model = tiny_model(antithetic=True).fit(candles(120)[["high", "low", "close"]])
    turned = model.predict(num_samples=8, **OPTIONS).all_values()[..., 4:]
    model.set_sampling(antithetic=False)
    alone = model.predict(num_samples=4, **OPTIONS).all_values()
    last = model.training_series.last_values()
    for place, other in ((0, 1), (1, 0), (2, 2)):
        assert np.sign(turned[0, place] - last[2]) == pytest.approx(
            -np.sign(alone[0, other] - last[2])
        )
