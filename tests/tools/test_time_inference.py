"""The command is timed by part, and its memory does not grow with the number of volumes."""

import pytest
from scripts.tools.time_inference import PARTS, growth_of_slices, main, make_small, profile_command, run_inference


def cells(table):
    return {
        row[0]: row[1:] for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
    }


def test_parts_of_the_command_add_up(tmp_path):
    make_small(tmp_path / "in" / "one_flair.nii.gz")
    options = ["--image", str(tmp_path / "in" / "one_flair.nii.gz"), "--brain_mask", "null"]
    table = profile_command(options, 1, tmp_path)
    rows = cells(table.rpartition("\n\n")[0])
    assert {"loading PyTorch and MONAI", "networks", "start and end of the process"} <= rows.keys()
    assert rows.keys() - {"one volume", "---", "all", *PARTS.values()} <= {
        "config, and all else",
        "start and end of the process",
    }
    for column in (0, 1):
        parts = sum(float(row[column]) for name, row in rows.items() if name not in ("one volume", "---", "all"))
        assert parts == pytest.approx(float(rows["all"][column]), abs=0.1)


def test_memory_does_not_grow_with_the_number_of_volumes(tmp_path):
    memory = []
    for number in (2, 30):
        for index in range(number):
            make_small(tmp_path / f"in_{number}" / f"case_{index}" / f"case_{index}_flair.nii.gz")
        options = ["--dataset_dir", f"{tmp_path}/in_{number}", "--brain_mask", "null"]
        memory.append(run_inference([*options, "--output_dir", f"{tmp_path}/out_{number}"]).memory)
    assert memory[1] < memory[0] + 20


def test_larger_slices_take_no_less_memory():
    rows = cells(growth_of_slices([64, 192], number=4))
    assert float(rows["4 slices of 192 x 192"][2]) >= 0.95 * float(rows["4 slices of 64 x 64"][2]) > 100  # MB


def test_command_that_fails_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="ended with 1: error: .*missing"):
        run_inference(["--image", str(tmp_path / "missing.nii.gz")])


def test_tables_are_not_written_over_a_file(tmp_path):
    with pytest.raises(SystemExit, match="name a new file"):
        main(["--output_file", str(tmp_path)])


def test_tables_are_printed_and_kept(tmp_path, capsys):
    main(["--repeats", "0", "--numbers", "--sizes", "--output_file", str(tmp_path / "tables.md")])
    text = (tmp_path / "tables.md").read_text()
    assert "threads, torch" in text and text in capsys.readouterr().out
