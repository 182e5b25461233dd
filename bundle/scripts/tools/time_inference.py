"""Where the time of ``run inference`` goes, and how it and memory grow with the data: `profile_command`, `growth`.

``python -m scripts.tools.time_inference`` in the folder ``bundle`` prints two tables. The command is looked at from
outside its code: a thread of the same process notes every few milliseconds what the main thread is at.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import torch

BUNDLE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(BUNDLE))

from scripts.common.errors import report_errors  # noqa: E402
from scripts.common.files import atomic  # noqa: E402
from scripts.tools.benchmark import markdown, processor  # noqa: E402
from scripts.tools.phantoms import make_phantoms  # noqa: E402

# What the main thread is at, by the innermost of these functions that it is in.
PARTS = {
    "monai/__init__.py:<module>": "loading PyTorch and MONAI",
    "scripts/data/transforms.py:BrainMaskd.__call__": "brain",
    "scripts/data/transforms.py:ScaleBrainIntensityd.__call__": "scaling",
    "monai/transforms/io/dictionary.py:LoadImaged.__call__": "reading",
    "monai/transforms/io/dictionary.py:SaveImaged.__call__": "writing",
    "scripts/inference/volumes.py:Volumes._finish": "numbers, records and tables",
    "scripts/inference/volumes.py:Volumes._write_tables": "numbers, records and tables",
    "scripts/method/volume.py:predict": "networks",
    "scripts/method/refinement.py:Refinement.refine": "networks",
    "scripts/method/volume.py:segment_volume": "grid, smoothing and threshold",
    "scripts/common/model_file.py:load_model": "reading the model",
}
OTHERS = "config, and all else"
WATCH = """
import atexit, inspect, json, runpy, sys, threading, time
parts, output, others = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
spent, done, threads = {}, threading.Event(), {threading.main_thread().ident}
names = {}
def name_of(frame):
    code = frame.f_code
    if sys.version_info >= (3, 11):
        return code.co_qualname
    for owner in type(frame.f_locals.get("self")).__mro__:
        if getattr(inspect.unwrap(vars(owner).get(code.co_name)), "__code__", None) is code:
            return owner.__qualname__ + "." + code.co_name
    return code.co_name
def part_of(frame):
    while frame is not None:
        code = frame.f_code
        if code not in names:
            place = code.co_filename.replace("\\\\", "/") + ":" + name_of(frame)
            names[code] = next((part for end, part in parts.items() if place.endswith("/" + end)), None)
        if names[code]:
            return names[code]
        frame = frame.f_back
    return others
def at_work(thread, frames):
    # while it waits for the reader it does what the reader does
    part = part_of(frames.get(thread))
    if part == others:
        reading = [part_of(frame) for other, frame in frames.items() if other not in (thread, own)]
        part = next((found for found in reading if found in ("reading", "brain", "scaling")), part)
    return part
def watch():
    global own
    own, last = threading.get_ident(), (time.perf_counter(), time.process_time())
    while not done.wait(0.003):
        part = at_work(threading.main_thread().ident, sys._current_frames())
        now = time.perf_counter(), time.process_time()
        spent[part] = [before + end - start for before, end, start in zip(spent.get(part, (0, 0)), now, last)]
        last = now
thread = threading.Thread(target=watch, daemon=True)
thread.start()
def end():
    done.set()
    thread.join()
    open(output, "w").write(json.dumps(spent))
atexit.register(end)
sys.argv = ["", *sys.argv[4:]]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""


class Run(NamedTuple):
    """What a run of the command took: seconds from start to end, of all cores, and the most memory in MB."""

    seconds: float
    cpu_seconds: float
    memory: float


