"""How fast the bundle is, as ratios from one run: ``python -m scripts.tools.benchmark`` in the bundle's folder.

Every part runs its variants in turns and keeps the fastest turn of each, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.data import list_data_collate
from scipy import ndimage
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

BUNDLE = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(BUNDLE))

from scripts.common.errors import report_errors  # noqa: E402
from scripts.common.outputs import write_text  # noqa: E402
from scripts.common.paths import config_files  # noqa: E402
from scripts.common.threads import OWN_WORD, SPARE, usage  # noqa: E402
from scripts.data.nifti import load_volume  # noqa: E402
from scripts.data.scans import find_scans  # noqa: E402
from scripts.evaluation.metrics import overlap  # noqa: E402
from scripts.method.default import ProbabilisticIterMask, standardize  # noqa: E402
from scripts.method.precision import computes_bfloat16  # noqa: E402
from scripts.method.refinement import Refinement  # noqa: E402
from scripts.tools.phantoms import make_phantoms  # noqa: E402

PARTS = ("refinement", "passes", "training", "sharing", "preprocessing")
FAST = {"max_passes": 1}


def read_config(*names: str, **overrides: object) -> ConfigParser:
    """Configs of the bundle, one over the other, with ids set."""
    parser = ConfigParser()
    parser.read_config([str(path) for path in config_files(*names)])
    for name, value in overrides.items():
        parser[name] = value
    return parser


def markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines) + "\n"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long some work takes."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def fastest(variants: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Seconds of each variant: the fastest of several turns, after a turn that does not count."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        for name, work in variants.items():
            elapsed = seconds(work, device)
            if turn:
                times[name].append(elapsed)
    return {name: min(found) for name, found in times.items()}


# The plain loop: the reference that the refinement is compared with.


def plain_smooth(image: Tensor, region: Tensor, sigma: float, least_mass: float) -> Tensor:
    """`scores.gaussian_smooth` as two convolutions."""
    radius = int(4 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=image.device) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    both = torch.cat([image * region, region.to(image.dtype)])
    both = F.conv2d(both, kernel[None, None, :, None], padding=[radius, 0])
    smooth, mass = F.conv2d(both, kernel[None, None, None, :], padding=[0, radius]).chunk(2)
    return smooth / mass.clamp(min=least_mass) * region


def plain_hysteresis(score: Tensor, low: float, high: float) -> Tensor:
    """`probabilistic.hysteresis`, slice by slice with SciPy."""
    found = []
    for plane in score[:, 0].cpu().numpy():
        areas, _ = ndimage.label(plane > low, np.ones((3, 3)))
        found.append(np.isin(areas, np.unique(areas[plane > high])) & (areas > 0))
    return torch.from_numpy(np.stack(found))[:, None].to(score.device)


def plain_score(model: ProbabilisticIterMask, image: Tensor, hidden: Tensor, brain_mask: Tensor) -> Tensor:
    """Scores of one pass over a batch, in healthy deviations, everything computed anew."""
    standard = standardize(image, brain_mask, model.background, model.robust_scaling)[0]
    corrupted = torch.cat([standard, hidden.to(image.dtype)], dim=1)
    mean, log_variance = model.masked(corrupted).chunk(2, dim=1)
    log_variance = log_variance.clamp(model.least_log_variance, model.largest_log_variance)
    residual = (standard - mean) * torch.exp(-0.5 * log_variance)
    residual = (residual.abs() if model.both_signs else residual).mean(dim=1, keepdim=True)
    return plain_smooth(residual, hidden, model.sigma, 0.05) / model.deviation


def plain_refine(
    model: ProbabilisticIterMask, image: Tensor, brain_mask: Tensor, batch_size: int = 32, **options: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The default method as the published code would run it: every slice of a batch until the slowest has stopped."""
    masks, maps, passes = [], [], []
    for part, brain in zip(image.split(batch_size), brain_mask.split(batch_size), strict=True):
        first = plain_score(model, part, brain, brain)
        hidden = brain & (first > model.first_threshold)
        last, count = torch.zeros_like(first), torch.full([len(part)], 1)
        running = hidden.flatten(1).any(dim=1)
        while running.any():
            score = plain_score(model, part, hidden, brain)
            refined = hidden & (score > model.first_threshold)
            before, after = (mask.flatten(1).sum(dim=1) for mask in (hidden, refined))
            last = torch.where(running[:, None, None, None], score, last)
            count += running.cpu()
            running = running & (before - after >= 0.01 * before)
            hidden = torch.where(running[:, None, None, None], refined, hidden)
            running = running & (after > 0)
        found = plain_decide(model, first, last, brain)
        masks.append(found[0])
        maps.append(found[1])
        passes.append(count)
    return torch.cat(masks), torch.cat(maps), torch.zeros_like(image), torch.cat(passes).to(image.device)


