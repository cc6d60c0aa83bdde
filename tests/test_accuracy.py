"""The accuracy benchmark by hand: its parts, windows, measures and tests."""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from darts import TimeSeries
from evaluation import baselines, data, learned, measures, report
from factories import candles
from scipy import stats

RNG = np.random.default_rng(0)


def scores(closes, came, contexts=None):
    """Scores of paths of the close (W, n, S), all windows from a last close of 1."""
    closes, came = np.asarray(closes, dtype=float), np.asarray(came, dtype=float)
    if contexts is None:
        contexts = np.exp(0.01 * RNG.standard_normal((len(came), 30, 4)))
        contexts[:, -1] = 1.0
    return measures.score(closes[:, :, None], contexts, np.repeat(came[..., None], 4, axis=2))


class TestParts:
    @pytest.fixture(scope="class")
    def series(self):
        return candles(1000)

    @pytest.fixture(scope="class")
    def pool(self, series):
        frame = series.to_dataframe()
        pools, calendars = {"one": {"A": lambda: frame}}, {"one": None}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(data, "POOLS", pools)
            patch.setattr(data, "_CALENDARS", calendars)
            yield data.load("one")

    def test_an_embargo_of_one_horizon_lies_between_targets(self, pool, series):
        index = series.time_index
        (train,), (val,), (test,) = pool.train, pool.val, pool.test
        assert train.end_time() == index[599] and val.end_time() == index[799]
        assert test.end_time() == index[-1]
        for before, after in pairwise((train, val, test)):
            first_target = after.time_index[data.CONTEXT]
            assert index.get_loc(first_target) == index.get_loc(before.end_time()) + 13

    def test_windows_are_contexts_and_the_bars_that_follow(self):
        values = np.arange(300.0)
        series = TimeSeries.from_values(values)
        contexts, futures = data.windows(series, 4)
        assert contexts.shape == (49, 96, 1) and futures.shape == (49, 12, 1)
        np.testing.assert_array_equal(contexts[3, :, 0], values[12:108])
        np.testing.assert_array_equal(futures[3, :, 0], values[108:120])


def test_returns_become_prices_from_the_close_before_the_first_target():
    # The benchmark's candles are numbered; their times are in the metadata.
    series = candles(200, freq=None)[data.PRICES]
    fitted = learned.Fitted.__new__(learned.Fitted)
    fitted.candidate = learned.Candidate("LSTM", "returns")
    fitted.whole, fitted.scaler, fitted.scale = True, None, 50.0
    (seen,) = fitted._seen([series])
    # The true bars as forecasts: what comes back are the prices that came.
    forecasts = [seen[start : start + 12] for start in (95, 99)]
    paths = fitted._in_prices(forecasts, 0, series)
    for forecast, found in zip(forecasts, paths, strict=True):
        came = series.slice_intersect(forecast).values()
        np.testing.assert_allclose(found[..., 0], came, rtol=1e-9)


class TestOwnReturns:
    """Returns over the volatility of each context, as baselines may see them."""

    @pytest.fixture
    def fitted(self):
        fitted = learned.Fitted.__new__(learned.Fitted)
        fitted.candidate = learned.Candidate("LSTM", "own returns")
        fitted.whole, fitted.scaler, fitted.scale = True, None, 1.0
        return fitted

    @pytest.fixture
    def series(self):
        # The benchmark's candles are numbered, and grow wilder here.
        return candles(200, freq=None)[data.PRICES].map(lambda x: 100 * (x / 100) ** 1.5)

    def test_each_window_is_over_the_volatility_of_its_context_alone(self, fitted, series):
        (seen,) = fitted._seen([series])
        contexts, _ = data.windows(series, 7)
        found, volatility = learned._own_windows(seen, 7, data.CONTEXT - 1)
        assert len(found) == len(contexts) == len(volatility)
        for one, context, size in zip(found, np.log(contexts), volatility, strict=True):
            returns = context[1:] - context[:-1, -1:]
            assert size == pytest.approx(returns[:, -1].std())
            np.testing.assert_allclose(one.values(), returns / size, rtol=1e-9)

    def test_contexts_that_stand_still_are_not_scaled(self):
        for returns in (np.zeros((120, 4)), np.full((120, 4), np.log(1.01))):
            _, volatility = learned._own_windows(TimeSeries.from_values(returns), 4, 95)
            assert (volatility == 1).all()

    @pytest.mark.parametrize("model", ["LSTM", "TFT", "LightGBM"])
    def test_models_learn_each_window_with_its_horizon(self, fitted, model):
        series = candles(200)[data.PRICES]
        fitted.candidate, fitted.whole = (
            learned.Candidate(model, "own returns"),
            model != "LightGBM",
        )
        windows, stamps = fitted._to_learn([series, series[:150]])
        assert len(windows) == 200 - 107 + 150 - 107
        assert {len(one) for one in windows} == {data.CONTEXT - 1 + data.HORIZON}
        assert windows[3].start_time() == series.time_index[4]
        assert len(stamps) == (len(windows) if model == "TFT" else 0)

    def test_forecasts_become_prices(self, fitted, series):
        (seen,) = fitted._seen([series])
        values, first = seen.values(), seen.start_time()

        def true_bars(n, series, **kwargs):
            # What comes after each context, in its own units.
            found = []
            for one in series:
                start = one.end_time() + 1 - first
                size = values[start - len(one) : start, -1].std()
                ahead = seen[start : start + n]
                found.append(ahead.with_values(ahead.values() / size))
            return found

        fitted.model = SimpleNamespace(predict=true_bars)
        (paths,) = fitted.paths([series], 4)
        _, futures = data.windows(series, 4)
        np.testing.assert_allclose(paths[..., 0], futures, rtol=1e-9)


