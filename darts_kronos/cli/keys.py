"""The keys of a config: their types, defaults and meanings, each said once.

``darts-kronos init`` writes these descriptions as comments. The first six sections are those of
the original's configs; `model`, `sampling` and `trainer`, and the keys from `calendar` on in
`data`, are only ours.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model, model_validator

from darts_kronos.model import KronosModel
from darts_kronos.parameters import AUGMENTATION, SAMPLING


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not true or false")
    return value


def _empty_as_none(value: Any) -> Any:
    return None if isinstance(value, str) and not value.strip() else value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]
Share = Annotated[Number, Field(ge=0, le=1)]
Positive = Annotated[Whole, Field(ge=1)]
Rate = Annotated[Number, Field(gt=0)]
Text = Annotated[str | None, BeforeValidator(_empty_as_none)]
"""A text that may be empty, which says nothing."""


class Section(BaseModel):
    """Keys that stand under one name; others are refused."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


class Data(Section):
    """The candles, how they are split in time, and the windows."""

    data_path: str | list[str] = Field(
        min_length=1,
        description="The candles: a CSV or Parquet file, a folder of such files, a pattern such as "
        "'data/*.csv', or a list of these; relative to where the command runs. Columns open, high, "
        "low, close, a column of timestamps, and optionally volume, amount and symbol.",
    )
    lookback_window: Positive = Field(
        512, description="Context: bars that a forecast starts from (input_chunk_length)."
    )
    predict_window: Positive = Field(
        48, description="Horizon: bars to come in a training window (output_chunk_length)."
    )
    max_context: Annotated[Whole, Field(ge=2)] | None = Field(
        None,
        description="Bars that the predictor sees at most; null: lookback_window + predict_window.",
    )
    clip: Rate = Field(
        5.0, description="Bound on the absolute normalised values that the networks get."
    )
    train_ratio: Annotated[Number, Field(gt=0, le=1)] = Field(
        0.9,
        description="Share of each series' bars, its oldest, to train on. What the three ratios "
        "leave over at the end is not used for any of them.",
    )
    val_ratio: Share = Field(
        0.1,
        description="Share of bars after those, to choose the best epoch by; 0: no validation.",
    )
    test_ratio: Share = Field(
        0.0,
        description="Share of bars after those, which no training sees, to backtest on; may be 0.",
    )
    calendar: Text = Field(
        None,
        description="Exchange calendar such as XNYS or XHKG: bars to come lie on its sessions. "
        "null: they follow the pattern of weekdays and times that the bars show.",
    )
    timezone: Text = Field(
        None, description="Time zone of timestamps that have none, such as America/New_York."
    )
    time_format: Text = Field(
        None, description="Format of timestamps, such as '%d/%m/%Y %H:%M'; null finds it."
    )
    on_invalid: Literal["raise", "repair", "drop"] = Field(
        "raise", description="What is done about bars that are no candles: raise, repair or drop."
    )
    sort: bool = Field(False, description="Whether rows are sorted by time.")
    stride: Positive = Field(1, description="Bars from one training window to the next.")

    @model_validator(mode="after")
    def _ratios_fit(self) -> Data:
        total = self.train_ratio + self.val_ratio + self.test_ratio
        if total > 1 + 1e-9:
            raise ValueError(f"train_ratio + val_ratio + test_ratio must be at most 1, is {total}")
        return self


