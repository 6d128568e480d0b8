"""The notebook: it runs, from `precompute` to what is kept, and its stored outputs are those of its cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import Family
from tiny_data import write_llava_json

NOTEBOOK = Path(__file__).parents[1] / "examples" / "precompute.ipynb"
MAX_BYTES = 60_000


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def outputs_of(cell: Any) -> list[str]:
    """Every output's plain text, HTML left out."""
    return [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell["outputs"]]


def test_its_outputs_are_stored_small_and_in_order() -> None:
    cells = [cell for cell in read()["cells"] if cell["cell_type"] == "code"]
    assert NOTEBOOK.stat().st_size < MAX_BYTES
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert all(outputs_of(cell) for cell in cells[1:])
    assert ".venv" not in NOTEBOOK.read_text()
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    assert "(True, {'ok': 40})" in outputs_of(cells[1])
    assert any("cal-words" in output["data"].get("text/html", "") for output in cells[2]["outputs"])


@pytest.mark.full
@pytest.mark.slow
def test_it_runs_on_a_tiny_model(llava: Family, tmp_path: Path) -> None:
    data, images = write_llava_json(tmp_path, count=16)
    notebook = read()
    (parameters,) = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ())]
    names = f"model, data, images = {str(llava.directory)!r}, {str(data)!r}, {str(images)!r}\n"
    lines = parameters["source"].splitlines()
    parameters["source"] = "\n".join(names if line.startswith("model, data") else line for line in lines)
    assert names in parameters["source"]
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert "rows" in "".join(outputs_of(cells[1]))
    assert "samples are kept" in outputs_of(cells[-1])[0]
