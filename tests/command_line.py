"""The command line, as tests call it: in this process, or in another."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import yaml
from factories import TINY_NETWORKS, candle_frame

from darts_kronos.cli import main

ROOT = Path(__file__).parents[1]

ORIGINAL = """\
data:
  data_path: "{folder}/candles.csv"
  lookback_window: 24
  predict_window: 6
  max_context: 24
  clip: 5.0
  train_ratio: 0.8
  val_ratio: 0.2
  test_ratio: 0.0

training:
  tokenizer_epochs: 3
  basemodel_epochs: 2
  batch_size: 50
  log_interval: 50
  num_workers: 0
  seed: 42
  tokenizer_learning_rate: 0.0002
  predictor_learning_rate: 0.000001
  adam_beta1: 0.85
  adam_beta2: 0.95
  adam_weight_decay: 0.2
  accumulation_steps: 4

model_paths:
  pretrained_tokenizer: ""
  pretrained_predictor: ""
  exp_name: "HK_5min"
  base_path: "{folder}/finetuned"
  base_save_path: ""
  finetuned_tokenizer: ""
  tokenizer_save_name: "tokenizer"
  basemodel_save_name: "basemodel"

experiment:
  name: "custom"
  description: "of the original"
  use_comet: true
  train_tokenizer: true
  train_basemodel: true
  skip_existing: false

device:
  use_cuda: true
  device_id: 0

distributed:
  use_ddp: false
  backend: "nccl"
"""
"""A config with every key that those of the original have; {folder} is where its data is."""


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


def kronos(*words: object) -> Done:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = stop.code
    return Done(code, out.getvalue(), err.getvalue())


def spawned(*words: object, cwd: Path, launcher: tuple[str, ...] = ()) -> Done:
    """Run a command in a process of its own, or in those that a launcher starts."""
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "darts_kronos", *map(str, words)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def write_candles(path: Path, bars: int = 160, seed: int = 0, freq: str = "h") -> Path:
    """A CSV of candles."""
    candle_frame(bars, seed, freq).to_csv(path, index_label="timestamps")
    return path


def config(folder: Path, **sections: dict) -> dict:
    """A config of a training that takes a second; `sections` replace single keys."""
    found = {
        "data": {
            "data_path": str(folder / "candles.csv"),
            "lookback_window": 24,
            "predict_window": 6,
            "train_ratio": 0.6,
            "val_ratio": 0.2,
            "test_ratio": 0.2,
        },
        "training": {"tokenizer_epochs": 2, "basemodel_epochs": 2, "log_interval": 2},
        "model_paths": {"base_path": str(folder / "runs"), "exp_name": "run"},
        "device": {"use_cuda": False},
        "model": dict(TINY_NETWORKS),
        "sampling": {"num_samples": 8},
    }
    for name, keys in sections.items():
        found[name] = {**found.get(name, {}), **keys}
    return found


def write_config(folder: Path, name: str = "kronos.yaml", **sections: dict) -> Path:
    """The same, as a file."""
    path = folder / name
    path.write_text(yaml.safe_dump(config(folder, **sections), sort_keys=False))
    return path
