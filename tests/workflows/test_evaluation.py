"""Evaluation as a whole: tables, summary and pictures from an evaluator, with an inferer that stands for the method."""

from __future__ import annotations

import csv
import json
import math
import re
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import overlap, run_bundle, save_small_model, write_nifti
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer
from PIL import Image
from scripts.common.errors import innermost_message
from scripts.common.model_file import load_model, save_model
from scripts.evaluation.baselines import IteratedZScoreBaseline, ZScoreBaseline
from scripts.evaluation.cases import Evaluation, EvaluationHandler
from scripts.evaluation.metrics import lesion_scores
from scripts.evaluation.report import write_report
from scripts.evaluation.samples import Sample
from scripts.method.itermask import IterMask
from scripts.method.networks import ReconstructionUNet

SHAPE = (36, 40)
OUTPUTS = ["mask", "anomaly_map", "reconstruction", "iterations", "threshold"]
THRESHOLD = 1.5
BASELINES = {"zscore": ZScoreBaseline(), "smoothed": ZScoreBaseline(sigma=1.3), "iterated": IteratedZScoreBaseline(0.5)}


class SquaredIntensity(Inferer):
    """Marks what is brighter than a threshold, with the channels of the method's inferer."""

    def __call__(self, inputs, network, *args, **kwargs):
        image, brain_mask = inputs[:, :-1], inputs[:, -1:]
        anomaly_map = image.square().mean(dim=1, keepdim=True) * brain_mask
        iterations, threshold = (torch.full_like(brain_mask, value) for value in (4, THRESHOLD))
        return torch.cat([(anomaly_map > THRESHOLD).float(), anomaly_map, image * 0.9, iterations, threshold], 1)


def item(name: str, seed: int, lesion_side: int = 0, modalities: int = 1, slices: int = 0) -> dict:
    """Noise in a brain, with a brighter square where a lesion is."""
    rng = np.random.default_rng(seed)
    shape = (*SHAPE, slices) if slices else SHAPE
    brain_mask, label = np.zeros((1, *shape), np.float32), np.zeros((1, *shape), np.float32)
    brain_mask[:, 3:33, 4:36] = 1
    label[:, 8 : 8 + lesion_side, 9 : 9 + lesion_side] = 1
    if slices:
        label[..., :2] = 0
    image = rng.normal(size=(modalities, *shape)).astype(np.float32) + 2 * label
    image[:, brain_mask[0] == 0] = -3
    return {"image": np.concatenate([image, brain_mask]), "label": label, "case": name}


def evaluate(folder, cases, healthy=(), modalities=1, batch_size=1, **options) -> dict:
    """Run the evaluators of the configs, with the stand-in for the method."""
    names = [f"modality{index}" for index in range(modalities)]
    evaluation = Evaluation(folder, "a method", names, BASELINES, **options)
    for items, is_healthy in ((healthy, True), (cases, False)):
        if items:
            SupervisedEvaluator(
                device=torch.device("cpu"),
                val_data_loader=DataLoader(Dataset(list(items)), batch_size=batch_size),
                network=torch.nn.Identity(),
                inferer=SquaredIntensity(),
                val_handlers=[EvaluationHandler(evaluation, is_healthy)],
            ).run()
    return evaluation.finish()


def slices(modalities: int = 1) -> tuple[list[dict], list[dict]]:
    cases = [item(f"CASE_{side:02d}", side, side, modalities) | {"slice": 70 + side} for side in (3, 6, 9, 12)]
    return cases, [item(f"HEALTHY_{seed}", seed, 0, modalities) for seed in range(20, 24)]


