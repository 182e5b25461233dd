"""What training needs beside MONAI and Ignite: seeds of every iteration, and an end where the loss is no number."""

from __future__ import annotations

from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch.optim import Optimizer

from .sampling import SliceStream


class SeedIterations:
    """Make every iteration's randomness a function of the seed and its number, so that a resumed training repeats it.

    Args:
        seed: Seed of dropout.
        prepare_batch: Gets the number of the iteration as its attribute ``iteration``.
        sampler: Gets the iteration that a resumed training starts from.
    """

    def __init__(self, seed: int, prepare_batch: Any, sampler: SliceStream):
        self.seed, self.prepare_batch, self.sampler = seed, prepare_batch, sampler

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


def clip_gradients(optimizer: Optimizer, largest_norm: float) -> Optimizer:
    """Let an optimizer scale gradients down to a norm before each of its steps.

    Args:
        optimizer: Changed in place, and given back.
        largest_norm: Of all gradients together.
    """

    def clip(optimizer: Optimizer, *_: object) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, largest_norm)

    optimizer.register_step_pre_hook(clip)
    return optimizer


class AverageWeights(EMAHandler):
    """Ignite's running average of weights, begun with the weights that the training begins with.

    These need not be those of the network that this was made with: MONAI Label loads a model's when the trainer starts.
    """

    def attach(self, engine: Engine, *arguments: Any, **options: Any) -> None:
        """Attach to the trainer, before what loads a checkpoint."""
        engine.add_event_handler(Events.STARTED, self._start)
        super().attach(engine, *arguments, **options)

    def _start(self) -> None:
        self.ema_model.load_state_dict(self.model.state_dict())


class FiniteLoss:
    """End a training whose loss is no number any more with an error; the last checkpoint stays."""

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, before anything that saves."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Look at the loss of an iteration.

        Raises:
            RuntimeError: When it is NaN or infinite.
        """
        output: Any = engine.state.output
        if not torch.isfinite(output["loss"]):
            raise RuntimeError(
                f"The loss became {output['loss'].item()} at iteration {engine.state.iteration}: lower "
                "`learning_rate`, look at the training scans for extreme intensities, and run the same command again."
            )