def plain_decide(
    model: ProbabilisticIterMask, first: Tensor, last: Tensor, brain_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """Mask and anomaly map of a batch."""
    weight = model.last_weight
    combined = (1 - weight) * first + weight * last
    mirrored = plain_smooth(combined.flip(2), brain_mask.flip(2), 2.0, 1e-6)
    anomaly_map = (combined - model.mirror_weight * mirrored.clamp(min=0)).clamp(min=0) * brain_mask
    return plain_hysteresis(anomaly_map, float(model.threshold), float(model.certain_threshold)), anomaly_map


# The parts.


@contextmanager
def watched(model: Refinement) -> Iterator[dict[str, float]]:
    """Time and slices that the networks of a model get, while the block runs."""
    found = {"seconds": 0.0, "slices": 0, "start": 0.0}
    device = model.threshold.device

    def before(network: torch.nn.Module, inputs: tuple) -> None:
        synchronize(device)
        found["start"] = time.perf_counter()

    def after(network: torch.nn.Module, inputs: tuple, output: Tensor) -> None:
        synchronize(device)
        found["seconds"] += time.perf_counter() - found["start"]
        found["slices"] += len(output)

    networks = list(model.children())
    hooks = [network.register_forward_pre_hook(before) for network in networks]
    hooks += [network.register_forward_hook(after) for network in networks]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def precisions(device: torch.device) -> list[str]:
    """float32, and bfloat16 where the device computes it natively."""
    return ["float32", "bfloat16"] if computes_bfloat16(device) else ["float32"]


def benchmark_refinement(options: argparse.Namespace, device: torch.device) -> str:
    """A volume from its prepared slices to mask and anomaly map: the plain loop, this bundle, and its fast mode."""
    config = read_config("inference", device=device, model_file=options.model_file)
    model = config.get_parsed_content("network")
    subject = find_scans("", ["flair"], options.image, brain_mask=options.brain_mask)[0]
    volume = list_data_collate([config.get_parsed_content("preprocessing")(subject)])["image"]
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    plain.refine = partial(plain_refine, copy.copy(plain))
    inferer = config["inferer"] | {"outputs": ["mask", "anomaly_map", "passes"], "progress": False}

    def variant(network: Refinement, **changes: object) -> Callable[[], Tensor]:
        made = read_config("inference", inferer=inferer | changes).get_parsed_content("inferer")
        return lambda: made(volume, network).as_tensor()[0]

    runs = {"plain loop, float32": variant(plain)}
    for precision in precisions(device):
        runs[precision] = variant(model, precision=precision)
        runs[f"few passes, {precision}"] = variant(model, precision=precision, **FAST)
    rows = []
    with torch.no_grad():
        times = fastest(runs, options.repeats, device)
        expected = runs["plain loop, float32"]()[:1]
        for name, run in runs.items():
            with watched(plain if name.startswith("plain") else model) as seen:
                start = time.perf_counter()
                mask, _, passes = run().split(1)
                inside = seen["seconds"] / (time.perf_counter() - start)
            own = passes.flatten(0, 2).amax(dim=0)
            dice = float(overlap(mask.cpu().numpy(), expected.cpu().numpy())["dice"][0])
            ratio = times["plain loop, float32"] / times[name]
            cells = [f"{times[name]:.2f}", f"{ratio:.1f}", seen["slices"], int(own.sum())]
            rows.append([name, *cells, int((mask != expected).sum()), f"{dice:.4f}", f"{1 - inside:.0%}"])
    title = f"Volume of {' x '.join(map(str, volume.shape[2:]))} voxels, {int((own > 0).sum())} slices with brain"
    columns = ["refinement", "s", "ratio", "slice-passes", "sum of own iterations", "voxels that differ", "Dice"]
    return f"{title}\n\n{markdown([*columns, 'outside the networks'], rows)}"


def benchmark_passes(options: argparse.Namespace, device: torch.device) -> str:
    """What fewer passes cost, on labeled slices: Dice with the exact loop and with the labels."""
    config = read_config("evaluate_slices", dataset_dir=options.slices, device=device, model_file=options.model_file)
    model, inferer = (config.get_parsed_content(name) for name in ("network", "inferer"))
    items = list_data_collate([dict(item) for item in config.get_parsed_content("dataset")])
    image, label = items["image"].to(device), items["label"].cpu().numpy() > 0.5
    variants = {
        "exact": {},
        "10 % shrink stops": {"stop_shrink": 0.1},
        "two passes after the first": {"max_passes": 2},
        "one pass after the first": {"max_passes": 1},
    }
    rows, exact = [], None
    for name, changes in variants.items():
        with torch.no_grad():
            mask, _, _, passes = model.refine(image[:, :-1], image[:, -1:] > 0.5, **inferer.options | changes)
        mask = mask.cpu().numpy()
        exact = (mask, float(passes.float().mean())) if exact is None else exact
        both_empty = ~mask.any(axis=(1, 2, 3)) & ~exact[0].any(axis=(1, 2, 3))
        agreement = np.where(both_empty, 1.0, np.nan_to_num(overlap(mask, exact[0])["dice"]))
        mean = float(passes.float().mean())
        labeled = float(np.nanmean(overlap(mask, label)["dice"]))
        rows.append([name, f"{mean:.2f}", f"{mean / exact[1]:.2f}", f"{agreement.mean():.4f}", f"{labeled:.4f}"])
    columns = ["passes", "a slice", "of exact", "Dice with exact", "Dice with labels"]
    return f"{len(image)} labeled slices at once\n\n" + markdown(columns, rows)


class TrainingStep:
    """One training of a config, taken apart: data, corruption, and the networks' step.

    Args:
        names: The config and its overlays.
        options: Ids to set.
        channels_last: Memory order of the networks.
        compiled: Compile the networks.
    """

    def __init__(self, names: Sequence[str], options: Mapping[str, object], channels_last: bool, compiled: bool):
        order = "channels_last" if channels_last else "contiguous_format"
        parser = read_config(*names, **options)
        parser["train"]["dataset"]["progress"] = False
        parser["model"] = f"$@network_def.to(@device, memory_format=torch.{order})"
        parts = ("device", "network", "loss", "optimizer", "train#prepare_batch", "train#dataloader")
        self.device, self.network, self.loss, self.optimizer, self.prepare, loader = map(
            parser.get_parsed_content, parts
        )
        self.network.train()
        self.forward = torch.compile(self.network) if compiled else self.network
        self.batches, self.batch_size = iter(loader), loader.batch_size
        self.shares = dict.fromkeys(("loader", "corruption", "networks"), 0.0)

    def __call__(self) -> None:
        """Take one step and note where its time went."""
        marks = [time.perf_counter()]

        def mark() -> None:
            synchronize(self.device)
            marks.append(time.perf_counter())

        batch = next(self.batches)
        mark()
        inputs, targets = self.prepare(batch, self.device)
        self.prepare.iteration += 1
        mark()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(self.forward(inputs), targets).backward()
        self.optimizer.step()
        mark()
        for name, start, end in zip(self.shares, marks[:-1], marks[1:], strict=True):
            self.shares[name] += end - start

    def flops(self) -> int:
        """Floating point operations of a forward and backward pass over one slice."""
        inputs, targets = self.prepare(next(self.batches), self.device)
        with FlopCounterMode(display=False) as counter:
            self.loss(self.network(inputs), targets).backward()
        return counter.get_total_flops() // self.batch_size


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Floating point operations a second of a large matrix product: what the device can do."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / fastest({"product": lambda: left @ right}, 5, device)["product"]


def benchmark_training(options: argparse.Namespace, device: torch.device) -> str:
    """Training steps of the default method and of the published one, both of whose networks train in one pass."""
    tables = []
    size = 8192 if device.type == "cuda" else 2048
    ceiling = {name: matrix_rate(device, getattr(torch, name), size) for name in precisions(device)}
    for title, names, batch_size in (("default", ["train"], 8), ("published", ["train", "paper"], options.batch_size)):
        settings = {"dataset_dir": options.slices, "device": device, "batch_size": batch_size}
        settings |= {"output_dir": options.folder}
        variants = {"float32, channels first": ("float32", False, False)}
        variants |= {f"{precision}, channels last": (precision, True, False) for precision in precisions(device)}
        if device.type == "cuda":
            variants["bfloat16, channels last, compiled"] = ("bfloat16", True, True)
        steps = {
            name: TrainingStep(names, settings | {"precision": precision}, channels_last, compiled)
            for name, (precision, channels_last, compiled) in variants.items()
        }
        times = fastest(steps, options.repeats, device)
        flops, rows = next(iter(steps.values())).flops(), []
        for name, step in steps.items():
            rate, total = batch_size / times[name], sum(step.shares.values())
            peak = ceiling["bfloat16" if "bfloat16" in name else "float32"]
            cells = [f"{rate:.1f}", f"{times['float32, channels first'] / times[name]:.2f}"]
            cells += [f"{step.shares[part] / total:.1%}" for part in ("loader", "corruption")]
            rows.append([name, *cells, f"{flops * rate / peak:.0%}", f"{150_000 * 32 / rate / 3600:.0f}"])
        columns = [f"{title}: {flops / 1e9:.1f} GFLOP a slice, batches of {batch_size}", "slices/s", "ratio", "loader"]
        columns += ["corruption", "of a matrix product", "150,000 iterations of 32, h"]
        tables.append(markdown(columns, rows))
    rates = ", ".join(f"{name} {rate / 1e12:.2f} TFLOP/s" for name, rate in ceiling.items())
    return "\n".join(tables) + f"\nMatrix product: {rates}.\n"


STEPS = """
import sys
import numpy as np
import torch
from scripts.common.threads import fit_threads, watch_cores
from scripts.tools.benchmark import TrainingStep
kind, counter, position, folder, slices = sys.argv[1:]
done = np.memmap(counter, np.float64, "r+")
if kind == "busy":
    matrix = torch.randn(400, 400)
    step = lambda: [torch.mm(matrix, matrix).add_(1).relu_() for _ in range(20)]
else:
    settings = {"dataset_dir": slices, "device": torch.device("cpu"), "batch_size": 8, "precision": "float32"}
    step = TrainingStep(["train"], settings | {"output_dir": folder}, channels_last=True, compiled=False)
if kind == "default":
    watch_cores()
while True:
    fit_threads()
    step()
    done[int(position)] += 1
"""
SHARERS = {"threads as set by PyTorch": "plain", "one thread": "plain", "default: as many as are free": "default"}


class Sharers:
    """Trainings, and a process of matrix products with a thread for each core, of which a chosen few run at a time.

    Args:
        options: Their data, and a folder for their counter.
    """

    def __init__(self, options: argparse.Namespace):
        counter = Path(options.folder) / "steps"
        np.zeros(len(SHARERS) + 1).tofile(counter)
        self.done = np.memmap(counter, np.float64, "r+")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(OWN_WORD)}
        self.processes = []
        for position, (name, kind) in enumerate([*SHARERS.items(), ("other", "busy")]):
            environment = clean | ({"OMP_NUM_THREADS": "1"} if name == "one thread" else {})
            command = [sys.executable, "-c", STEPS, kind, counter, position, options.folder, options.slices]
            process = subprocess.Popen([*map(str, command)], cwd=BUNDLE, env=environment)
            self.processes.append(process)
            while self.done[position] < 3 and process.poll() is None:
                time.sleep(0.1)
            process.send_signal(signal.SIGSTOP)

    def rate(self, position: int, beside: bool, seconds: float) -> tuple[float, float]:
        """Steps a second of one training, alone or beside the busy process, once it has had two seconds to settle.

        Returns:
            The rate, and how many cores processes of other users kept busy meanwhile.
        """
        running = [self.processes[position], *([self.processes[-1]] if beside else [])]
        for process in running:
            process.send_signal(signal.SIGCONT)
        time.sleep(2)
        before = self._seen(running, position)
        time.sleep(seconds)
        elapsed, busy, own, steps = (
            now - then for now, then in zip(self._seen(running, position), before, strict=True)
        )
        for process in running:
            process.send_signal(signal.SIGSTOP)
        return steps / elapsed, max(0.0, busy - own) / elapsed

    def _seen(self, running: Sequence[subprocess.Popen], position: int) -> tuple[float, float, float, float]:
        """The time, seconds of all cores, of which some processes of this one, and steps of a training."""
        own = 0.0
        for process in running:
            ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            own += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
        now, busy, _ = usage(os.sched_getaffinity(0))
        return now, busy, own, float(self.done[position])

    def end(self) -> None:
        """End all processes."""
        for process in self.processes:
            process.kill()
            process.wait()


