"""Threads that forecast with one model take turns."""

import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
from factories import candles, tiny_model

from darts_kronos.module import KronosModule


@pytest.fixture(scope="module")
def series():
    return candles(80)


@pytest.fixture(scope="module")
def model(series):
    return tiny_model().fit(series)


@pytest.fixture(autouse=True)
def slow_steps(monkeypatch):
    """Steps in which other threads have time to come in between."""
    step = KronosModule.predict_step

    def slow(self, *args, **kwargs):
        time.sleep(0.05)
        found = step(self, *args, **kwargs)
        time.sleep(0.05)
        return found

    monkeypatch.setattr(KronosModule, "predict_step", slow)


def at_once(*tasks):
    """What tasks give that threads begin at the same time."""
    begin = Barrier(len(tasks))

    def run(task):
        begin.wait()
        return task()

    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(run, tasks))


def test_each_thread_gets_what_it_asked_for(model, series):
    asked = [(2, 3), (6, 1), (9, 5), (4, 2)]
    tasks = [
        lambda n=n, paths=paths: model.predict(n, series, num_samples=paths, random_state=n)
        for n, paths in asked
    ]
    found = at_once(*tasks)
    assert [one.all_values().shape for one in found] == [(n, 6, paths) for n, paths in asked]
    for one, task in zip(found, tasks, strict=True):
        np.testing.assert_array_equal(one.all_values(), task().all_values())


def test_a_backtest_and_a_forecast_do_not_meet(model, series):
    options = {"start": 60, "forecast_horizon": 4, "stride": 4, "retrain": False}

    def backtest():
        return model.historical_forecasts(
            series, last_points_only=True, num_samples=2, random_state=1, **options
        )

    tasks = (backtest, lambda: model.predict(5, series, num_samples=2, random_state=1))
    for one, task in zip(at_once(*tasks), tasks, strict=True):
        np.testing.assert_array_equal(one.all_values(), task().all_values())
