"""What training needs beside MONAI and Ignite: the corruption, the order of slices, checkpoints."""

from __future__ import annotations

import logging
import math
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import ProgressBar
from monai.engines import IterationEvents
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from ..common.threads import fit_threads
from .corruption import PrepareCorruptedBatch
from .sampling import SliceStream

logger = logging.getLogger(__name__)


class ClipGradients:
    """Limit the norm of the gradients before every step.

    Args:
        network: The network in training.
        largest_norm: Gradients of a larger norm are scaled down to it.
    """

    def __init__(self, network: nn.Module, largest_norm: float):
        self.network = network
        self.largest_norm = largest_norm

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self._clip)

    def _clip(self, engine: Engine) -> None:
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.largest_norm)


class SeedIterations:
    """Make every iteration's randomness a function of the seed and its number, so that a resumed training repeats it.

    Args:
        seed: Seed of dropout.
        prepare_batch: Gets the number of the iteration.
        sampler: Gets the iteration that a resumed training starts from.
    """

    def __init__(self, seed: int, prepare_batch: PrepareCorruptedBatch, sampler: SliceStream):
        self.seed = seed
        self.prepare_batch = prepare_batch
        self.sampler = sampler

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_STARTED, self._iteration)

    def _start(self, engine: Engine) -> None:
        self.sampler.iteration = engine.state.iteration

    def _iteration(self, engine: Engine) -> None:
        self.prepare_batch.iteration = engine.state.iteration
        rank_seed = 1_000_000_007 * idist.get_rank()  # dropout is each process's own
        torch.manual_seed(self.seed * 1_000_003 + engine.state.iteration + rank_seed)


def average_weights(averaged: list[Tensor], newest: list[Tensor], updates: Tensor, momentum: float) -> None:
    """Move averaged weights towards the newest ones, in place: an exponential moving average with a warm-up.

    PyTorch's `get_ema_multi_avg_fn` has no warm-up: after 100 iterations with a momentum of 0.005, three fifths of its
    average would still be the untrained network.

    Args:
        averaged: Averaged parameters.
        newest: Newest parameters.
        updates: Number of updates so far.
        momentum: Weight of the newest, in (0, 1]; during the first updates it is at least 10 / (10 + ``updates``).
    """
    torch._foreach_lerp_(averaged, newest, max(momentum, 10 / (10 + int(updates))))


class AverageWeights:
    """Average the weights after every iteration.

    Ignite's `EMAHandler` does the same, but its warm-up starts again when a training is resumed.

    Args:
        averaged: The average; batch norm's statistics are copied.
        network: The network in training.
    """

    def __init__(self, averaged: AveragedModel, network: nn.Module):
        self.averaged = averaged
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before anything that validates or saves."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._update)

    def _update(self, engine: Engine) -> None:
        self.averaged.update_parameters(self.network)


class FitThreads:
    """Attaches `fit_threads` to every iteration."""

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, fit_threads)


class Progress:
    """Ignite's progress bar with the loss, which its own ``attach`` leaves out where it gets the engine alone."""

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer."""
        ProgressBar(persist=True, desc="training").attach(
            engine, output_transform=lambda output: {"loss": output["loss"].item()}
        )


def stop_on_non_finite_loss(engine: Engine) -> None:
    """End a training whose loss is no number any more; the last checkpoint stays.

    Raises:
        RuntimeError: When the loss is NaN or infinite.
    """
    output: Any = engine.state.output
    if not torch.isfinite(output["loss"]):
        raise RuntimeError(
            f"The loss became {output['loss'].item()} at iteration {engine.state.iteration}: lower "
            "`learning_rate`, look at the training slices for extreme intensities, and go on with --resume True."
        )


class FiniteLoss:
    """Attaches `stop_on_non_finite_loss` to every iteration."""

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before anything that saves."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, stop_on_non_finite_loss)


def validation_error(validator: Engine) -> float:
    """The key metric of MONAI's evaluator after its last run."""
    state: Any = validator.state
    return float(state.metrics[state.key_metric_name])


class WatchTraining:
    """Warn of what makes a training useless without ending it: batches of one slice, a validation error that rises.

    Args:
        network: The network in training.
        validator: Its state has the validation error as key metric (lower is better).
        patience: Validations that an error may stay above its best.
        largest_rise: Part, in (0, 1), of the error's fall so far that it may have risen again by then.
    """

    def __init__(self, network: nn.Module, validator: Engine, patience: int = 5, largest_rise: float = 0.25):
        self.network = network
        self.validator = validator
        self.patience = patience
        self.largest_rise = largest_rise
        self.errors: list[float] = []
        self.warned_of = math.nan

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the validation."""
        engine.add_event_handler(Events.ITERATION_STARTED(once=1), self._batch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._validated)

    def _batch(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        normalized = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.network.modules())
        if normalized and len(batch["brain_mask"]) * idist.get_world_size() == 1:
            logger.warning(
                "The batches hold one slice, of which batch normalization takes its statistics; those of other slices "
                "differ, and so will the validation: set `batch_size` to 2 or more (8 by default)."
            )

    def _validated(self, engine: Engine) -> None:
        self.errors.append(validation_error(self.validator))
        best = min(self.errors)
        age = len(self.errors) - 1 - self.errors.index(best)
        risen = self.errors[-1] - best > self.largest_rise * (self.errors[0] - best)
        if age >= self.patience and risen and best != self.warned_of:
            self.warned_of = best
            logger.warning(
                f"The validation error was lowest, {best:.4g}, {age} validations ago and is {self.errors[-1]:.4g} at "
                f"iteration {engine.state.iteration}. The best weights are kept; more iterations may not help: train "
                "on more slices, or set a lower `learning_rate` or fewer `iterations`."
            )
