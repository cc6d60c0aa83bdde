"""Threads that forecast with one model take turns."""

import multiprocessing
import os
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import numpy as np
import pytest
from factories import candles, tiny_model

from darts_kronos.darts_base import in_turn
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


def test_one_that_waits_seeds_nothing_yet(model, series):
    def later(wait):
        def forecast():
            time.sleep(wait)
            return model.predict(6, series, num_samples=20, random_state=int(100 * wait))

        return forecast

    tasks = [later(wait) for wait in (0, 0.03, 0.07, 0.13)]
    for one, task in zip(at_once(*tasks), tasks, strict=True):
        np.testing.assert_array_equal(one.all_values(), task().all_values())


def take_turn():
    with in_turn():
        os._exit(0)


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="processes are not forked here"
)
def test_a_process_that_is_forked_meanwhile_does_not_wait():
    forecasts, ended = Event(), Event()

    def forecast():
        with in_turn():
            forecasts.set()
            ended.wait(30)

    child = multiprocessing.get_context("fork").Process(target=take_turn)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(forecast)
        forecasts.wait()
        child.start()
        child.join(20)
        ended.set()
    exitcode = child.exitcode
    child.kill()
    assert exitcode == 0
