import optuna
from factories import TINY, candles

from darts_kronos import KronosModel, tuning


def test_the_search_space_holds_valid_parameters():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        parameters = tuning.suggest_parameters(study.ask())
        KronosModel(input_chunk_length=24, output_chunk_length=6, **parameters)


def test_a_study_minimises_the_crps_of_backtests():
    series = candles(120)
    objective = tuning.crps_objective(
        series[:80], series[60:], stride=5, num_samples=5, **TINY | {"n_layers": 1}
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=2)
    assert len(study.trials) == 2
    assert 0 < study.best_value < 0.1
