"""Commands of the bundle in processes of their own that start at once, and that a test can kill or make fail."""

import atexit
import importlib
import json
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import monai.bundle.scripts
import torch
from conftest import CONFIGS, SMALL_NETWORK, files_of

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    ["monai.bundle.scripts", "monai.engines", "monai.handlers", "ignite.handlers", "nibabel", "skimage.measure", "fire"]
    + ["torch.utils.tensorboard", "tensorboard.backend.event_processing.event_accumulator", "matplotlib", "PIL.Image"]
    + ["monai.metrics", "monai.networks.nets", "monai.inferers", "pandas"]
)


class Command:
    """``python -m monai.bundle run`` in a fork of a process that has imported everything.

    Args:
        run_id: What to run.
        config: Name of a config of the bundle.
        folder: Working folder.
        file_limit: No file may become larger, in bytes.
        fault: A function (``module:name``), the number of its call after which something happens, and what: a signal,
            or a command to run.
        overrides: Ids and their values.
    """

    def __init__(self, run_id, config, folder, file_limit=None, fault=None, **overrides):
        overlay = Path(folder) / "overlay.json"
        overlay.write_text(json.dumps(SMALL_NETWORK if config == "train" else {}))
        arguments = ["run", run_id, "--config_file", str([*files_of(config), str(overlay)])]
        for name, value in overrides.items():
            arguments += [f"--{name}", str(value)]
        self.pipe, output = SERVER.Pipe(duplex=False)
        self.output = b""
        self.process = SERVER.Process(target=execute, args=(arguments, str(folder), output, file_limit, fault))
        self.started = time.monotonic()
        self.process.start()
        output.close()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        while part := os.read(self.pipe.fileno(), 65536):
            self.output += part

    def wait(self):
        """Wait for the end; gives exit code, output and seconds."""
        self.process.join(300)
        seconds = time.monotonic() - self.started
        with suppress(ProcessLookupError):  # workers of a killed process
            os.killpg(self.process.pid, signal.SIGKILL)
        self.reader.join()
        assert self.process.exitcode is not None, "the command hangs"
        return self.process.exitcode, self.output.decode(), seconds

    def kill_after(self, seconds):
        """SIGKILL so long after the start; gives whether the command was still running."""
        self.process.join(max(0, self.started + seconds - time.monotonic()))
        self.process.kill()
        return self.wait()[0] == -signal.SIGKILL


def execute(arguments, folder, output, file_limit, fault):
    """What the process does."""
    os.setsid()
    os.chdir(folder)
    os.dup2(output.fileno(), 1), os.dup2(output.fileno(), 2), output.close()
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ.pop("ITERMASK_TRACEBACK", None)
    torch.set_num_threads(1)
    sys.path.insert(0, str(CONFIGS.parent))
    if fault is not None:
        _inject(*fault)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))
    sys.argv = [monai.bundle.scripts.__file__.replace("scripts.py", "__main__.py"), *arguments]
    try:
        runpy.run_module("monai.bundle", run_name="__main__")
    except SystemExit:
        raise
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(1) from None
    finally:
        atexit._run_exitfuncs()  # a fork leaves them out


def _inject(target, call, action):
    """Send a signal to this process, or run a command, when a function has been called so often."""
    module, _, name = target.partition(":")
    owner, _, attribute = name.rpartition(".")
    place = importlib.import_module(module)
    place = getattr(place, owner) if owner else place
    function, calls = getattr(place, attribute), []

    def counted(*arguments, **options):
        result = function(*arguments, **options)
        calls.append(True)
        if len(calls) == call:
            os.kill(os.getpid(), action) if isinstance(action, int) else subprocess.run(action, check=True)
        return result

    setattr(place, attribute, counted)


def last_error(code, output):
    """The one sentence that a failed command ends with, without any traceback."""
    lines = [line for line in output.replace("\r", "\n").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    assert code == 1 and "Traceback" not in output and errors == lines[-1:], output
    return errors[0]


def temporary_files(folder):
    """What a run has left that is no result."""
    return [str(path) for path in Path(folder).rglob("*") if ".partial." in path.name or path.name.endswith(".lock")]
