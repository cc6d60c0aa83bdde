"""The measures that the accuracy benchmark rests on, held against libraries and known cases."""

import levers
import numpy as np
import pandas as pd
import pytest
import reference
import torch
from darts import TimeSeries
from darts.metrics import mcrps
from evaluation import baselines, data, har, measures, tried
from factories import candle_frame

from darts_kronos.simulate import simulate_candles

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def forecast():
    bars = candle_frame(400).to_numpy()[:, :4]
    view = np.lib.stride_tricks.sliding_window_view(bars, 60, axis=0)[::20].transpose(0, 2, 1)
    contexts, futures = view[:, :48], view[:, 48:]
    return baselines.random_walk(contexts, 12, np.random.default_rng(1)), contexts, futures


def test_scores_of_the_close_are_those_of_darts(forecast):
    paths, contexts, futures = forecast
    found = measures.score(paths, contexts, futures)
    for w in range(3):
        last = contexts[w, -1, 3]
        index = pd.RangeIndex(12)
        actual = TimeSeries.from_times_and_values(index, futures[w, :, 3:] / last)
        pred = TimeSeries.from_times_and_values(index, paths[w, :, 3:] / last)
        assert found.crps[w].mean() == pytest.approx(mcrps(actual, pred), rel=1e-6)


def test_intervals_of_few_paths_hold_their_level_of_what_is_drawn_as_they_are():
    W, n, S = 500, 20, 19
    drawn = np.exp(0.01 * np.random.default_rng(0).standard_normal((W, n, 1, S + 1)))
    contexts = np.exp(0.01 * np.random.default_rng(1).standard_normal((W, 30, 4)))
    contexts[:, -1] = 1.0
    futures = np.repeat(drawn[..., S], 4, axis=2)
    found = measures.score(drawn[..., :S], contexts, futures)
    for level, inside in found.inside.items():
        # 10,000 draws: the standard error is half a point at most.
        assert inside.mean() == pytest.approx(float(level.rstrip("%")) / 100, abs=0.015)


def test_the_random_walks_paths_are_valid_candles_without_drift(forecast):
    paths, contexts, futures = forecast
    found = measures.score(paths, contexts, futures)
    assert found.valid == 1.0
    ratio = np.log(paths[:, -1, 3] / contexts[:, -1, 3][:, None])
    assert abs(ratio.mean()) < 4 * ratio.std() / np.sqrt(ratio.size)
    # The first close follows the last one known: its return is one of the context's.
    returns = np.diff(np.log(contexts[0, :, 3]))
    drawn = np.log(paths[0, 0, 3] / contexts[0, -1, 3])
    assert np.isclose(drawn[:, None], (returns - returns.mean())[None]).any(axis=1).all()


def test_the_energy_score_prefers_the_truth(forecast):
    paths, contexts, futures = forecast
    wide = np.exp(3 * np.log(paths / contexts[:, -1, 3][:, None, None, None]))
    wide = wide * contexts[:, -1, 3][:, None, None, None]
    assert (
        measures.score(paths, contexts, futures).energy.mean()
        < measures.score(wide, contexts, futures).energy.mean()
    )


def test_baselines_see_the_context_alone(forecast):
    _, contexts, _ = forecast
    for name, forecaster in baselines.BASELINES.items():
        paths = forecaster(contexts[:4], 12, np.random.default_rng(0))
        scaled = forecaster(contexts[:4] * 100, 12, np.random.default_rng(0))
        np.testing.assert_allclose(scaled, paths * 100, rtol=1e-3, err_msg=name)
        assert np.isfinite(paths).all() and paths.shape[0::3] == (4, baselines.SAMPLES)


def test_the_oracle_has_the_volatility_of_the_bars_to_come(forecast):
    _, contexts, futures = forecast
    paths = baselines.told_volatility(contexts, futures, 12, np.random.default_rng(0))
    found = measures.score(paths, contexts, futures)
    assert found.valid == 1.0
    # Root mean squares of few bars spread; their means over paths do not.
    np.testing.assert_allclose(found.volatility, found.actual_volatility, rtol=0.15)
    walk = measures.score(forecast[0], contexts, futures)
    assert found.crps.mean() < walk.crps.mean()


