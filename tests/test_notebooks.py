"""The notebooks of examples/: small, stored with what they show, and run from top to bottom."""

import json
import shutil

import pytest
from conftest import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_with_their_outputs(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    outputs = [output for cell in code_cells(notebook) for output in cell["outputs"]]
    assert len(text) < 400_000 and "/work" not in text and "/home" not in text and "/root" not in text
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    # From top to bottom, in one go.
    assert [cell["execution_count"] for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    assert "In Colab" in "".join(notebook["cells"][0]["source"])


def test_five_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == [
        "from_a_run_to_a_phone",
        "resnet20_in_five_minutes",
        "train_and_resume",
        "why_depth_needs_shortcuts",
        "your_own_images",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path, tmp_path, monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    shutil.copy(ROOT / "examples" / "cat.jpg", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    stored = json.loads(path.read_text(encoding="utf-8"))
    for cell, before in zip(code_cells(notebook), code_cells(stored), strict=True):
        kinds = [{output["output_type"] for output in outputs} for outputs in (cell["outputs"], before["outputs"])]
        assert kinds[0] == kinds[1], before["source"]
