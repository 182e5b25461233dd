"""The state of a training on disk."""

import os

import pytest
import torch
from ignite.engine import Engine
from scripts.common.outputs import RECORD
from scripts.training.checkpoint import TrainingCheckpoint
from torch import nn


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Train so many epochs in all, each of which adds 1 to a weight; gives the checkpoint and the weight."""
    monkeypatch.setattr("signal.signal", lambda number, handler: None)

    def run(epochs, resume=True, **settings):
        network = nn.Linear(1, 1, bias=False)
        network.weight.data.zero_()

        def step(engine, batch):
            network.weight.data += 1

        trainer = Engine(step)
        parts = {"network": network, "optimizer": torch.optim.SGD(network.parameters())}
        checkpoint = TrainingCheckpoint(str(tmp_path / "checkpoint.pt"), parts, settings, resume)
        checkpoint.attach(trainer)
        trainer.run([0], max_epochs=epochs)
        return checkpoint, float(network.weight.detach())

    return run


def test_training_goes_on_where_it_ended_and_can_be_made_longer(train, capsys):
    assert train(2)[1] == 2
    checkpoint, weight = train(5)
    assert weight == 5 and checkpoint.trained and "goes on from iteration 2" in capsys.readouterr().out
    checkpoint, weight = train(5)
    assert weight == 5 and not checkpoint.trained


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1, "batch_size": 8}, "`seed` was 0 and is 1"),
        ({"seed": 0, "batch_size": 4}, "`batch_size` was 8 and is 4"),
        ({"seed": 0}, "`batch_size` was 8 and is None"),
    ],
)
def test_training_does_not_go_on_with_other_settings(train, settings, message):
    train(1, seed=0, batch_size=8)
    with pytest.raises(ValueError, match=f"belongs to another training \\({message}\\)"):
        train(2, **settings)
    assert train(2, seed=0, batch_size=8)[1] == 2


def test_training_does_not_go_on_with_weights_that_are_no_numbers(train, tmp_path):
    train(1)
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    checkpoint["network"]["weight"].fill_(torch.nan)
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match="it holds numbers that are not finite.: set another `output_dir`"):
        train(2)


def test_checkpoint_from_elsewhere_is_gone_on_with(train, tmp_path):
    train(2)
    (tmp_path / RECORD).unlink()  # as where it alone was copied
    for epochs in (4, 6):
        assert train(epochs)[1] == epochs
    with pytest.raises(ValueError, match="checkpoint.pt is in the way, and no earlier output of this command"):
        train(8, resume=False)


def test_model_file_is_made_again_where_the_training_has_gone_on_since(train, tmp_path):
    model = tmp_path / "model.pt"
    assert not train(2)[0].has_made(model)
    model.touch()
    assert not train(3)[0].has_made(model) and not train(3)[0].has_made(model)  # killed before the model was written
    os.utime(model, ns=((tmp_path / "checkpoint.pt").stat().st_mtime_ns,) * 2)
    assert train(3)[0].has_made(model)
