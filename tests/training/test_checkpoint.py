"""The state of a training on disk."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from scripts.training.checkpoint import TrainingCheckpoint
from scripts.training.handlers import (
    AverageWeights,
    average_weights,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train one epoch for each given validation error, the average being the newest weights; gives the checkpoint."""
    monkeypatch.setattr("signal.signal", lambda number, handler: None)

    def run(errors, resume=False, **settings):
        network = nn.Linear(1, 1, bias=False)
        network.weight.data.zero_()
        average = AveragedModel(network, multi_avg_fn=partial(average_weights, momentum=1.0))
        state = SimpleNamespace(metrics={}, key_metric_name="error")

        def step(engine, batch):
            network.weight.data += 1

        trainer = Engine(step)
        AverageWeights(average, network).attach(trainer)
        trainer.add_event_handler(
            Events.EPOCH_COMPLETED, lambda engine: state.metrics.update(error=errors[engine.state.epoch - 1])
        )
        parts = {"network": network, "optimizer": torch.optim.SGD(network.parameters())}
        checkpoint = TrainingCheckpoint(
            tmp_path / "checkpoint.pt", parts, average, SimpleNamespace(state=state), settings, resume
        )
        checkpoint.attach(trainer)
        trainer.run([0], max_epochs=len(errors))
        assert average.module.weight == network.weight == len(errors)
        return checkpoint

    return run


def test_best_weights_are_the_averaged_ones_of_the_lowest_validation_error(train):
    best = train([3.0, 1.0, 2.0, 1.0])
    assert best.best_metric == 1 and best.best_weights["weight"] == 2


def test_resumed_training_still_knows_the_best_weights(train):
    train([1.0, 2.0])
    best = train([1.0, 2.0, 1.5], resume=True)
    assert best.best_metric == 1 and best.best_weights["weight"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1, "batch_size": 8}, "`seed` was 0 and is 1"),
        ({"seed": 0, "batch_size": 4}, "`batch_size` was 8 and is 4"),
        ({"seed": 0}, "`batch_size` was 8 and is None"),
    ],
)
def test_training_does_not_go_on_with_other_settings(train, settings, message):
    train([1.0], seed=0, batch_size=8)
    with pytest.raises(ValueError, match=f"belongs to another training \\({message}\\)"):
        train([1.0, 2.0], resume=True, **settings)
    assert train([1.0, 2.0], resume=True, seed=0, batch_size=8).best_metric == 1