def test_ewma_bands_follow_volatility():
    calm = np.r_[RNG.normal(0, 0.03, 60), RNG.normal(0, 0.003, 36)]
    closes = 100 * np.exp(np.r_[0, calm.cumsum()])
    context = np.repeat(closes[None, :, None], 4, axis=2)
    spread = [
        np.log(forecaster(context, 12, np.random.default_rng(0))[0, -1, 3]).std()
        for forecaster in (baselines.ewma_walk, baselines.random_walk)
    ]
    assert spread[0] < 0.5 * spread[1]


class TestHarWalk:
    @pytest.fixture(scope="class")
    def simulated(self):
        return simulate_candles(4, 1500, seed=3)

    @pytest.fixture(scope="class")
    def walk(self, simulated):
        return har.HarWalk([series[:1000] for series in simulated])

    @staticmethod
    def drawn(walk, series):
        return walk.paths(series, 12, np.random.default_rng(0))

    def test_it_foretells_volatility_and_draws_valid_candles(self, walk, simulated):
        ours, theirs = [], []
        for series in simulated:
            contexts, futures = data.windows(series[1000:][data.PRICES], 12)
            found = measures.score(self.drawn(walk, series[1000:]), contexts, futures)
            paths = baselines.random_walk(contexts, data.HORIZON, np.random.default_rng(0))
            plain = measures.score(paths, contexts, futures)
            assert found.valid == 1.0
            for errors, one in ((ours, found), (theirs, plain)):
                miss = np.log(one.volatility / one.actual_volatility)
                errors.append(miss - miss.mean())
        assert np.std(np.concatenate(ours)) < 0.95 * np.std(np.concatenate(theirs))

    def test_it_sees_the_context_alone_and_in_any_unit(self, walk, simulated):
        series = simulated[0][1000 : 1000 + data.CONTEXT + data.HORIZON]
        paths = self.drawn(walk, series)
        values = series.values().copy()
        values[data.CONTEXT :] *= 3
        np.testing.assert_array_equal(self.drawn(walk, series.with_values(values)), paths)
        values[:, :4] = series.values()[:, :4] * 100
        scaled = self.drawn(walk, series.with_values(values))
        np.testing.assert_allclose(scaled, paths * 100, rtol=1e-9)

    def test_bands_follow_the_hours_to_come(self):
        rng, times = np.random.default_rng(0), pd.date_range("2024", periods=2000, freq="h")
        deviation = np.where(times.hour < 12, 0.01, 0.002)
        closes = 100 * np.exp((deviation * rng.standard_normal(2000)).cumsum())
        series = TimeSeries.from_times_and_values(
            times, np.repeat(closes[:, None], 4, axis=1), columns=data.PRICES
        )
        walk = har.HarWalk([series[:1500]])
        window = slice(1510, 1510 + data.CONTEXT + data.HORIZON)
        steps = np.diff(np.log(self.drawn(walk, series[window])[0, :, 3]), axis=0)
        spread = steps.std(axis=1)
        busy = (times[window].hour < 12)[-len(steps) :]
        assert busy.any() and not busy.all()
        assert spread[busy].min() > 3 * spread[~busy].max()