def read_rows(folder) -> list[dict]:
    with (folder / "cases.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    cases, healthy = slices()
    evaluate(folder, cases, healthy)
    return folder, cases, healthy


def test_summary_has_the_promised_keys(evaluated):
    summary = json.loads((evaluated[0] / "summary.json").read_text())
    scores = ["dice", "sensitivity", "precision", "threshold", "average_precision", "false_positive_fraction"]
    scores += ["dice_best_threshold", "best_threshold", "dice_per_image_best", "dice_small", "dice_medium"]
    scores += ["dice_large", "dice_ci_low", "dice_ci_high"]
    by_lesion = ["lesions", "lesions_found", "components", "false_components", "lesion_f1", "lesion_f1_ci_low"]
    expected = scores + ["method", "cases", "iterations", "ssim_healthy", "cases_small", "cases_medium", "cases_large"]
    expected += [f"baseline_{name}_{score}" for name in BASELINES for score in scores]
    expected += [prefix + name for prefix in ("", "baseline_iterated_") for name in by_lesion]
    assert set(expected) <= summary.keys() and "baseline_zscore_lesion_f1" not in summary
    assert all(value is None or isinstance(value, (int, float, str)) for value in summary.values())
    assert summary["cases"] == 4 and summary["iterations"] == 4 and summary["healthy_slices"] == 4


def test_each_case_has_a_row_with_the_scores_of_its_mask(evaluated):
    folder, cases, _ = evaluated
    rows = read_rows(folder)
    assert [row["case"] for row in rows] == ["CASE_03_073", "CASE_06_076", "CASE_09_079", "CASE_12_082"]
    for row, case in zip(rows, cases, strict=True):
        pred_mask = (case["image"][:1] ** 2 > THRESHOLD) & (case["image"][1:] > 0)
        for name, expected in overlap(pred_mask, case["label"]).items():
            assert float(row[name]) == pytest.approx(expected[0])
        for name, expected in lesion_scores(pred_mask, case["label"] > 0).items():
            assert float(row[name]) == pytest.approx(expected)
        assert int(row["lesion_pixels"]) == case["label"].sum()


def test_summary_is_the_mean_over_cases(evaluated):
    summary, rows = json.loads((evaluated[0] / "summary.json").read_text()), read_rows(evaluated[0])
    names = ("dice", "sensitivity", "dice_per_image_best", "baseline_zscore_dice", "baseline_smoothed_precision")
    for name in (*names, "lesion_f1", "false_components", "baseline_iterated_lesion_f1", "baseline_iterated_dice"):
        assert summary[name] == pytest.approx(np.mean([float(row[name]) for row in rows]))
    small = [float(row["dice"]) for row in rows if float(row["lesion_pixels_128"]) < 200]
    assert summary["cases_small"] == len(small) == 1 and summary["dice_small"] == pytest.approx(small[0])
    assert summary["cases_medium"] + summary["cases_large"] == 3


def test_no_threshold_is_better_than_the_best_one_where_the_mask_is_the_map_above_one(evaluated):
    summary = json.loads((evaluated[0] / "summary.json").read_text())
    for prefix in ("", "baseline_zscore_", "baseline_smoothed_"):
        best, per_image = (summary[prefix + name] for name in ("dice_best_threshold", "dice_per_image_best"))
        assert summary[prefix + "dice"] <= best + 0.002 and best <= per_image


def test_baselines_mark_as_much_of_the_healthy_brain_as_the_method(evaluated):
    folder, _, healthy = evaluated
    summary = json.loads((folder / "summary.json").read_text())
    brain = np.stack([case["image"][1:] > 0 for case in healthy])
    marked = np.stack([case["image"][:1] ** 2 > THRESHOLD for case in healthy]) & brain
    assert summary["false_positive_fraction"] == pytest.approx(marked.sum() / brain.sum())
    for name in ("zscore", "smoothed"):
        fraction = summary[f"baseline_{name}_false_positive_fraction"]
        assert summary["false_positive_fraction"] - 0.01 <= fraction <= summary["false_positive_fraction"]


@pytest.mark.parametrize("name", ["smoothed", "iterated"])
def test_baseline_rows_are_its_mask_at_the_reported_threshold(evaluated, name):
    folder, cases, _ = evaluated
    summary, rows = json.loads((folder / "summary.json").read_text()), read_rows(folder)
    threshold = BASELINES[name].threshold or summary[f"baseline_{name}_threshold"]
    for row, case in zip(rows, cases, strict=True):
        pred = SquaredIntensity()(torch.from_numpy(case["image"])[None], None)[0]
        sample = Sample.from_item(case | {"pred": pred}, OUTPUTS)
        pred_mask = (BASELINES[name](sample) > threshold) & sample.brain_mask
        expected = overlap(pred_mask, sample.label)["dice"][0]
        assert float(row[f"baseline_{name}_dice"]) == pytest.approx(expected)


def test_pictures_open_and_hold_four_panels(evaluated):
    for row in read_rows(evaluated[0]):
        with Image.open(evaluated[0] / row["picture"]) as picture:
            assert picture.width == 1000 and 200 < picture.height < 420
            assert picture.convert("L").getextrema()[1] == 255


def test_results_do_not_depend_on_the_batch_or_the_order(tmp_path):
    cases, healthy = slices(modalities=2)
    one = evaluate(tmp_path / "one", cases, healthy, 2, batch_size=1, pictures=False)
    three = evaluate(tmp_path / "three", cases[::-1], healthy[::-1], 2, batch_size=3, pictures=False)
    assert one == three
    assert (tmp_path / "one" / "cases.csv").read_bytes() == (tmp_path / "three" / "cases.csv").read_bytes()
    assert (tmp_path / "one" / "curves.csv").read_bytes() == (tmp_path / "three" / "curves.csv").read_bytes()


def test_shares_of_two_processes_add_up_to_the_whole(tmp_path, monkeypatch):
    cases, healthy = slices()
    whole = evaluate(tmp_path / "whole", cases, healthy, pictures=False)
    shares: list = []
    monkeypatch.setattr("scripts.evaluation.cases.idist.all_gather", lambda share: shares.append(share) or shares)
    evaluate(tmp_path / "first", cases[2:], healthy[:1], pictures=False)
    evaluate(tmp_path / "second", cases[:2], healthy[1:], pictures=False)
    assert json.loads((tmp_path / "second" / "summary.json").read_text()) == json.loads(
        json.dumps(whole).replace("NaN", "null")
    )
    assert (tmp_path / "whole" / "cases.csv").read_bytes() == (tmp_path / "second" / "cases.csv").read_bytes()


def test_volumes_are_scored_whole_and_give_their_lesion_free_slices_as_healthy(tmp_path):
    volume = item("VOLUME", 3, lesion_side=9, modalities=2, slices=5)
    summary = evaluate(tmp_path, [volume], modalities=2, healthy_from_cases=True)
    pred_mask = ((volume["image"][:2] ** 2).mean(0, keepdims=True) > THRESHOLD) & (volume["image"][2:] > 0)
    assert summary["dice"] == pytest.approx(overlap(pred_mask, volume["label"])["dice"][0])
    assert summary["healthy_slices"] == 2
    brain = volume["image"][2:, ..., :2] > 0
    assert summary["false_positive_fraction"] == pytest.approx(pred_mask[..., :2][brain].mean())
    assert float(read_rows(tmp_path)[0]["lesion_pixels_128"]) == pytest.approx(81 * 128**2 / (36 * 40))


def test_without_healthy_slices_baselines_have_no_threshold_but_a_best_one(tmp_path):
    summary = evaluate(tmp_path, slices()[0], pictures=False)
    assert math.isnan(summary["baseline_zscore_dice"]) and math.isnan(summary["false_positive_fraction"])
    assert summary["baseline_zscore_dice_best_threshold"] > 0
    assert json.loads((tmp_path / "summary.json").read_text())["baseline_zscore_dice"] is None


def test_a_case_without_lesion_leaves_dice_undefined_and_the_mean_alone(tmp_path):
    cases, healthy = slices()
    with_lesions = evaluate(tmp_path / "a", cases, healthy, pictures=False)
    mixed = evaluate(tmp_path / "b", [*cases, item("NOTHING", 5)], healthy)
    assert mixed["dice"] == with_lesions["dice"] and mixed["cases"] == 5
    assert next(row for row in read_rows(tmp_path / "b") if row["case"] == "NOTHING")["dice"] == ""


def test_subsets_and_differences_are_those_of_the_rows(tmp_path):
    cases, healthy = slices()
    (tmp_path / "small.txt").write_text("CASE_03\nCASE_06_076\nANOTHER\n")
    summary = evaluate(tmp_path / "out", cases, healthy, subsets={"chosen": str(tmp_path / "small.txt")})
    rows = read_rows(tmp_path / "out")
    own, other = (np.array([float(row[name]) for row in rows]) for name in ("dice", "baseline_smoothed_dice"))
    assert summary["cases_chosen"] == 2
    assert summary["dice_chosen"] == pytest.approx(own[:2].mean())
    assert summary["baseline_smoothed_difference"] == pytest.approx((own - other).mean())
    assert summary["baseline_smoothed_difference_chosen"] == pytest.approx((own - other)[:2].mean())
    low, high = summary["baseline_smoothed_difference_ci_low"], summary["baseline_smoothed_difference_ci_high"]
    assert low < summary["baseline_smoothed_difference"] < high


def test_no_case_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="No case was evaluated"):
        evaluate(tmp_path, [])
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")]