class Training(Section):
    """Both stages of training: the tokenizer, then the predictor (the base model)."""

    tokenizer_epochs: Positive | None = Field(
        None,
        description="Epochs of the tokenizer stage; null: those of epochs, else as many as make "
        "enough steps.",
    )
    basemodel_epochs: Positive | None = Field(
        None, description="Epochs of the predictor stage; null: as above."
    )
    epochs: Positive | None = Field(None, description="Epochs of a stage that has none of its own.")
    batch_size: Positive | None = Field(
        None,
        description="Windows in a batch, of each device; null: 32, and 16 in the tokenizer stage.",
    )
    tokenizer_batch_size: Positive | None = Field(
        None, description="Windows in a batch of the tokenizer stage; null: batch_size."
    )
    log_interval: Positive = Field(
        50, description="Steps from one line of the log to the next, within an epoch."
    )
    num_workers: Annotated[Whole, Field(ge=0)] = Field(
        0, description="Processes that load windows beside the training; 0: none."
    )
    seed: Annotated[Whole, Field(ge=0)] = Field(
        100, description="Of all that is random: one seed, one result."
    )
    tokenizer_learning_rate: Rate | None = Field(
        None,
        description="Peak learning rate of the tokenizer stage; null: that of the size, 2e-4 "
        "from weights.",
    )
    predictor_learning_rate: Rate | None = Field(
        None,
        description="Peak learning rate of the predictor stage; null: that of the size, 4e-5 "
        "from weights.",
    )
    adam_beta1: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.9, description="AdamW's decay of the mean gradient, in both stages."
    )
    adam_beta2: Annotated[Number, Field(ge=0, lt=1)] = Field(
        0.95, description="AdamW's decay of the mean squared gradient."
    )
    adam_weight_decay: Annotated[Number, Field(ge=0)] = Field(
        0.1, description="AdamW's weight decay."
    )
    accumulation_steps: Positive = Field(
        1,
        description="Parts that a batch is split into, to save memory; a step is still made of "
        "the whole batch.",
    )


class ModelPaths(Section):
    """Weights to start from, and the folder of the run. '{exp_name}' stands for exp_name."""

    pretrained_tokenizer: Text = Field(
        None,
        description="Tokenizer to start from: a folder with config.json and model.safetensors, or "
        "a name on the hub; empty: from scratch.",
    )
    pretrained_predictor: Text = Field(None, description="Predictor to start from; likewise.")
    exp_name: Text = Field(
        None, description="Name of the run; empty: that of the config's file without its ending."
    )
    base_path: Text = Field(None, description="Folder of all runs; empty: 'runs'.")
    base_save_path: Text = Field(None, description="Folder of this run; empty: base_path/exp_name.")
    finetuned_tokenizer: Text = Field(
        None,
        description="Tokenizer that the predictor stage takes where experiment.train_tokenizer is "
        "false; empty: the one of this run.",
    )
    tokenizer_save_name: str = Field(
        "tokenizer",
        min_length=1,
        description="Folder in the run for the tokenizer; its weights lie in best_model there.",
    )
    basemodel_save_name: str = Field(
        "basemodel", min_length=1, description="Folder in the run for the predictor; likewise."
    )


class Experiment(Section):
    """What is trained, and what the run is called."""

    name: str = Field("", description="Title, noted in the run.")
    description: str = Field("", description="Note on the run, kept in it.")
    use_comet: bool = Field(False, description="Has no effect here: logs are CSV and TensorBoard.")
    train_tokenizer: bool = Field(True, description="Whether the tokenizer stage trains.")
    train_basemodel: bool = Field(True, description="Whether the predictor stage trains.")
    skip_existing: bool = Field(
        False, description="Whether a run that is finished is left as it is, without an error."
    )
    pre_trained: bool | None = Field(
        None,
        description="Whether weights are read from the pretrained paths; false: from scratch, "
        "with the networks' sizes that they name. null: where there is a path.",
    )
    pre_trained_tokenizer: bool | None = Field(
        None, description="The same for the tokenizer alone."
    )
    pre_trained_predictor: bool | None = Field(
        None, description="The same for the predictor alone."
    )


class Device(Section):
    """Where it runs."""

    use_cuda: bool | None = Field(
        None,
        description="true: on a CUDA GPU, on the CPU with a warning if there is none; false: on "
        "the CPU; null: what trainer.accelerator says.",
    )
    device_id: Annotated[Whole, Field(ge=0)] = Field(
        0, description="Number of the GPU, where trainer.devices is not given."
    )


class Distributed(Section):
    """Several processes: start with torchrun, or set trainer.devices."""

    use_ddp: bool = Field(
        False, description="Understood: the processes that are started decide, this key does not."
    )
    backend: Text = Field(
        None, description="nccl for GPUs, gloo for CPUs; empty: the one that fits the device."
    )


