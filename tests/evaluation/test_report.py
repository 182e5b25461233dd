"""The page of an evaluation: complete, self-contained, and working in a browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from conftest import CHROMIUM, needs_browser
from PIL import Image
from scripts.evaluation.report import write_report

CASES = {'<b>odd & "name"': 0.8, "middle": 0.4, "worst": 0.1, "healthy": None}


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_evaluation(folder):
    """What an evaluation of four cases leaves, one of them without a lesion."""
    (folder / "pictures").mkdir(parents=True)
    rows = []
    for index, (case, dice) in enumerate(CASES.items()):
        picture = f"pictures/{index}.png"
        Image.new("RGB", (300, 90), (40 * index, 80, 90)).save(folder / picture)
        row = dict.fromkeys(("sensitivity", "precision", "dice_per_image_best", "average_precision"), 0.5)
        row |= {"lesion_pixels_128": [900, 1000, 80, 0][index], "false_positive_fraction": 0.01, "iterations": 3}
        row |= {"lesions": 2, "lesions_found": 1, "false_components": 4, "lesion_f1": 0.25}
        row |= {"ssim_healthy_brain": 0.9, "baseline_zscore_dice": 0.2, "picture": picture}
        rows.append({"case": case, "dice": dice, **row})
    write_csv(folder / "cases.csv", rows)
    thresholds = np.append(-1000, np.geomspace(0.01, 10, 50))
    falling = np.linspace(1000, 0, 51).round()
    curve = {"dice": 0.4, "sensitivity": 0.5, "precision": 0.3}
    write_csv(
        folder / "curves.csv",
        [
            {"score": score, "threshold": threshold, **curve, "lesion_pixels_above": count // 10}
            | {"pixels_above": count, "healthy_pixels_above": count // 2}
            for score in ("anomaly_map", "baseline_zscore")
            for threshold, count in zip(thresholds, falling, strict=True)
        ],
    )
    summary = {
        "method": "IterMask2 (published)",
        "cases": 4,
        "cases_small": 1,
        "cases_medium": 0,
        "cases_large": 2,
        "healthy_slices": 7,
    }
    scores = {"dice": 0.43, "dice_best_threshold": 0.5, "threshold": 0.5, "best_threshold": 0.7, "lesion_f1": 0.31}
    scores |= {"false_positive_fraction": 0.02, "dice_ci_low": None, "dice_ci_high": None}
    summary |= {"cases_without_lesion": 1, "false_positive_ml_without_lesion": 1.234}
    summary |= {"false_positive_pixels_without_lesion": 50, "false_positive_fraction_without_lesion": 0.01}
    summary |= scores | {f"baseline_zscore_{name}": value for name, value in scores.items()}
    (folder / "summary.json").write_text(json.dumps(summary | {"baseline_threshold_source": "validation slices"}))


class Page(HTMLParser):
    """The tags of a page with their attributes, in order, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "evaluation"
    write_evaluation(folder)
    write_report(str(folder))
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_every_case_is_there_worst_first_and_undefined_last(page):
    cells = [attributes["data-value"] for tag, attributes in page.tags if tag == "td" and "data-value" in attributes]
    names = cells[:: len(cells) // len(CASES)]
    assert names == ["worst", "middle", '<b>odd & "name"', "healthy"]
    assert not any(tag == "b" for tag, _ in page.tags)


def test_the_model_is_named_and_scored_by_lesion(page):
    assert page.text.count("IterMask2 (published)") > 2
    assert "0.310" in page.text and "false components" in page.text


def test_pictures_and_charts_are_in_the_page(folder, page):
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    for source in (source for source in sources if source.startswith("data:image/jpeg")):
        with Image.open(io.BytesIO(base64.b64decode(source.partition("base64,")[2]))) as picture:
            assert picture.size == (300, 90)
    assert [source.partition(";")[0] for source in sources].count("data:image/jpeg") == len(CASES)
    charts = [base64.b64decode(source.partition("base64,")[2]) for source in sources if "svg" in source[:20]]
    assert len(charts) == 2 and all(b"</svg>" in chart for chart in charts)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert (write_report(str(folder)).read_text(encoding="utf-8")) == text  # and so are charts that are drawn again


def test_nothing_is_fetched(folder, page):
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"https?://|@import|url\(", (folder / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("table", "charts"), [("healthy", 1), ("dice", 0)])
def test_chart_of_what_is_not_known_is_left_out(tmp_path, table, charts):
    write_evaluation(tmp_path / "a")
    file = tmp_path / "a" / "curves.csv"
    rows = list(csv.DictReader(file.read_text().splitlines()))
    unknown = {"healthy": {"healthy_pixels_above": 0}, "dice": {"dice": "", "sensitivity": "", "precision": ""}}
    write_csv(file, [row | unknown[table] for row in rows])
    page = Page(write_report(str(tmp_path / "a")).read_text(encoding="utf-8"))
    assert sum("svg" in (attributes.get("src") or "")[:20] for _, attributes in page.tags) == charts


def test_page_that_a_person_put_there_stays(tmp_path):
    write_evaluation(tmp_path / "a")
    (tmp_path / "a/report.html").write_text("by hand")
    with pytest.raises(ValueError, match="report.html is in the way"):
        write_report(str(tmp_path / "a"))
    assert (tmp_path / "a/report.html").read_text() == "by hand"


def test_a_folder_without_evaluation_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="No summary.json in"):
        write_report(str(tmp_path))
    assert not list(tmp_path.iterdir())


PROBE = """<script>
const names = () => [...document.querySelectorAll("tbody.case")].map(body => body.rows[0].cells[0].dataset.value);
const click = column => document.querySelectorAll("#cases th button")[column].click();
const found = { first: names(), loaded: [...document.images].every(image => image.complete && image.naturalWidth > 0) };
click(1); click(1); found.bestDice = names();
click(6); found.smallest = names();
click(0); found.byName = names();
document.body.innerHTML = `<pre id="found">${btoa(unescape(encodeURIComponent(JSON.stringify(found))))}</pre>`;
</script></body>"""


@needs_browser
def test_in_a_browser_pictures_load_sorting_works_and_the_console_is_quiet(folder, tmp_path):
    text = (folder / "report.html").read_text(encoding="utf-8")
    delayed = PROBE.replace("<script>", '<script>addEventListener("load", () => {').replace("</script>", "});</script>")
    (tmp_path / "probe.html").write_text(text.replace("</body>", delayed), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "probe.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = json.loads(base64.b64decode(re.search(r'<pre id="found">([^<]+)</pre>', done.stdout)[1]))
    odd = '<b>odd & "name"'
    assert found["loaded"] and found["first"] == ["worst", "middle", odd, "healthy"]
    assert found["bestDice"] == [odd, "middle", "worst", "healthy"]
    assert found["smallest"] == ["healthy", "worst", odd, "middle"]
    assert found["byName"] == sorted(CASES)
    assert "CONSOLE" not in done.stderr