def test_errors_of_the_close():
    found = scores([[[1.0, 1.1, 1.3]]], [[1.2]])
    # The median is for absolute errors, the mean for squared ones.
    assert found.absolute.item() == pytest.approx(0.1)
    assert found.squared.item() == pytest.approx((3.4 / 3 - 1.2) ** 2)
    assert found.naive.item() == pytest.approx(0.2)
    # Mean distance to what came, less half the mean distance of all nine pairs.
    assert found.crps.item() == pytest.approx((0.2 + 0.1 + 0.1) / 3 - 2 * (0.1 + 0.3 + 0.2) / 18)


def test_winkler_scores():
    inside, winkler = measures.interval(
        np.zeros(3), np.full(3, 2.0), np.array([1.0, 2.5, -0.1]), 0.9
    )
    assert inside.tolist() == [True, False, False]
    np.testing.assert_allclose(winkler, [2.0, 2.0 + 20 * 0.5, 2.0 + 20 * 0.1])


def test_volatility_counts_the_first_step_from_the_last_close():
    found = scores(np.exp([[[0.03], [0.03]]]), np.exp([[-0.02, 0.01]]))
    assert found.volatility.item() == pytest.approx(0.03)
    assert found.actual_volatility.item() == pytest.approx(np.hypot(0.02, 0.03))


def test_the_energy_score_counts_all_pairs_in_whatever_order():
    paths, came = RNG.standard_normal((2, 3, 4, 5)), RNG.standard_normal((2, 3, 4))
    expected = []
    for one, actual in zip(paths, came, strict=True):
        flat = one.reshape(12, 5).T
        to_actual = np.linalg.norm(flat - actual.ravel(), axis=1).mean()
        apart = np.linalg.norm(flat[:, None] - flat[None], axis=2).mean()
        expected.append(to_actual - apart / 2)
    np.testing.assert_allclose(measures._energy(paths, came), expected)
    np.testing.assert_allclose(measures._energy(paths[..., ::-1], came), expected)


def test_paths_in_pairs_forecast_no_direction():
    drawn = np.exp(0.02 * RNG.standard_normal((40, 3, 50)).cumsum(axis=1)).astype(np.float32)
    pairs = np.concatenate((drawn, 1 / drawn), axis=-1)
    found = scores(pairs, np.exp(0.01 * RNG.standard_normal((40, 3))))
    assert (found.predicted == 0).all()
    assert np.isnan(measures.directional_accuracy(found.predicted, found.actual)[0])
    assert (scores(drawn, np.ones((40, 3))).predicted != 0).all()


def test_ewma_variance():
    returns = RNG.normal(0, 0.02, (1, 40))
    found = baselines.ewma_variance(returns)[0]
    weights = baselines.DECAY ** np.arange(40)[::-1]
    start = (returns[0, :20] ** 2).mean() * baselines.DECAY**40
    expected = start + (1 - baselines.DECAY) * weights @ returns[0] ** 2
    assert found[-1] == pytest.approx(expected)
    constant = baselines.ewma_variance(np.full((1, 40), 0.02))
    np.testing.assert_allclose(constant, 0.02**2)