class Trainer(Section):
    """Lightning's trainer, of both stages."""

    accelerator: str = Field("auto", description="auto, cpu, gpu, mps, ...")
    devices: Positive | Annotated[list[Whole], Field(min_length=1)] | Literal["auto"] | None = (
        Field(None, description="Number of devices, or a list of their numbers; null: one.")
    )
    num_nodes: Positive = Field(1, description="Number of machines.")
    strategy: str = Field("auto", description="auto, ddp, ddp_spawn, ...")
    precision: str = Field("32-true", description="32-true, or bf16-mixed on a GPU.")
    gradient_clip_val: Rate | None = Field(
        None, description="Norm at which gradients are clipped; null: 2 (tokenizer), 3 (predictor)."
    )
    limit_train_batches: Positive | Annotated[Number, Field(gt=0, le=1)] | None = Field(
        None, description="Batches of an epoch at most, or a share of them; null: all."
    )
    limit_val_batches: Positive | Annotated[Number, Field(gt=0, le=1)] | None = Field(
        None, description="Batches of a validation at most, or a share of them; null: all."
    )


MODEL_KEYS = (
    "size",
    "representation",
    "d_model",
    "n_heads",
    "n_layers",
    "ff_dim",
    "ffn_dropout",
    "attn_dropout",
    "resid_dropout",
    "token_dropout",
    "s1_bits",
    "s2_bits",
    "tokenizer_d_model",
    "tokenizer_n_heads",
    "tokenizer_n_layers",
    "tokenizer_ff_dim",
    "beta",
    "gamma0",
    "gamma",
    "zeta",
    *AUGMENTATION,
)
"""Parameters of a KronosModel under `model`; its docstring and signature describe them."""


def _documented(name: str) -> str:
    """What KronosModel's docstring says of a parameter, in the comments' style."""
    docstring = inspect.getdoc(KronosModel) or ""
    found = re.search(rf"^(?:\w+, )*{name}(?:, \w+)*\n((?:    .*\n)+)", docstring, re.M)
    assert found is not None, f"KronosModel does not document {name}"
    words = " ".join(found.group(1).split()).replace("`", "")
    return re.sub(r"\bNone\b", "null", words)


def _of_the_model(title: str, base: type[Section], names: tuple[str, ...]) -> type[Section]:
    """A section with parameters of a KronosModel before those of its `base`."""
    hints = get_type_hints(KronosModel.__init__)
    defaults = inspect.signature(KronosModel.__init__).parameters
    numbers = {int: Whole, int | None: Whole | None, float: Number, float | None: Number | None}
    fields: dict[str, Any] = {}
    for name in names:
        kind = numbers.get(hints[name], hints[name])
        fields[name] = (kind, Field(defaults[name].default, description=_documented(name)))
    return create_model(title, __base__=base, __doc__=base.__doc__, **fields)


class _Model(Section):
    """Sizes of the networks, the quantizer's loss, and how training windows are varied."""


class _Sampling(Section):
    """How forecasts are drawn; may change after training."""

    num_samples: Positive = Field(
        100, description="Sample paths of a forecast, where a command does not say."
    )
    calibrate: bool = Field(
        False,
        description="Whether fit ends with the choice of temperature and top_p by the CRPS of "
        "validation windows.",
    )


if TYPE_CHECKING:
    Model: TypeAlias = _Model
    Sampling: TypeAlias = _Sampling
else:
    Model = _of_the_model("Model", _Model, MODEL_KEYS)
    Sampling = _of_the_model("Sampling", _Sampling, SAMPLING)


class Config(Section):
    """A config: all its sections."""

    data: Data
    training: Training = Field(default_factory=Training)
    model_paths: ModelPaths = Field(default_factory=ModelPaths)
    experiment: Experiment = Field(default_factory=Experiment)
    device: Device = Field(default_factory=Device)
    distributed: Distributed = Field(default_factory=Distributed)
    model: Model = Field(default_factory=Model)
    sampling: Sampling = Field(default_factory=Sampling)
    trainer: Trainer = Field(default_factory=Trainer)


def sections() -> dict[str, type[Section]]:
    """The sections of a config by name, in the order in which they are written."""
    found = {}
    for name, field in Config.model_fields.items():
        assert isinstance(field.annotation, type) and issubclass(field.annotation, Section)
        found[name] = field.annotation
    return found