def benchmark_sharing(options: argparse.Namespace, device: torch.device) -> str:
    """Training steps alone and beside a busy process, with several ways to choose threads.

    Turns in which processes of others use the cores do not count, where there are better ones.
    """
    sharers = Sharers(options)
    cases = [(position, beside) for position in range(len(SHARERS)) for beside in (False, True)]
    turns: dict[tuple[int, bool], list[tuple[float, float]]] = {case: [] for case in cases}
    try:
        for _ in range(options.repeats):
            for case in cases:
                turns[case].append(sharers.rate(*case, options.seconds))
    finally:
        sharers.end()
    quiet = {case: [turn for turn in found if turn[1] < SPARE] or found for case, found in turns.items()}
    rates = {case: float(np.median([rate for rate, _ in found])) for case, found in quiet.items()}
    rows = []
    for position, name in enumerate(SHARERS):
        cells = [name]
        for beside in (False, True):
            rate = rates[position, beside]
            cells += [f"{rate:.2f}", f"{rate / max(rates[0, False], 1e-9):.2f}"]
        rows.append(cells)
    columns = ["training of the default method", "alone, steps/s", "ratio", "beside a busy process, steps/s", "ratio"]
    used = [others for found in quiet.values() for _, others in found]
    noise = f"Medians of {len(used)} turns, in which other processes kept {max(used):.2f} cores busy at most.\n"
    return f"{markdown(columns, rows)}\n{noise}"


