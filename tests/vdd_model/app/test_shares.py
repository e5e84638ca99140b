"""One clip on several processes: the result of one, whoever dies."""
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from media_tools import IdentityDeblurrer, deblur, pictures, save_clip, stopped

from vdd_model.app import shares
from vdd_model.app.shares import Team, divide
from vdd_model.errors import UserError
from vdd_model.inference.pipeline import Deblurrer
from vdd_model.media import sinks
from vdd_model.media.encoding import OutputOptions
from vdd_model.media.video import part_folder

fcntl = pytest.importorskip("fcntl", reason="sharing a clip out needs the system's file locks")
TOOLS = Path(__file__).resolve().parents[2] / "media_tools.py"


@pytest.fixture
def short_segments(monkeypatch):
    monkeypatch.setattr(sinks, "SEGMENT", 8)
    monkeypatch.setattr(shares, "SEGMENT", 8)


def together(size: int, work) -> list:
    """What work(team) gives, or raises, for the members of a team of threads."""
    store, found = torch.distributed.HashStore(), [None] * size
    store.set_timeout(timedelta(seconds=60))

    def member(number: int) -> None:
        try:
            found[number] = work(Team(store, number, size))
        except BaseException as error:
            found[number] = error

    with ThreadPoolExecutor(size) as pool:
        list(pool.map(member, range(size)))
    return found


@pytest.mark.parametrize("suffix, codec", [(".mp4", "h264"), (".mov", "prores")])
def test_shares_equal_one_process(tmp_path, tiny_model, short_segments, suffix, codec):
    """The whole chain with the model, whose windows blend across the borders of shares: the same file, byte for byte, with its sound."""
    source = save_clip(tmp_path / "in.mp4", 37, audio=True)
    model, output = Deblurrer(tiny_model, device="cpu"), OutputOptions(codec=codec, preset="veryfast")
    whole = deblur(source, tmp_path / f"whole{suffix}", stand_in=model, output=output)
    made = together(3, lambda team: deblur(source, tmp_path / f"o{suffix}", stand_in=model, output=output, team=team))
    assert made[0].frames == whole.frames == 37 and made[0].notes == whole.notes
    assert sum(outcome.made for outcome in made) == 37 and sum(outcome.made > 0 for outcome in made) > 1
    assert (tmp_path / f"o{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()
    assert not part_folder(tmp_path / f"o{suffix}").exists()


def test_pictures_are_shared_out_and_a_damaged_one_ends_the_clip(tmp_path, short_segments):
    """As with one process, what lies behind it is left out, although another process has made it."""
    files = pictures(tmp_path / "in", *range(30))
    files[11].write_bytes(files[11].read_bytes()[:50])
    whole = deblur(files, tmp_path / "whole")
    made = together(2, lambda team: deblur(files, tmp_path / "o", team=team))
    assert made[0].notes == whole.notes and made[0].lost == whole.lost == 19
    names = [sorted(p.name for p in (tmp_path / folder).iterdir()) for folder in ("o", "whole")]
    assert names[0] == names[1] and len(names[0]) == 11
    assert all((tmp_path / "o" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes() for name in names[0])


def test_a_run_begun_alone_is_finished_by_many(tmp_path, short_segments):
    source = save_clip(tmp_path / "in.mp4", 50)
    stopped(source, tmp_path / "o.mp4", 13)
    made = together(3, lambda team: deblur(source, tmp_path / "o.mp4", stand_in=IdentityDeblurrer(0.02), team=team, resume=True))
    deblur(source, tmp_path / "whole.mp4")
    assert made[0].frames == 50 and 30 < sum(outcome.made for outcome in made) < 50
    assert (tmp_path / "o.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()


def test_what_the_first_refuses_ends_all(tmp_path):
    source = save_clip(tmp_path / "in.mp4", 3)
    (tmp_path / "o.mp4").write_bytes(b"")
    first, second = together(2, lambda team: deblur(source, tmp_path / "o.mp4", team=team))
    assert "exists already" in str(first) and isinstance(second, UserError) and "the first process did" in str(second)


def test_processes_that_do_not_see_each_other(tmp_path, monkeypatch):
    """Another folder stands in for another machine's disk."""
    assert together(2, lambda team: team.sees(tmp_path)) == [True, True]
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)       # locks that keep nobody out
    assert together(2, lambda team: team.sees(tmp_path)) == [False, False] and not list(tmp_path.iterdir())


def test_division(tmp_path):
    assert divide(tmp_path, 1000, 1) == [0]
    for (length, size, begun), starts in {(1000, 3, 0): [0, 320, 640], (100, 8, 0): [0, 64], (1000, 2, 70): [0, 128, 576]}.items():
        assert divide(tmp_path, length, size, begun=begun) == divide(tmp_path, length, 5) == divide(tmp_path, length, 1) == starts
        (tmp_path / "shares.json").unlink()


def start(rank: int, port: int, source: Path, target: Path) -> subprocess.Popen:
    """One of two processes that torchrun would start."""
    command = [sys.executable, str(TOOLS), "deblur", str(source), "-o", str(target), "--window", "6", "--overlap", "2", "--preset",
               "veryfast", "--quiet"]
    environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                   "OMP_NUM_THREADS": "1", "STAND_IN_DELAY": "0.1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_costs_no_frame(tmp_path, killed):
    """kill -9 of the second: the first takes over. Of the first: the second goes on, and --resume joins what is there."""
    source = save_clip(tmp_path / "in.mp4", 150, audio=True)
    target, folder = tmp_path / "o.mp4", part_folder(tmp_path / "o.mp4")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [start(rank, port, source, target) for rank in (0, 1)]
    places, until = (folder, folder / "from-000000064"), time.monotonic() + 90
    while time.monotonic() < until and not all(any(place.glob("spool-*.raw")) for place in places):
        time.sleep(0.02)
    processes[killed].kill()
    assert processes[killed].wait(30) == -signal.SIGKILL
    left = processes[1 - killed]
    said, _ = left.communicate(timeout=120)
    assert left.returncode == 0 and target.exists() == bool(killed)
    assert "150 frames" in said if killed else deblur(source, target, resume=True, identity="given").made == 0
    deblur(source, tmp_path / "whole.mp4")
    assert target.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert not folder.exists()