class TestDirection:
    def test_the_share_of_right_signs(self):
        predicted, actual = np.array([1.0, -1, 1, 0]), np.array([2.0, -3, -1, 1])
        assert measures.directional_accuracy(predicted, actual)[0] == pytest.approx(2 / 3)
        assert np.isnan(measures.directional_accuracy(np.zeros(3), np.ones(3))[0])

    def test_to_say_up_always_shows_nothing(self):
        share, p = measures.directional_accuracy(np.ones(100), RNG.standard_normal(100) + 1)
        assert share > 0.7 and np.isnan(p)

    def test_foresight_is_found(self):
        actual = RNG.standard_normal(200)
        assert measures.directional_accuracy(actual + RNG.standard_normal(200), actual)[1] < 1e-6
        assert measures.directional_accuracy(-actual, actual)[1] > 1 - 1e-6

    def test_it_holds_its_level_with_overlapping_forecasts(self):
        rejected = 0
        for seed in range(400):
            rng = np.random.default_rng(seed)
            walk = np.append(0, rng.standard_normal(900).cumsum())
            at = 100 + 4 * np.arange(190)
            momentum = walk[at] - walk[at - 24]
            rejected += (
                measures.directional_accuracy(momentum, walk[at + 12] - walk[at], 3)[1] < 0.05
            )
        assert 0.02 < rejected / 400 < 0.09


class TestDieboldMariano:
    def test_the_correction_is_that_of_harvey_leybourne_and_newbold(self):
        d = RNG.normal(0.1, 1, 60)
        W, h, centred = 60, 3, d - d.mean()
        long_run = centred @ centred + 2 * sum(centred[k:] @ centred[:-k] for k in (1, 2))
        statistic = d.mean() / np.sqrt(long_run / W / W)
        statistic *= np.sqrt((W + 1 - 2 * h + h * (h - 1) / W) / W)
        found, p = measures.diebold_mariano(d, np.zeros(60), 3)
        assert found == pytest.approx(statistic)
        assert p == pytest.approx(2 * stats.t.sf(abs(statistic), 59))

    def test_one_side_is_small_for_the_better_one_alone(self):
        theirs = RNG.normal(1, 0.1, 100)
        ours = theirs - 0.05 + RNG.normal(0, 0.1, 100)
        better, worse = report._one_sided(ours, theirs, 3), report._one_sided(theirs, ours, 3)
        assert better < 0.05 and better + worse == pytest.approx(1.0)


def test_ratios_are_over_the_better_bands():
    came = np.exp(0.02 * RNG.standard_normal((50, 12)).cumsum(axis=1))
    spread = RNG.standard_normal((50, 12, 80)).cumsum(axis=1)
    found = {
        name: [{"scores": {"A": scores(np.exp(size * spread), came)}}]
        for name, size in (("random walk", 0.06), ("EWMA walk", 0.02), ("Kronos", 0.03))
    }
    rows = {row["model"]: row for row in report._by_series({"pool": found}, 3)}
    crps = {name: one[0]["scores"]["A"].crps.mean() for name, one in found.items()}
    assert rows["EWMA walk"]["CRPS ratio"] == 1.0
    assert rows["Kronos"]["CRPS ratio"] == pytest.approx(crps["Kronos"] / crps["EWMA walk"])
    assert rows["random walk"]["DM p (walk)"] > 0.95


def test_forecasts_are_scored_against_their_own_windows():
    from accuracy import score_all

    series = candles(300)
    pool = SimpleNamespace(symbols=["A"], test=[series])
    contexts, futures = data.windows(series[data.PRICES], 4)
    true = np.repeat(futures[..., None], 5, axis=-1)
    found = score_all([true], pool, "test")["A"]
    assert found.crps.max() < 1e-12 and found.energy.max() < 1e-9


def test_a_quick_run_starts_from_fewer_simulated_candles(tmp_path, monkeypatch):
    drawn = []

    def pretrain(model, *, n_series=48, **kwargs):
        drawn.append(n_series)
        return SimpleNamespace(save=lambda path: None)

    monkeypatch.setattr(learned, "RESULTS", tmp_path)
    monkeypatch.setattr(learned, "pretrain", pretrain)
    (quick,), whole = (learned.configs("Kronos", 3, quick) for quick in (True, False))
    files = [learned._pretrained(config, 0)[0] for config in (quick, whole[0], quick, whole[1])]
    assert drawn == [16, 48, 48] and len(set(files)) == 3
    assert learned.views("Kronos", True) == ["mirrored"]
    assert "prices" not in learned.views("LSTM", True)
    for model in learned.CONFIGS:
        assert len(learned.configs(model, 1, True)) == 1
        assert len(learned.views(model, True)) < len(learned.views(model, False))