def benchmark_preprocessing(options: argparse.Namespace, device: torch.device) -> str:
    """Preprocessing of one scan against unpacking its file, and memory over many small scans."""
    transform = read_config("preprocess").get_parsed_content("preprocessing")
    subject = {"case": "scan", "image": [options.image]}
    subject |= {"brain_mask": options.brain_mask} if options.brain_mask else {}
    files = [*subject["image"], *([subject["brain_mask"]] if options.brain_mask else [])]

    def unpack() -> None:
        for file in files:
            content = Path(file).read_bytes()
            gzip.decompress(content) if file.endswith(".gz") else content

    def read() -> None:
        for file in files:
            np.asarray(load_volume(file).dataobj)

    variants = {"unpacking the files": unpack, "reading with nibabel": read}
    variants["preprocessing"] = lambda: transform(dict(subject))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each worker has
    times = fastest(variants, options.repeats, torch.device("cpu"))
    torch.set_num_threads(threads)
    rows = [[name, f"{t:.3f}", f"{times['unpacking the files'] / t:.0%}"] for name, t in times.items()]
    shape = " x ".join(map(str, load_volume(files[0]).shape))
    table = markdown([f"{len(files)} files of {shape}, one core", "s", "unpacking"], rows)
    return f"{table}\n{_many_scans(options)}"