def test_cases_without_lesion_are_scored_by_what_is_marked_in_them(tmp_path, capsys):
    cases = [item(f"HEALTHY_{seed}", seed) for seed in (20, 21)]
    del cases[1]["label"]
    summary = evaluate(tmp_path, cases, healthy_from_cases=True)
    marked = [((case["image"][0] ** 2 > THRESHOLD) & (case["image"][1] > 0)).sum() for case in cases]
    brain = cases[0]["image"][1].sum()
    assert [int(row["false_positive_pixels"]) for row in read_rows(tmp_path)] == marked
    assert summary["cases_without_lesion"] == summary["cases"] == 2
    assert summary["false_positive_pixels_without_lesion"] == pytest.approx(np.mean(marked))
    assert summary["false_positive_fraction_without_lesion"] == pytest.approx(np.mean(marked) / brain)
    printed = capsys.readouterr().out
    assert f"2 cases without lesion: {np.mean(marked):.1f} pixels marked in each on average" in printed
    assert "nan" not in printed.lower() and "Dice" not in printed
    assert "NaN" not in (tmp_path / "summary.json").read_text()
    page = re.sub('base64,[^"]*', "", write_report(str(tmp_path)).read_text())
    assert "2 cases without lesion" in page and "HEALTHY_20" in page and not re.search(r"\bnan\b", page)


