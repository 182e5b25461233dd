"""The state of a training on disk: it goes on from there after any interruption."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from ..common.outputs import file_digest, locked, read_tensors, save_tensors

logger = logging.getLogger(__name__)


class TrainingCheckpoint:
    """Save all of a training in one file, atomically, and go on from it.

    MONAI's `CheckpointSaver` writes in place, so a killed process can leave half a checkpoint. The file is written
    after every validation, and when the process gets SIGINT or SIGTERM, which end the training after the iteration in
    progress. Of several processes the first writes and all read; a signal to one of them ends the training of all.

    Args:
        path: The checkpoint.
        save_dict: Named objects with a state dict; the trainer is saved beside them.
        settings: What decides how the training goes: numbers, texts or lists of them. A training that goes on must have
            the same.
        resume: Go on from ``path`` where it exists.

    Attributes:
        interrupted: The signal that ended the training, or None.
        trained: Whether there was anything left to train.
    """

    def __init__(self, path: str, save_dict: Mapping[str, Any], settings: Mapping[str, Any], resume: bool = True):
        self.path, self.save_dict, self.resume = Path(path), save_dict, resume
        self.settings = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        self.received = 0
        self.interrupted: signal.Signals | None = None
        self.trained = False
        self.replaces: str | None = None  # digest of the checkpoint with which the training goes on
        self.held = ExitStack()  # the lock of the file, and the signals

    def attach(self, engine: Engine) -> None:
        """Attach to the trainer, after the averaging of weights and the validation."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._release)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._release)

    def _start(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            self.held.enter_context(locked(self.path))
        for number in (signal.SIGINT, signal.SIGTERM):
            self.held.callback(signal.signal, number, signal.signal(number, self._interrupt))
        if self.resume and self.path.exists():
            self._load(engine)
        iterations = idist.all_gather(engine.state.iteration)
        if isinstance(iterations, list) and len(set(iterations)) > 1:
            raise RuntimeError(
                f"The processes go on from different iterations {iterations}: set `output_dir` to a folder that all "
                "of them share."
            )

    def _load(self, engine: Engine) -> None:
        try:
            checkpoint: Any = read_tensors(self.path)
            before = checkpoint["settings"]
            for name in {**self.settings, **before}:
                if self.settings.get(name) != before.get(name):
                    raise ValueError(f"`{name}` was {before.get(name)!r} and is {self.settings.get(name)!r}")
            if not all(value.isfinite().all() for value in checkpoint["network"].values()):
                raise ValueError("it holds numbers that are not finite")
            max_epochs, epoch_length = engine.state.max_epochs, engine.state.epoch_length
            for name, target in self.save_dict.items():
                target.load_state_dict(checkpoint[name])
            engine.load_state_dict(checkpoint["trainer"])
            engine.state.max_epochs, engine.state.epoch_length = max_epochs, epoch_length
        except Exception as error:  # whatever a file of another's makes the parts of a training raise
            raise ValueError(
                f"The checkpoint {self.path} belongs to another training ({str(error).partition(chr(10))[0][:200]}): "
                "set another `output_dir`, or the options and scans that it was made with."
            ) from None
        self.replaces = file_digest(self.path)
        print(f"Training goes on from iteration {engine.state.iteration} of {self.path}.")

    def _release(self, engine: Engine, error: BaseException | None = None) -> None:
        """Leave the signals to whom they belonged: a server that trains, for one, must still end when told to."""
        self.held.close()
        if error is not None:
            raise error

    def _interrupt(self, number: int, frame: object) -> None:
        self.received = number
        print(f"{signal.Signals(number).name}: saving after this iteration.", flush=True)

    def _share_signal(self) -> None:
        number = int(idist.all_reduce(self.received, "MAX"))
        self.interrupted = signal.Signals(number) if number else None

    def _iteration(self, engine: Engine) -> None:
        self.trained = True
        self._share_signal()
        state: Any = engine.state
        if self.interrupted is not None and state.iteration % state.epoch_length:
            self._save(engine)
            engine.terminate()

    def _epoch(self, engine: Engine) -> None:
        self._share_signal()  # the validation has just ended
        self._save(engine)
        if self.interrupted is not None:
            engine.terminate()

    def _save(self, engine: Engine) -> None:
        if idist.get_rank() == 0:
            content = {name: target.state_dict() for name, target in self.save_dict.items()}
            content |= {"settings": self.settings, "trainer": engine.state_dict()}
            save_tensors(self.path, content, replaces=self.replaces)
            self.replaces = self.replaces and file_digest(self.path)
            logger.info(f"Saved {self.path} at iteration {engine.state.iteration}.")

    def has_made(self, model_file: str) -> bool:
        """Whether there was nothing left to train, and a model file is there that is no older than the checkpoint."""
        there = not self.trained and os.path.isfile(model_file) and self.path.is_file()
        return there and os.stat(model_file).st_mtime_ns >= self.path.stat().st_mtime_ns

    def stop_interrupted(self) -> None:
        """End the program where a signal ended the training.

        Raises:
            SystemExit: Saying how to go on.
        """
        if self.interrupted is not None:
            message = f"{self.interrupted.name}: training stopped, saved {self.path}; run the same command to go on."
            raise SystemExit(message if idist.get_rank() == 0 else 1)