def run_inference(options: Sequence[str], watch: Path | None = None) -> Run:
    """Run the command.

    Args:
        options: Ids and their values.
        watch: Where to write the seconds of each part, as JSON.

    Raises:
        RuntimeError: When the command fails.
    """
    arguments = ["run", "inference", "--config_file", str(BUNDLE / "configs" / "inference.json"), *options]
    begin = ["-c", WATCH, json.dumps(PARTS), str(watch), OTHERS] if watch else ["-m", "monai.bundle"]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([sys.executable, *begin, *arguments], stdout=subprocess.DEVNULL, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        lines = said.read().decode().strip().splitlines()
    if process.returncode:
        raise RuntimeError(f"`run inference` ended with {process.returncode}: {lines[-1] if lines else ''}")
    return Run(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def profile_command(options: Sequence[str], repeats: int, folder: Path) -> str:
    """A table of the seconds of each part of the command on one volume, as a user has it; of the fastest run."""
    runs: list[tuple[Run, dict[str, list[float]]]] = []
    for turn in range(repeats):
        output, watched = folder / f"profile_{turn}", folder / f"profile_{turn}.json"
        done = run_inference([*options, "--output_dir", str(output)], watched)
        runs.append((done, json.loads(watched.read_text())))
    run, spent = min(runs, key=lambda each: each[0].seconds)
    sums = [sum(column) for column in zip(*spent.values(), strict=True)]
    spent["start and end of the process"] = [run.seconds - sums[0], run.cpu_seconds - sums[1]]
    order = dict.fromkeys(["loading PyTorch and MONAI", OTHERS, *PARTS.values(), *spent])
    rows = [[name, *(f"{value:.2f}" for value in spent[name])] for name in order if name in spent]
    rows.append(["all", f"{run.seconds:.2f}", f"{run.cpu_seconds:.2f}"])
    return f"{markdown(['one volume', 's', 's of all cores'], rows)}\n{run.memory:.0f} MB at most.\n"


def make_small(file: Path) -> None:
    """Write a slab of brain of 24 x 24 x 4 voxels."""
    place = np.linspace(-1.3, 1.3, 24)
    brain = (place[:, None] ** 2 + place[None] ** 2 < 1)[..., None].repeat(4, axis=2)
    voxels = np.random.default_rng(0).integers(300, 900, brain.shape) * brain
    file.parent.mkdir(parents=True)
    nib.save(nib.Nifti1Image(voxels.astype(np.int16), np.diag([6.0, 6.0, 6.0, 1.0])), file)


def growth_of_folders(numbers: Sequence[int], folder: Path) -> str:
    """A table of seconds and memory of the command over folders of more and more small volumes."""
    rows: list[list[object]] = []
    for number in numbers:
        scans = folder / f"scans_{number}"
        for index in range(number):
            make_small(scans / f"case_{index}" / f"case_{index}_flair.nii.gz")
        options = ["--dataset_dir", str(scans), "--brain_mask", "null", "--output_dir", f"{scans}_results"]
        run = run_inference(options)
        rows.append([f"{number} volumes of 24 x 24 x 4", *(f"{value:.1f}" for value in run[:2]), f"{run.memory:.0f}"])
    return markdown(["`run inference`", "s", "s of all cores", "MB at most"], rows)


SLICES = """
import json, resource, sys, time
import torch
from scripts.method.parallel import in_threads
from scripts.tools.benchmark import read_config
size, number = map(int, sys.argv[1:])
network = in_threads(read_config("inference").get_parsed_content("network"))
place = torch.linspace(-1.2, 1.2, size)
brain = (place[:, None] ** 2 + place[None] ** 2 < 1).expand(number, 1, size, size)
image = torch.where(brain, torch.randn(number, 1, size, size, generator=torch.Generator().manual_seed(0)), -3.0)
with torch.no_grad():
    network.refine(image, brain, max_passes=2, batch_size=number)
    start = time.perf_counter(), time.process_time()
    network.refine(image, brain, max_passes=2, batch_size=number)
seconds = [time.perf_counter() - start[0], time.process_time() - start[1]]
print(json.dumps([*seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def growth_of_slices(sizes: Sequence[int], number: int = 32) -> str:
    """A table of seconds and memory of the default method over larger and larger slices of noise, two passes each."""
    rows: list[list[object]] = []
    for size in sizes:
        command = [sys.executable, "-c", SLICES, str(size), str(number)]
        said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=BUNDLE).stdout
        *seconds, memory = json.loads(said.splitlines()[-1])
        rows.append([f"{number} slices of {size} x {size}", *(f"{value:.2f}" for value in seconds), f"{memory:.0f}"])
    return markdown(["refinement", "s", "s of all cores", "MB at most"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", help="a FLAIR volume (default: a phantom of 240 x 240 x 155 voxels)")
    parser.add_argument("--brain_mask", help="its brain mask (default: that of the phantom)")
    parser.add_argument("--fast", action="store_true", help="profile the command with --fast True")
    parser.add_argument("--numbers", type=int, nargs="*", default=[1, 10, 100, 1000], help="small volumes of a folder")
    parser.add_argument("--sizes", type=int, nargs="*", default=[96, 128, 192, 256], help="pixels of a slice's side")
    parser.add_argument("--repeats", type=int, default=3, help="profiles, of which the fastest counts")
    parser.add_argument("--output_file", help="write the tables there too (Markdown)")
    options = parser.parse_args(arguments)
    report_errors()
    if options.output_file and os.path.lexists(options.output_file):
        raise SystemExit(f"error: {options.output_file} is there already: name a new file for the tables.")
    tables: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        for table in _tables(options, Path(temporary)):
            print(table, flush=True)
            tables.append(table)
    if options.output_file:
        with atomic(options.output_file) as file:
            file.write_text("\n".join(tables))


def _tables(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """What was asked for, one table after another."""
    yield f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    if options.repeats:
        image, brain_mask = options.image, options.brain_mask
        if image is None:
            make_phantoms(folder / "volume", 0, 0, 1, shape=(240, 240, 155), num_workers=1)
            image = str(next((folder / "volume").glob("*/*_flair.nii.gz")))
            brain_mask = image.replace("_flair.nii.gz", "_mask.nii.gz")
        ids = ["--image", image, "--brain_mask", brain_mask or "null", "--fast", str(options.fast)]
        yield profile_command(ids, options.repeats, folder)
    if options.numbers:
        yield growth_of_folders(options.numbers, folder)
    if options.sizes:
        yield growth_of_slices(options.sizes)


if __name__ == "__main__":
    main()
