"""Tests that take minutes: ``python -m pytest -m slow``."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.skipif(sys.platform == "win32", reason="needs the module resource")
def test_many_paths_of_many_windows_take_little_memory(monkeypatch):
    """100 paths of 32 windows, 400 bars of context and 96 to come, size mini: under 2 GB."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests"))
    extra = float(re.search(r"extra MB: ([\d.]+)", run("-c", MEMORY)).group(1))
    assert extra < 2000
