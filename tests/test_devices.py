"""Two processes train as one with twice the batch; devices and precisions agree."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import TINY, candles, tiny_model

from darts_kronos import KronosModel
from darts_kronos.module import KronosModule
from darts_kronos.nn import layers
from darts_kronos.parameters import AUGMENTATION

STRATEGIES = ["one", "ddp", "ddp_spawn"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    for strategy in STRATEGIES:
        done = subprocess.run(
            [sys.executable, "ddp_training.py", strategy, str(folder)],
            cwd=Path(__file__).parent,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


@pytest.mark.parametrize("name", ["", "tuned-"], ids=["from scratch", "fine-tuned"])
def test_both_ranks_hold_equal_weights(runs, name):
    first, second = (runs[f"{name}ddp-{rank}"]["weights"] for rank in (0, 1))
    for name, value in first.items():
        if not name.startswith("stage_log"):
            assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("strategy", ["ddp-0", "ddp_spawn-0", "tuned-ddp-0"])
def test_they_equal_one_process_with_twice_the_batch(runs, strategy):
    tuned = "tuned-" if strategy.startswith("tuned") else ""
    alone, together = runs[f"{tuned}one-0"], runs[strategy]
    assert together["history"]["stage"] == alone["history"]["stage"]
    assert together["history"]["stage"].count("predictor") == (3 if tuned else 2)
    for name, values in alone["history"].items():
        if name.startswith("train") and not name.startswith("train_codebook"):
            np.testing.assert_allclose(together["history"][name], values, rtol=1e-3, err_msg=name)
    for name, value in alone["weights"].items():
        # Attention does not feel a bias of its keys: its gradient is rounding, scaled up by Adam.
        keys = name.endswith(("key_value.bias", "qkv.bias"))
        if value.is_floating_point() and not name.startswith("stage_log") and not keys:
            torch.testing.assert_close(
                together["weights"][name], value, rtol=1e-2, atol=1e-3, msg=name
            )


@pytest.mark.parametrize("strategy", ["one-0", "ddp-0", "ddp-1", "ddp_spawn-0"])
def test_every_forecast_comes_back(runs, strategy):
    assert runs[strategy]["forecasts"] == 5


ACCELERATORS = {"gpu": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


@pytest.mark.parametrize("accelerator", ACCELERATORS)
class TestAccelerators:
    """Run where there is one; for CUDA, with ``CUDA_VISIBLE_DEVICES=0`` in the environment."""

    @pytest.fixture(autouse=True)
    def present(self, accelerator):
        if not ACCELERATORS[accelerator]:
            pytest.skip(f"there is no {accelerator} here")

    def test_it_forecasts_as_the_cpu_does(self, accelerator, tmp_path, monkeypatch):
        step, devices = KronosModule.predict_step, []

        def noted(self, *args, **kwargs):
            devices.append(self.device.type)
            return step(self, *args, **kwargs)

        monkeypatch.setattr(KronosModule, "predict_step", noted)
        series = candles(100)
        model = tiny_model(top_k=1, point_forecast="sample").fit(series)
        model.save(str(tmp_path / "model.pt"))
        there = KronosModel.load(
            str(tmp_path / "model.pt"), pl_trainer_kwargs={"accelerator": accelerator}
        )
        expected, found = model.predict(6), there.predict(6)
        # Lightning brings the networks back once the forecast is made.
        assert devices[0] == "cpu" != devices[1]
        np.testing.assert_allclose(found.values(), expected.values(), rtol=1e-4)

    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
    def test_both_stages_train_as_on_the_cpu(self, accelerator, precision):
        plain = dict.fromkeys(("ffn_dropout", "resid_dropout", "token_dropout", *AUGMENTATION), 0.0)
        losses = {}
        for name in ("cpu", accelerator):
            trainer = {**TINY["pl_trainer_kwargs"], "accelerator": name, "precision": precision}
            model = tiny_model(pl_trainer_kwargs=trainer, **plain)
            model.fit(candles(100), dataloader_kwargs={"shuffle": False})
            losses[name] = model.training_history["train_loss"]
        bound = 1e-3 if precision == "32-true" else 5e-2
        np.testing.assert_allclose(losses[accelerator], losses["cpu"], rtol=bound)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_rotary_tables_are_float32_in_training_and_forecasts(precision, monkeypatch):
    made, seen = layers.rotary_table, []

    def noted(*args):
        table = made(*args)
        seen.extend(one.dtype for one in table)
        return table

    monkeypatch.setattr(layers, "rotary_table", noted)
    trainer = {**TINY["pl_trainer_kwargs"], "precision": precision}
    tiny_model(pl_trainer_kwargs=trainer).fit(candles(60)).predict(6)
    assert seen and set(seen) == {torch.float32}
