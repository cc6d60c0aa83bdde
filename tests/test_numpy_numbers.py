"""NumPy's numbers do where Python's do, and leave nothing in a file that cannot be read."""

import numpy as np
import pytest
from factories import TINY, candles, tiny_model

from darts_kronos import KronosModel


@pytest.fixture(scope="module")
def series():
    return candles(80)


def test_they_may_be_parameters_of_a_model_that_is_saved(series, tmp_path):
    model = tiny_model(
        input_chunk_length=np.int64(24),
        output_chunk_length=np.int32(6),
        d_model=np.int64(16),
        batch_size=np.int64(16),
        random_state=np.int64(3),
        temperature=np.float32(0.5),
        top_k=np.int64(3),
        top_p=np.float64(0.5),
        mirror=np.float64(0.25),
        anchor=np.bool_(False),
        optimizer_kwargs={"lr": np.float64(1e-3), "betas": (np.float64(0.5), 0.9)},
        pl_trainer_kwargs=TINY["pl_trainer_kwargs"] | {"gradient_clip_val": np.float64(1.0)},
    ).fit(series)
    assert type(model.model_params["input_chunk_length"]) is int
    assert model.sampling["temperature"] == 0.5 and type(model.sampling["top_k"]) is int
    assert type(model.model_params["optimizer_kwargs"]["betas"][0]) is float
    model.save(str(tmp_path / "model.pt"))
    loaded = KronosModel.load(str(tmp_path / "model.pt"))
    assert loaded.predict(3, random_state=1) == model.predict(3, random_state=1)
    model.save_pretrained(tmp_path / "weights")


def test_a_range_of_contexts_may_be_of_them(series):
    model = tiny_model(input_chunk_length=(np.int64(12), np.int64(24))).fit(series)
    assert model.predict(3, series=series[:12]).n_timesteps == 3


def test_they_may_be_what_is_tried_and_set(series, tmp_path):
    model = tiny_model().fit(series)
    tried = model.calibrate(
        series, temperatures=np.array([0.5]), top_ps=np.array([0.9]), num_samples=4, verbose=False
    )
    assert len(tried) == 3
    model.set_sampling(temperature=np.float64(0.75), top_k=np.int64(3))
    model.set_augmentation(mirror=np.float32(0.25))
    model.save(str(tmp_path / "model.pt"))
    loaded = KronosModel.load(str(tmp_path / "model.pt"))
    assert loaded.sampling == model.sampling and loaded.sampling["temperature"] == 0.75
    with pytest.raises(ValueError, match="temperature"):
        model.set_sampling(temperature=np.float64(-1))