def test_a_bad_case_does_not_stop_the_evaluation(tmp_path, capsys):
    def refuse_b(case):
        if case["case"] == "B":
            raise ValueError("B has NaN voxels: repair it.")
        return case

    cases = [item(name, seed, 6) for seed, name in enumerate("ABC")] + [{"case": "D", "error": "D is cut short."}]
    evaluation = Evaluation(tmp_path, "a method", ["flair"], {}, pictures=False)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(cases, refuse_b), batch_size=1),
        network=torch.nn.Identity(),
        inferer=SquaredIntensity(),
        val_handlers=[EvaluationHandler(evaluation)],
    )
    evaluation.run(evaluator)
    with pytest.raises(RuntimeError, match=r"2 of 4 cases failed \(D, B\), the others are done"):
        evaluation.finish()
    assert [row["case"] for row in read_rows(tmp_path)] == ["A", "C"]
    assert "  B has NaN voxels: repair it." in capsys.readouterr().out


def test_files_that_no_evaluation_wrote_stay(tmp_path):
    (tmp_path / "summary.json").write_text("another's")
    with pytest.raises(ValueError, match="summary.json is in the way"):
        Evaluation(tmp_path, "a method", ["flair"], {})
    assert (tmp_path / "summary.json").read_text() == "another's"


def save_volumes(folder: Path) -> None:
    """Write two labeled volumes of positive intensities, the second with other axes."""
    for name, seed, side in (("LARGE", 1, 9), ("SMALL", 2, 4)):
        volume = item(name, seed, side, slices=5)
        brain_mask = volume["image"][1]
        parts = {"flair": (volume["image"][0] + 10) * 40 * brain_mask, "seg": volume["label"][0]}
        for suffix, voxels in parts.items():
            image = nib.Nifti1Image(voxels.astype(np.float32), np.diag([1, 1, 5, 1]))
            if name == "SMALL":
                image = image.as_reoriented(nib.orientations.axcodes2ornt("PIL"))
            (folder / name).mkdir(parents=True, exist_ok=True)
            nib.save(image, folder / name / f"{name}_{suffix}.nii.gz")


