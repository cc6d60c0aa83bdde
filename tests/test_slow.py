"""Tests that take minutes: ``python -m pytest -m slow``."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import released

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


def run(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


MEMORY = """
import resource
from factories import candles
from darts_kronos import KronosModel

CONTEXT, HORIZON, WINDOWS, SAMPLES = 400, 96, 32, 100
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

model = KronosModel(
    CONTEXT, HORIZON, size="mini", batch_size=1, tokenizer_batch_size=1, n_epochs=1,
    n_epochs_tokenizer=1, pl_trainer_kwargs={
        "accelerator": "cpu", "limit_train_batches": 1, "enable_progress_bar": False,
    },
)
model.fit(candles(CONTEXT + HORIZON))
before = peak()
series = [candles(CONTEXT, seed=i) for i in range(WINDOWS)]
paths = model.predict(HORIZON, series, num_samples=SAMPLES, batch_size=WINDOWS)
assert len(paths) == WINDOWS and paths[0].all_values().shape == (HORIZON, 6, SAMPLES)
print("extra MB:", peak() - before)
"""

SOAK = """
import gc
import psutil
from factories import candles, tiny_model

series, process = candles(60), psutil.Process()
resident = []
for i in range(200):
    model = tiny_model(save_checkpoints=i % 20 == 0).fit(series, val_series=series)
    model.predict(6, num_samples=4)
    if i % 50 == 49:
        gc.collect()
        resident.append(process.memory_info().rss / 2**20)
print("resident MB:", *resident)
"""


def test_the_quickstart_fits_backtests_and_draws(tmp_path):
    """Both stages' losses fall on its data, and what it prints is a table of sane figures."""
    printed = run("examples/quickstart.py", "--out", str(tmp_path / "quickstart.png"))
    losses = re.findall(r"^ *(tokenizer|predictor) +\d+ +([\d.]+) +([\d.]+)", printed, re.M)
    for stage in ("tokenizer", "predictor"):
        train, val = np.array([row[1:] for row in losses if row[0] == stage], dtype=float).T
        assert train[-1] < 0.8 * train[0] and val[-1] < val[0]
    rows = re.findall(r"^(Kronos|random walk) +([\d. ]+)$", printed, re.M)
    table = {name: [float(value) for value in values.split()] for name, values in rows}
    mae, crps, half, most = table["Kronos"]
    # The data and the seed are fixed: far off means broken, not unlucky.
    assert 0.9 < mae < 1.1 and 0.9 < crps < 1.1 and half < most
    assert table["random walk"][:2] == [1.0, 1.0]
    assert len(list(tmp_path.glob("quickstart*.png"))) == 3


def test_a_csv_becomes_a_forecast(tmp_path):
    run("examples/csv_to_forecast.py", "--out", str(tmp_path))
    quantiles = pd.read_csv(tmp_path / "forecast_quantiles.csv", parse_dates=["timestamps"])
    assert quantiles["timestamps"].iloc[0] == pd.Timestamp("2026-08-06 10:12")
    assert (quantiles["close_q0.050"] < quantiles["close_q0.950"]).all()
    paths = pd.read_parquet(tmp_path / "forecast_paths.parquet")
    assert len(paths) == 48 * 200 and (paths["low"] <= paths["high"]).all()


def test_the_live_loop_forecasts_each_bar_at_its_time():
    printed = run("examples/live_loop.py", "--bars", "9")
    rows = re.findall(r"^ *(\S+ \S+) +(\S+ \S+)((?: +[\d.]+){4})$", printed, re.M)
    assert len(rows) == 9
    assert all(expected == came for expected, came, _ in rows)


def test_the_tuning_example_tries_models_and_trains_the_best(tmp_path):
    printed = run("examples/tune.py", "--trials", "2", "--storage", str(tmp_path))
    trials = re.findall(r"^trial (\d): CRPS ([\d.]+)", printed, re.M)
    assert [number for number, _ in trials] == ["0", "1"]
    values = [float(value) for _, value in trials]
    best = re.search(r"the best is trial (\d): CRPS ([\d.]+) on validation", printed)
    assert int(best.group(1)) == int(np.argmin(values)) and float(best.group(2)) == min(values)
    # In units of the last close, of 12 hourly bars: far off means broken, not unlucky.
    on_test = re.findall(r": +CRPS ([\d.]+), 90% intervals hold ([\d.]+)%", printed)
    assert len(on_test) == 3
    assert all(0.003 < float(crps) < 0.03 and 50 < float(held) <= 100 for crps, held in on_test)
    assert (tmp_path / "studies.db").is_file()


def test_input_lengths_are_compared_on_equal_windows(tmp_path):
    path = tmp_path / "lookback.png"
    printed = run("examples/compare_lookback.py", "--lengths", "24", "48", "--out", str(path))
    rows = re.findall(r"^(\d+) +([\d. ]+)$", printed, re.M)
    assert [length for length, _ in rows] == ["24", "48"] and "43 windows" in printed
    crps, _, half, most, ratio, error = np.array([row.split() for _, row in rows], dtype=float).T
    assert (crps < 0.03).all() and (half < most).all()
    assert ratio[0] == 1 and error[0] == 0 and error[1] > 0
    assert path.stat().st_size > 10_000


def test_released_weights_forecast_and_are_tuned_from_a_folder(tmp_path):
    """The examples as written, with random weights of the released layout."""
    released.write(tmp_path / "weights")
    source = ("--local-dir", str(tmp_path / "weights"))
    printed = run("examples/zero_shot.py", *source, "--stride", "96", "--out", str(tmp_path))
    assert "6 forecasts of 24 daily bars from June 2024 on" in printed
    assert (tmp_path / "zero_shot.png").is_file()
    out = tmp_path / "mine"
    printed = run(
        "examples/fine_tune.py", *source, "--stride", "96", "--epochs", "1", "--out", str(out)
    )
    before, after = re.findall(r"(?:zero-shot|fine-tuned) +([\d.]+)$", printed, re.M)
    assert 0 < float(after) < 2 * float(before)
    assert (out / "predictor" / "model.safetensors").is_file()


def test_an_example_without_a_network_says_how_to_go_on(tmp_path):
    done = subprocess.run(
        [sys.executable, "examples/zero_shot.py", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        timeout=300,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "local_dir" in done.stderr and "--local-dir" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs the module resource")
def test_many_paths_of_many_windows_take_little_memory(monkeypatch):
    """100 paths of 32 windows, 400 bars of context and 96 to come, size mini: under 2 GB."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    extra = float(re.search(r"extra MB: ([\d.]+)", run("-c", MEMORY)).group(1))
    assert extra < 2000


def test_two_hundred_fits_and_forecasts_do_not_grow_the_memory(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SOAK],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    resident = [float(one) for one in done.stdout.rpartition("resident MB:")[2].split()]
    assert len(resident) == 4
    # What torch and Lightning keep for good is there after the first fifty.
    assert resident[-1] - resident[0] < 25, resident