def _many_scans(options: argparse.Namespace) -> str:
    """Time and memory of the command over links to the scan, and over many small scans."""
    cores, root = torch.get_num_threads(), Path(options.folder)
    rows: list[list[object]] = []
    small = root / "small.nii.gz"
    voxels = np.pad(np.random.default_rng(0).integers(1, 900, (20, 20, 20)).astype(np.int16), 2)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), small)
    for file, number, workers in (
        (Path(options.image), 8, 1),
        (Path(options.image), 8, cores),
        (small, options.subjects // 10, cores),
        (small, options.subjects, cores),
    ):
        scans = root / f"scans_{len(rows)}"
        for index in range(number):
            (scans / f"scan_{index}").mkdir(parents=True)
            (scans / f"scan_{index}" / f"scan_{index}_flair.nii.gz").symlink_to(file.resolve())
        command = [sys.executable, "-c", COMMAND, str(BUNDLE), str(scans), f"{scans}_slices", str(workers)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        elapsed, main_kb, worker_kb = json.loads(output.splitlines()[-1])
        shape = " x ".join(map(str, load_volume(file).shape))
        rows.append([f"{number} of {shape}", workers, f"{elapsed:.2f}", f"{number / elapsed:.1f}"])
        rows[-1] += [f"{kb / 1024:.0f}" for kb in (main_kb, worker_kb)]
    return markdown(["scans", "workers", "s", "scans/s", "MB of the main process", "MB of the largest worker"], rows)


COMMAND = """
import json, logging, os, resource, sys, time
from pathlib import Path
from monai.bundle import ConfigWorkflow
logging.disable(logging.WARNING)
bundle, scans, slices, workers = sys.argv[1:]
splits = {"split_training": sorted(os.listdir(scans)), "split_validation": "null", "split_testing": "null"}
workflow = ConfigWorkflow(bundle + "/configs/preprocess.json", run_id="run", logging_file=False, dataset_dir=scans,
                          output_dir=slices, slice_range="null", num_workers=int(workers), **splits)
workflow.initialize()
start = time.perf_counter()
workflow.run()
seconds = time.perf_counter() - start
status = Path("/proc/self/status").read_text().partition("VmHWM:")[2]
print(json.dumps([seconds, int(status.split()[0]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def make_data(options: argparse.Namespace) -> None:
    """Phantoms in place of the data that was not given: a volume of 240 x 240 x 155 voxels, slices to train on."""
    folder = Path(options.folder)
    if options.image is None:
        make_phantoms(folder / "volume", 0, 0, 1, shape=(240, 240, 155), num_workers=1)
        options.image = str(next((folder / "volume").glob("*/*_flair.nii.gz")))
    if options.slices is None:
        make_phantoms(folder / "scans", 12, 4, 12, num_workers=2)
        options.slices = str(folder / "slices")
        config = str(BUNDLE / "configs" / "preprocess.json")
        command = ["-m", "monai.bundle", "run", "preprocess", "--config_file", config, "--slice_range", "[8,16]"]
        command += ["--dataset_dir", str(folder / "scans"), "--output_dir", options.slices]
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def processor() -> str:
    """Name of the processor."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure (default: all)")
    parser.add_argument("--image", help="a FLAIR volume (default: a phantom of 240 x 240 x 155 voxels)")
    parser.add_argument("--brain_mask", help="its brain mask (default: voxels unlike the background)")
    parser.add_argument("--slices", help="slices that preprocess.json wrote, all three splits (default: of phantoms)")
    model_file = str(BUNDLE / "models" / "model.pt")
    parser.add_argument("--model_file", default=model_file, help="weights of the default method")
    parser.add_argument("--batch_size", type=int, default=8, help="of the published method's training step")
    parser.add_argument("--subjects", type=int, default=1000, help="small scans whose memory is looked at")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each turn beside a busy process")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each variant, of which the fastest counts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output_file", help="write the tables there too (Markdown)")
    options = parser.parse_args(arguments)
    report_errors()
    if options.output_file and os.path.lexists(options.output_file):
        raise SystemExit(f"error: {options.output_file} is there already: name a new file for the tables.")
    logging.getLogger("scripts.inference.inferer").setLevel(logging.ERROR)  # planes far from training do not matter
    device = torch.device(options.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    text = f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}\n"
    print(text, flush=True)
    with tempfile.TemporaryDirectory() as options.folder:
        make_data(options)
        for part in options.parts:
            table = f"\n### {part.capitalize()}\n\n{globals()[f'benchmark_{part}'](options, device)}"
            print(table, flush=True)
            text += table
    if options.output_file:
        write_text(options.output_file, text)
        print(f"Tables: {options.output_file}")


if __name__ == "__main__":
    main()
