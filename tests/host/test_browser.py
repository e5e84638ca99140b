"""The host's page in a real browser (needs chromium, and playwright in PLAYWRIGHT_PYTHON or in this interpreter)."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
TINY = "vdd-tiny.safetensors"


@pytest.fixture(scope="module", params=["canvas", "vue"])
def page(host, tmp_path_factory, request) -> dict:
    """What was seen in the page, its nodes drawn on the canvas or, as newer ones do, by Vue."""
    python = os.environ.get("PLAYWRIGHT_PYTHON", sys.executable)
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        pytest.skip("needs the browser chromium")
    if subprocess.run([python, "-c", "import playwright"], capture_output=True).returncode:
        pytest.skip("needs playwright: set PLAYWRIGHT_PYTHON to an interpreter that has it")
    pictures = os.environ.get("VDD_SCREENSHOTS")
    pictures = f"{pictures}/{request.param}" if pictures else str(tmp_path_factory.mktemp("pictures"))
    checkpoint = os.environ.get("VDD_CHECKPOINT", TINY)              # empty: the one that the workflow names
    done = subprocess.run([python, str(HERE / "page.py"), host.url, pictures, checkpoint, request.param, *map(str, WORKFLOWS)],
                          capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflow_loads_and_runs_in_the_page(page, host, path):
    found = page["workflows"][path.stem]
    if found["missing"] and all(not t.startswith("VDD") for t in found["missing"]):
        pytest.skip(f"ComfyUI {'.'.join(map(str, host.version))} has no {', '.join(sorted(set(found['missing'])))}")
    assert not found["missing"] and not found["dialogs"]
    assert not found["node_errors"] and (found["drawn_by_vue"] or page["drawn"] == "canvas")
    assert found["ended"] and found["ended"][0] == "execution_success", found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_saved_widgets_land_where_they_belong(page, path):
    saved = {str(n["id"]): n["widgets_values"] for n in json.loads(path.read_text())["nodes"] if n["type"].startswith("VDD")}
    for node, widgets in page["workflows"][path.stem]["widgets"].items():
        assert [value for _, value in widgets] == saved[node]
        names = [name for name, _ in widgets]
        assert "seed" not in names or widgets[names.index("seed") + 1][1] == "fixed"


def test_the_seed_of_a_new_node_is_fixed(page, host):
    """Where the host can say so."""
    inputs = host.get("/object_info/VDDDeblurVideo")["VDDDeblurVideo"]["input"]["required"]
    if inputs["seed"][1]["control_after_generate"] is True:
        pytest.skip(f"ComfyUI {'.'.join(map(str, host.version))} has no io.ControlAfterGenerate")
    names = [name for name, _ in page["fresh"]]
    assert page["fresh"][names.index("seed") + 1][1] == "fixed"


def test_help_pages_open(page):
    assert len(page["help"]) == 10
    for node, (status, text) in page["help"].items():
        assert status == 200 and text.startswith("# "), node


def test_help_panel_shows_ours(page):
    assert page["help_panel"] == "shown"


def test_the_page_reports_no_error(page):
    assert [error for error in page["page_errors"] if not error.startswith(": ")] == []          # 1.27.10 has one as it starts
