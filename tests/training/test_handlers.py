"""What the handlers of a training promise, on a network of one weight that grows by one in each iteration."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from scripts.common.model_file import load_model, save_model
from scripts.training.calibration import finish_training, recalibrate
from scripts.training.checkpoint import TrainingCheckpoint
from scripts.training.handlers import (
    AverageWeights,
    ClipGradients,
    SeedIterations,
    average_weights,
    stop_on_non_finite_loss,
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


def test_random_numbers_of_an_iteration_depend_on_the_seed_and_its_number_alone():
    def drawn(seed, first=0):
        seen = {}
        prepare, sampler = SimpleNamespace(iteration=None), SimpleNamespace(iteration=None)

        def step(engine, batch):
            assert prepare.iteration == engine.state.iteration and sampler.iteration == first
            seen[engine.state.iteration] = float(torch.rand(1))

        trainer = Engine(step)
        trainer.add_event_handler(Events.STARTED, lambda engine: setattr(engine.state, "iteration", first))
        SeedIterations(seed, prepare, sampler).attach(trainer)
        trainer.run([0] * 4, max_epochs=1)
        return seen

    with torch.random.fork_rng():
        whole = drawn(3)
        torch.rand(5)
        assert drawn(3) == whole and len(set(whole.values())) == 4
        assert drawn(4) != whole
        later = drawn(3, first=2)
    assert later == {number: whole[number] for number in (3, 4)}


@pytest.mark.parametrize(("largest_norm", "step"), [(0.5, 0.5), (100.0, 8.0)])
def test_gradients_are_clipped_before_the_step(largest_norm, step):
    network = nn.Linear(1, 1, bias=False)
    network.weight.data.fill_(4.0)
    SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[{"image": torch.ones(1, 1), "label": torch.zeros(1, 1)}],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=nn.MSELoss(),
        train_handlers=[ClipGradients(network, largest_norm)],
        decollate=False,
    ).run()
    assert 4 - network.weight.item() == pytest.approx(step, rel=1e-4)


@pytest.mark.parametrize("loss", ["inf", "-inf", "nan"])
def test_loss_that_is_no_finite_number_ends_the_training(loss):
    state = SimpleNamespace(output={"loss": torch.tensor(float(loss))}, iteration=7)
    with pytest.raises(RuntimeError, match=f"The loss became {loss} at iteration 7: lower `learning_rate`"):
        stop_on_non_finite_loss(SimpleNamespace(state=state))
    state.output["loss"] = torch.tensor(1e30)
    stop_on_non_finite_loss(SimpleNamespace(state=state))


def test_finished_model_holds_what_its_slices_were(model, tmp_path, capsys):
    best = {name: value + 1 for name, value in model.state_dict().items() if name.endswith("conv1.bias")}
    checkpoint = SimpleNamespace(path=tmp_path / "c.pt", interrupted=None, best_weights=best, best_metric=0.5)
    path = str(tmp_path / "model.pt")

    def calibration(model, batches):
        model.threshold.fill_(2.5)
        return 2.5

    finish_training(
        model, checkpoint, ["first_iteration", "masked"], path, calibration, [], (150.0, 190.0), (-20.0, 30.0)
    )
    found = load_model(path)
    assert found.field_of_view.tolist() == [150, 190] and found.planes.tolist() == [-20, 30]
    assert found.threshold == 2.5 and all(torch.equal(found.state_dict()[name], value) for name, value in best.items())
    assert "Best validation error 0.5, threshold 2.5" in capsys.readouterr().out


def test_new_threshold_goes_to_the_file_that_was_asked_for(model, small_network, tmp_path):
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    save_model(model, first)
    before = first.read_bytes()

    def calibration(model, batches):
        model.threshold.fill_(2.5)
        return 2.5

    recalibrate(model, first, calibration, [], output_file=second)
    assert first.read_bytes() == before
    assert load_model(second).threshold == 2.5
    recalibrate(model, first, calibration, [])
    assert load_model(first).threshold == 2.5
