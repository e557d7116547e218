"""A search in a notebook: one output below the cell that is drawn in place, in a real kernel."""

from __future__ import annotations

import nbclient
import nbformat

CELL = """
import bstune
from bstune.tests.stories.bowl import search

search(callbacks=[lambda progress: None]).recommendation.global_batch_size
"""


def test_a_notebook_shows_the_search_in_one_output() -> None:
    """However many trials there are, and with the best so far."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])

    nbclient.NotebookClient(notebook, timeout=120).execute()

    shown = [output.data for output in notebook.cells[0].outputs if output.output_type == "display_data"]
    assert len(shown) == 1
    assert shown[0]["text/html"].startswith("<pre")
    assert "best so far: batch" in shown[0]["text/html"]


def test_optuna_s_progress_bar_is_not_missed_in_a_notebook() -> None:
    """Its warning stood in red above the first probe of everybody who has no ipywidgets."""
    cell = nbformat.v4.new_code_cell(
        "from bstune.tuner.studies.storage import open_storage\nopen_storage('sqlite://').close()"
    )
    notebook = nbformat.v4.new_notebook(cells=[cell])

    nbclient.NotebookClient(notebook, timeout=120).execute()

    assert cell.outputs == []
