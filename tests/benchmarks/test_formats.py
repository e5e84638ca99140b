"""README's table of formats is what its command prints."""
from pathlib import Path

import av
import pytest

from benchmarks import formats

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()
TABLE = README.partition("<!-- formats -->\n")[2].partition("\n<!-- /formats -->")[0].splitlines()


def test_no_row_is_missing():
    rows = [line for line in TABLE if line.startswith("| ") and not line.startswith(("| ---", "| read", "| written"))]
    assert len(rows) == len(formats.INPUTS) + len(formats.PICTURES) + len(formats.OUTPUTS)
    assert not any(" lost " in row or "off by" in row for row in rows)


@pytest.mark.parametrize("row", [formats.INPUTS[5], formats.INPUTS[17], (".webm", "libvpx-vp9", "yuva420p")])
def test_rows_of_what_is_read(tmp_path, row):
    if row[1] not in av.codecs_available:
        pytest.skip(f"this PyAV has no {row[1]}")
    assert formats.input_row(tmp_path, *row) in TABLE


def test_rows_of_what_is_written_and_of_pictures(tmp_path):
    assert formats.output_row(tmp_path, ".mp4", "h264") in TABLE and formats.picture_row(tmp_path, ".png", "RGBA") in TABLE
