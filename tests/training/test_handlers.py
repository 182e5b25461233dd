"""What the handlers of a training promise, on a network of one weight that grows by one in each iteration."""

from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from scripts.training.handlers import AverageWeights, FiniteLoss, SeedIterations, clip_gradients
from torch import nn


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
        optimizer=clip_gradients(torch.optim.SGD(network.parameters(), lr=1.0), largest_norm),
        loss_function=nn.MSELoss(),
        decollate=False,
    ).run()
    assert 4 - network.weight.item() == pytest.approx(step, rel=1e-4)


@pytest.mark.parametrize("loss", ["inf", "-inf", "nan"])
def test_loss_that_is_no_finite_number_ends_the_training(loss):
    state = SimpleNamespace(output={"loss": torch.tensor(float(loss))}, iteration=7)
    with pytest.raises(RuntimeError, match=f"The loss became {loss} at iteration 7"):
        FiniteLoss()(SimpleNamespace(state=state))
    state.output["loss"] = torch.tensor(1e30)
    FiniteLoss()(SimpleNamespace(state=state))


def test_average_begins_with_the_weights_that_are_loaded_when_the_training_starts():
    network = nn.Linear(1, 1, bias=False)
    average = AverageWeights(network, momentum=0.5)
    trainer = Engine(lambda engine, batch: network.weight.data.add_(1))
    trainer.add_event_handler(Events.STARTED, lambda: network.weight.data.fill_(10))  # as MONAI Label loads its model
    average.attach(trainer)
    trainer.run([0, 0])
    assert average.ema_model.weight.item() == 11.25  # between 10, 11 and 12
