"""Backtests of many series: on any number of workers the same, and one that fails stops none."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import joblib
import numpy as np
import pytest
from darts.metrics import mae, mcrps, mql
from factories import candles, tiny_model

from darts_kronos.universe import backtest_universe

OPTIONS = {"forecast_horizon": 3, "stride": 10, "num_samples": 4, "random_state": 1}


@pytest.fixture(scope="module")
def model():
    return tiny_model().fit(candles(80))


@pytest.fixture(scope="module")
def universe():
    return {name: candles(70, seed=seed) for seed, name in enumerate(["A", "B", "C"])} | {
        "SHORT": candles(10),
        "WITHOUT VOLUME": candles(70)[["open", "close"]],
    }


@pytest.fixture(scope="module")
def alone(model, universe):
    return backtest_universe(model, universe, [mae, mcrps], n_jobs=1, verbose=False, **OPTIONS)


def check(table, alone):
    np.testing.assert_allclose(table[["mae", "mcrps"]], alone[["mae", "mcrps"]], rtol=1e-4)
    assert list(table["error"].isna()) == list(alone["error"].isna())


def test_each_series_has_its_row_and_a_failing_one_its_reason(model, universe, alone, caplog):
    assert list(alone.index) == list(universe)
    assert alone.loc[["A", "B", "C"], ["mae", "mcrps"]].notna().all(axis=None)
    assert alone.loc[["A", "B", "C"], "error"].isna().all()
    assert alone.loc[["SHORT", "WITHOUT VOLUME"], ["mae", "mcrps"]].isna().all(axis=None)
    assert alone.loc["SHORT", "error"].startswith("ValueError")
    expected = model.backtest(
        universe["B"], metric=mae, retrain=False, last_points_only=False, **OPTIONS
    )
    assert alone.loc["B", "mae"] == pytest.approx(float(expected))
    backtest_universe(model, universe, mae, n_jobs=1, verbose=False, **OPTIONS)
    assert "SHORT failed" in caplog.text


def test_two_processes_find_the_same(model, universe, alone):
    table = backtest_universe(model, universe, [mae, mcrps], n_jobs=2, verbose=False, **OPTIONS)
    check(table, alone)


def test_a_dask_cluster_finds_the_same(model, universe, alone):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        table = backtest_universe(
            model, universe, [mae, mcrps], n_jobs=None, verbose=False, **OPTIONS
        )
    check(table, alone)


@pytest.mark.parametrize("backend", ["threading", "dask"])
def test_threads_of_a_worker_do_not_disturb_each_other(model, backend):
    universe = {f"S{seed}": candles(60 + seed, seed=seed) for seed in range(6)}
    alone = backtest_universe(model, universe, [mae, mcrps], n_jobs=1, verbose=False, **OPTIONS)
    cluster = client = nullcontext()
    if backend == "dask":
        distributed = pytest.importorskip("distributed")
        cluster = distributed.LocalCluster(
            n_workers=1, threads_per_worker=4, dashboard_address=None, processes=False
        )
        client = distributed.Client(cluster)
    with cluster, client, joblib.parallel_config(backend=backend, n_jobs=4):
        table = backtest_universe(
            model, universe, [mae, mcrps], n_jobs=None, verbose=False, **OPTIONS
        )
    check(table, alone)


def test_a_metric_may_come_twice_with_parameters_of_its_own(model):
    quantiles = {"metric": [mql, mql], "metric_kwargs": [{"q": 0.1}, {"q": 0.9}]}
    table = backtest_universe(model, [candles(60)], **quantiles, n_jobs=1, verbose=False, **OPTIONS)
    expected = model.backtest(
        candles(60), **quantiles, retrain=False, last_points_only=False, **OPTIONS
    )
    np.testing.assert_allclose(table[["mql", "mql 2"]].iloc[0].astype(float), expected)
    assert expected[0] != expected[1]


def test_names_come_from_the_metadata_or_the_place(model):
    named = candles(40).with_metadata({"symbol": "XYZ"})
    table = backtest_universe(model, [named, candles(40)], mae, n_jobs=1, verbose=False, **OPTIONS)
    assert list(table.index) == ["XYZ", "1"]


def test_metrics_that_give_several_numbers_fail_in_their_row_alone(model):
    table = backtest_universe(
        model,
        [candles(40), candles(41)],
        mae,
        n_jobs=1,
        verbose=False,
        metric_kwargs={"component_reduction": None},
        retrain=True,
        **OPTIONS,
    )
    assert table["error"].str.contains("one number").all() and len(table) == 2


def test_bad_input_is_refused(model):
    with pytest.raises(ValueError, match="before it is fitted"):
        backtest_universe(tiny_model(), [candles(40)], mae)
    with pytest.raises(ValueError, match="no series"):
        backtest_universe(model, {}, mae)
    with pytest.raises(ValueError, match="metric"):
        backtest_universe(model, [candles(40)], [])
    with pytest.raises(ValueError, match="`metric_kwargs`, a dict for each"):
        backtest_universe(model, [candles(40)], partial(mae))
    with pytest.raises(ValueError, match="a sequence of series; got a TimeSeries"):
        backtest_universe(model, candles(40), mae)
    twice = [candles(40).with_metadata({"symbol": "XYZ"})] * 2
    with pytest.raises(ValueError, match="XYZ"):
        backtest_universe(model, twice, mae)


def test_metrics_may_forecast_in_threads(model, universe):
    def metric(actual, forecast, **kwargs):
        with ThreadPoolExecutor(1) as pool:
            pool.submit(model.predict, 1, universe["A"]).result(timeout=60)
        return mae(actual, forecast, **kwargs)

    table = backtest_universe(model, [universe["A"]], metric, n_jobs=1, verbose=False, **OPTIONS)
    assert table["error"].isna().all()