class TestDieboldMariano:
    def test_it_holds_its_level_with_overlapping_forecasts(self):
        rejected = 0
        for seed in range(400):
            rng = np.random.default_rng(seed)
            noise = rng.normal(size=(2, 202))
            # Losses that share two of three steps, as overlapping windows do.
            ours, theirs = noise[:, :-2] + noise[:, 1:-1] + noise[:, 2:]
            rejected += measures.diebold_mariano(ours, theirs, 3)[1] < 0.05
        assert 0.02 < rejected / 400 < 0.09

    def test_it_tells_the_better_one(self):
        theirs = RNG.normal(size=200) ** 2 + 0.5
        statistic, p = measures.diebold_mariano(theirs - 0.3 + RNG.normal(0, 0.1, 200), theirs, 3)
        assert statistic < 0 and p < 1e-6

    def test_without_correction_it_is_a_t_test(self):
        from scipy.stats import ttest_1samp

        d = RNG.normal(0.1, 1, 100)
        statistic, p = measures.diebold_mariano(d, np.zeros(100), 1)
        expected = ttest_1samp(d, 0)
        assert statistic == pytest.approx(expected.statistic, rel=1e-6)
        assert p == pytest.approx(expected.pvalue, rel=1e-6)


class TestTriedChanges:
    """Levers that change the package do so for their block only."""

    @pytest.fixture
    def losses(self):
        predictor = reference.predictors(0)[1]
        tokens = torch.randint(16, (2, 2, data.CONTEXT + data.HORIZON))
        stamps = reference.random_stamps(2, tokens.shape[-1], 1)

        def measure():
            torch.manual_seed(0)
            return float(predictor.train().loss(*tokens, stamps).loss), float(
                predictor.eval().loss(*tokens, stamps).loss
            )

        return measure

    def test_horizon_weights_count_in_training_alone(self, losses):
        before = losses()
        with tried.horizon_weighted():
            within = losses()
        assert within[0] != before[0] and within[1] == before[1]
        assert losses() == before

    def test_the_next_stamp_is_read_in_both(self, losses):
        before = losses()
        with tried.told_the_next_stamp():
            within = losses()
        assert within[0] != before[0] and within[1] != before[1]
        assert losses() == before


def test_levers_that_were_measured_are_known_to_the_next_run(tmp_path, monkeypatch):
    monkeypatch.setattr(levers, "KNOWN", tmp_path / "levers.json")
    assert levers.known() == {}
    rows = [{"series": "a", "seed": 0, "drawn": "as drawn", "CRPS ratio": 0.99}]
    levers.keep({("daily", "window", 0): rows})
    levers.keep(levers.known() | {("daily", "default", 1): []})
    assert levers.known() == {("daily", "default", 1): [], ("daily", "window", 0): rows}


def test_levers_are_compared_with_the_default_of_the_same_seed():
    found = {("default", 0): 1.0, ("default", 1): 0.9, ("other", 0): 0.98, ("other", 1): 0.89}
    rows = [
        {
            **{"variant": variant, "seed": seed, "drawn": "as drawn", "series": series},
            **{"CRPS ratio": crps + shift, "MAE ratio": 1.0, "fit s": 2.0},
            **{"coverage 50": 0.5, "coverage 90": 0.9},
        }
        for (variant, seed), crps in found.items()
        for series, shift in (("a", 0.01), ("b", -0.01))
    ]
    table = levers.table_of(pd.DataFrame(rows)).set_index("variant")
    assert list(table["seeds"]) == [2, 2]
    assert table.loc["other", "CRPS ratio"] == pytest.approx(0.935)
    assert table.loc["other", "over default"] == pytest.approx(-0.015)
    assert table.loc["other", "standard error"] == pytest.approx(0.005)
    # A series that the default alone was run on changes nothing but its own mean.
    more = [row | {"series": "c", "CRPS ratio": 2.0} for row in rows if row["variant"] == "default"]
    wider = levers.table_of(pd.DataFrame(rows + more)).set_index("variant")
    assert list(wider["series"]) == [3, 2]
    assert wider.loc["default", "CRPS ratio"] > 1.2
    pd.testing.assert_series_equal(wider.loc["other"], table.loc["other"])
    alone = levers.table_of(pd.DataFrame([row for row in rows if row["variant"] == "other"]))
    assert alone["CRPS ratio"].item() == pytest.approx(0.935)
    assert alone["over default"].isna().all()
