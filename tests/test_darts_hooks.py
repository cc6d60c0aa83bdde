"""Darts' private hooks that are used: with a new Darts, this fails first and says what moved."""

import inspect

import darts
import pytest
from darts.models.components.huggingface_connector import HuggingFaceConnector
from darts.models.forecasting.pl_forecasting_module import PLForecastingModule
from darts.models.forecasting.torch_forecasting_model import (
    MixedCovariatesTorchModel,
    TorchForecastingModel,
)
from darts.utils.data import SequentialTorchInferenceDataset, SequentialTorchTrainingDataset
from darts.utils.data.torch_datasets import utils
from darts.utils.data.torch_datasets._data_module import TorchDataModule
from factories import candles, tiny_model

HOOKS = {
    "_build_train_dataset": [
        "series",
        "past_covariates",
        "future_covariates",
        "sample_weight",
        "max_samples_per_ts",
        "stride",
    ],
    "_build_inference_dataset": [
        "n",
        "series",
        "past_covariates",
        "future_covariates",
        "stride",
        "bounds",
    ],
    "_create_model": ["train_sample"],
    "_init_model": ["trainer"],
    "_setup_trainer": ["trainer", "model", "verbose", "epochs"],
    "_train": ["trainer", "model", "datamodule", "load_best"],
    "_update_covariates_use": [],
    "_verify_dtypes": ["ds_output"],
    "_check_ckpt_parameters": ["tfm_save"],
}


def parameters(function):
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_darts_version_is_one_that_was_measured():
    assert darts.__version__.startswith("0.48.")


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_have_their_parameters(name):
    assert parameters(getattr(TorchForecastingModel, name)) == HOOKS[name]


def test_hooks_that_pass_their_arguments_on_start_as_expected():
    assert parameters(TorchForecastingModel._setup_for_fit_from_dataset)[0] == "series"
    assert parameters(TorchForecastingModel._setup_for_predict)[:2] == ["n", "dataset"]
    assert "mc_dropout" in parameters(TorchForecastingModel._setup_for_predict)
    assert parameters(TorchForecastingModel._init_trainer) == ["trainer_params", "max_epochs"]


def test_fit_has_the_parameters_that_ours_passes_on():
    from darts_kronos import KronosModel

    ours = parameters(KronosModel.fit)
    assert ours.pop() == "retrain_tokenizer"
    assert ours == parameters(TorchForecastingModel.fit)
    theirs = parameters(TorchForecastingModel.fit_from_dataset)
    assert parameters(KronosModel.fit_from_dataset) == theirs


def test_properties_are_properties():
    for name in ("extreme_lags", "supports_past_covariates", "supports_future_covariates"):
        assert isinstance(inspect.getattr_static(MixedCovariatesTorchModel, name), property)
    assert isinstance(
        inspect.getattr_static(TorchForecastingModel, "_ckpt_skipped_params"), property
    )


def test_the_module_is_told_what_to_predict():
    told = ["n", "num_samples", "roll_size", "batch_size"]
    assert parameters(PLForecastingModule.set_predict_parameters)[:4] == told
    assert parameters(PLForecastingModule.predict_step) == ["batch", "batch_idx", "dataloader_idx"]
    assert parameters(PLForecastingModule.training_step) == ["train_batch", "batch_idx"]
    assert parameters(PLForecastingModule.validation_step) == ["val_batch", "batch_idx"]


def test_the_hubs_connector_has_what_ours_uses():
    asked = ["model_name", "model_revision", "local_dir", "config_file", "model_file"]
    assert parameters(HuggingFaceConnector.__init__) == asked
    assert parameters(HuggingFaceConnector._get_file_path) == ["filename"]


def test_weights_that_are_fixed_need_no_training():
    assert isinstance(inspect.getattr_static(TorchForecastingModel, "_requires_training"), property)
    assert "enable_finetuning" in parameters(TorchForecastingModel.__init__)


def test_batches_have_their_fields():
    training = {"past_target", "future_target", "historic_future_covariates", "future_covariates"}
    assert training <= set(utils.TorchTrainingBatch.__dataclass_fields__)
    inference = (training - {"future_target"}) | {"series_schema", "pred_time"}
    assert inference <= set(utils.TorchInferenceBatch.__dataclass_fields__)
    assert "columns" in darts.TimeSeries.from_values([[1.0]]).schema()


def test_datasets_take_what_ours_pass_on():
    shared = {"series", "future_covariates", "input_chunk_length", "output_chunk_length"}
    assert shared | {"stride", "max_samples_per_ts"} <= set(
        parameters(SequentialTorchTrainingDataset.__init__)
    )
    assert shared | {"n", "stride", "bounds"} <= set(
        parameters(SequentialTorchInferenceDataset.__init__)
    )
    assert parameters(TorchDataModule.__init__) == [
        "train_dataset",
        "val_dataset",
        "predict_dataset",
        "batch_size",
        "collate_fn",
        "dataloader_kwargs",
    ]


def test_a_validation_dataset_tells_nothing_of_the_bars():
    series = candles(120)
    chunks = {"input_chunk_length": 24, "output_chunk_length": 6}
    names = ["close", "volume"]
    train = SequentialTorchTrainingDataset(series=series[:100][names] - 1e3, **chunks)
    val = SequentialTorchTrainingDataset(series=series[60:][names[::-1]], **chunks)
    model = tiny_model().fit_from_dataset(train, val)
    assert model.model.representation.name == "window"
    assert model.model.representation.given == tuple(names)