def save_slices(folder: Path) -> None:
    """Write scans of one axial slice: healthy ones for validation, labeled ones for testing."""
    cases, healthy = slices()
    for split, items in (("validation", healthy), ("testing", cases)):
        folder.mkdir(exist_ok=True)
        (folder / f"split_{split}.txt").write_text("\n".join(case["case"] for case in items))
        for case in items:
            image, brain_mask = case["image"]
            parts = {"flair": (image + 10) * 40 * brain_mask, "seg": case["label"][0]}
            for suffix, voxels in parts.items():
                path = folder / case["case"] / f"{case['case']}_{suffix}.nii.gz"
                write_nifti(path, voxels[..., None].astype(np.float32), np.diag([4.0, 4, 5, 1]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A folder with slices, volumes, a small lesion network, and a small IterMask that has a threshold."""
    folder = tmp_path_factory.mktemp("trained")
    save_slices(folder / "slices")
    save_volumes(folder / "volumes")
    save_small_model(folder / "model.pt")
    network = partial(ReconstructionUNet, channels=4, channel_multipliers=(1, 2), residual_blocks=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = IterMask(partial(network, attention_levels=()), image_size=32, radius=4, threshold=2.0)
    save_model(model, folder / "itermask.pt")
    return folder


def run_config(name: str, folder: Path, output_dir: Path, **overrides) -> dict:
    """Run a config of the bundle and read its summary."""
    paths = {"model_file": str(folder / "model.pt"), "output_dir": str(output_dir)}
    run_bundle(name, run_id="evaluate", **{**paths, **overrides})
    return json.loads((output_dir / "summary.json").read_text())


def test_evaluate_slices_scores_one_slice_of_each_scan_whatever_the_batch(trained):
    options = {"dataset_dir": str(trained / "slices"), "model_file": str(trained / "itermask.pt"), "slice_range": None}
    one, three = (
        run_config("evaluate_slices", trained, trained / f"batch{size}", batch_size=size, **options) for size in (1, 3)
    )
    assert one == pytest.approx(three, abs=1e-5)
    assert one["cases"] == 4 and one["healthy_slices"] == 4 and one["threshold"] == pytest.approx(2.0)
    assert 0 < one["dice"] <= 1 and 1 <= one["iterations"] <= 101 and 0 < one["false_positive_fraction"] < 1
    assert one["method"] == "IterMask2 as published" and one["baseline_threshold_source"] == "validation slices"
    assert len(list((trained / "batch1" / "pictures").glob("CASE_*.png"))) == 4


def test_evaluate_scores_volumes_in_their_own_voxels(trained):
    out = trained / "volumes_out"
    summary = run_config("evaluate", trained, out, dataset_dir=str(trained / "volumes"))
    rows = {row["case"]: row for row in read_rows(out)}
    assert int(rows["LARGE"]["lesion_pixels"]) == 3 * 81 and int(rows["SMALL"]["lesion_pixels"]) == 3 * 16
    assert summary["healthy_slices"] == 4 and summary["dice"] > 0 and summary["method"] == "lesion network"
    assert summary["threshold"] == pytest.approx(load_model(str(trained / "model.pt")).map_threshold())
    assert summary["baseline_threshold_source"] == "lesion-free slices of the scored volumes"
    assert (out / "pictures" / "LARGE.png").is_file() and (out / "pictures" / "SMALL.png").is_file()


def test_evaluate_scores_itermask_on_a_range_of_slices(trained, tmp_path):
    options = {
        "dataset_dir": str(trained / "volumes"),
        "model_file": str(trained / "itermask.pt"),
        "slice_range": [3, 5],
    }
    summary = run_config("evaluate", trained, tmp_path, split=["LARGE"], **options)
    assert [int(row["lesion_pixels"]) for row in read_rows(tmp_path)] == [2 * 81] and summary["cases"] == 1


@pytest.mark.parametrize("slice_range", [None, [2, 5]])
def test_evaluate_scores_the_very_mask_that_inference_writes(trained, tmp_path, monkeypatch, slice_range):
    seen = {}
    read = Sample.from_item.__func__
    monkeypatch.setattr(
        Sample, "from_item", lambda item, outputs: seen.update({item["case"]: item}) or read(Sample, item, outputs)
    )
    options = {"dataset_dir": str(trained / "volumes")}
    run_config("evaluate", trained, tmp_path / "scores", slice_range=slice_range, pictures=False, **options)
    run_bundle("inference", model_file=str(trained / "model.pt"), output_dir=str(tmp_path / "masks"), **options)
    for case, scored in seen.items():
        for name, found in zip(("mask", "map"), scored["pred"], strict=False):
            written = nib.as_closest_canonical(nib.load(tmp_path / f"masks/{case}/{case}_anomaly_{name}.nii.gz"))
            planes = written.get_fdata(dtype=np.float32)[..., slice(*(slice_range or [None]))]
            assert planes.any()
            np.testing.assert_array_equal(found.numpy(), planes)


def test_loose_scan_is_scored_with_the_label_beside_it(trained, tmp_path):
    save_volumes(tmp_path / "folders")
    for path in (tmp_path / "folders/LARGE").iterdir():
        path.rename(tmp_path / path.name)
    (tmp_path / "folders").rename(tmp_path.parent / f"{tmp_path.name}_rest")
    run_config("evaluate", trained, tmp_path / "out", dataset_dir=str(tmp_path), unlabeled_are_healthy=True)
    assert [(row["case"], int(row["lesion_pixels"])) for row in read_rows(tmp_path / "out")] == [("LARGE", 3 * 81)]


def test_label_of_other_than_whole_numbers_is_refused(trained, tmp_path):
    save_volumes(tmp_path)
    path = tmp_path / "SMALL/SMALL_seg.nii.gz"
    image = nib.load(path)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype=np.float32) * np.float32(0.4), image.affine), path)
    with pytest.raises(RuntimeError) as error:
        run_config("evaluate", trained, tmp_path / "out", dataset_dir=str(tmp_path), pictures=False)
    assert "SMALL has a lesion mask with voxels of 0.4, expected whole numbers" in innermost_message(error.value)
    assert [row["case"] for row in read_rows(tmp_path / "out")] == ["LARGE"]
