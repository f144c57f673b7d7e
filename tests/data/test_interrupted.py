"""Killed or without space while packing: never half a pack, and the same command goes on where it stopped."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from symscale.data import build, shuffle
from symscale.data.build import build_pack
from symscale.data.pack import open_pack
from symscale.errors import UserError

XTB = {"source": "xtb", "molecules": 100, "frames": 1}


def test_killed_while_packing_resumes_to_the_same_pack(tmp_path):
    """SIGKILL after the first finished piece: no pack, no orphans; the next run keeps that piece and the pack's
    bytes are those of an uninterrupted run."""
    out = tmp_path / "a b" / "killed"
    out.parent.mkdir()
    command = [sys.executable, "-m", "symscale", "pack", "--entry", json.dumps(XTB), "--out", str(out)]
    process = subprocess.Popen([*command, "--processes", "2"], stderr=subprocess.DEVNULL)
    first = Path(f"{out}.partial") / "staging" / "000000.json"
    second = Path(f"{out}.partial") / "staging" / "000001.json"
    while not (first.exists() or second.exists()):
        assert process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists() and children
    done = next(p for p in (first, second) if p.exists())
    stamp = done.stat().st_mtime_ns
    while any(Path(f"/proc/{pid}").exists() and "Z" not in _state(pid) for pid in children):
        time.sleep(0.01)  # workers notice that their parent is gone
    calls = []
    original = build.stage_all

    def watched(staging, *arguments):
        calls.append((Path(staging) / done.name).stat().st_mtime_ns)
        return original(staging, *arguments)

    build.stage_all = watched
    try:
        build_pack(XTB, str(out), 1)
    finally:
        build.stage_all = original
    assert calls == [stamp]
    build_pack(XTB, str(tmp_path / "whole"), 2)
    assert open_pack(str(out)).content_hash == open_pack(str(tmp_path / "whole")).content_hash


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


@pytest.mark.parametrize("limit", [600, 3000])
def test_disk_full_is_one_message_and_leaves_no_pack(toy_entry, tmp_path, run_symscale, limit):
    """Files may not grow beyond ``limit`` bytes: staging fails at 600, the final arrays at 3000. With room, the same
    command then finishes."""
    out = tmp_path / "full"
    arguments = ("pack", "--entry", json.dumps(toy_entry), "--out", out, "--processes", 1)
    result = run_symscale(
        *arguments, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    assert result.returncode == 1 and not out.exists()
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("symscale pack: ") and ".npy: no space left to write it" in message
    assert ("staging" in message) == (limit == 600)
    assert "Traceback" not in result.stderr
    assert run_symscale(*arguments).returncode == 0 and open_pack(str(out))


def test_too_small_a_disk_is_noticed_before_writing(toy_entry, tmp_path, monkeypatch):
    """The arrays' size is known beforehand; staging is kept for the next run."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shuffle.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"the pack takes 0.0 GB, 0.0 GB are free"):
        build_pack(toy_entry, str(tmp_path / "a"), 1)
    assert not (tmp_path / "a").exists()
    monkeypatch.undo()
    assert build_pack(toy_entry, str(tmp_path / "a"), 1)[1]


@pytest.mark.parametrize("moment", ["arrays", "manifest", "rename"])
def test_killed_while_writing_the_pack_goes_on_from_the_staged_chunks(
    moment, toy_entry, toy_folder, tmp_path
):
    """SIGKILL when the arrays are closed, before the manifest, and between the old pack's end and the new one's name.
    There is no pack then; the next run stages nothing again and ends with the bytes of an uninterrupted one."""
    out = tmp_path / "killed here"
    code = """
import json, os, signal, sys
from symscale.data import build, shuffle
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
moment, entry, out = sys.argv[1:]
if moment == "rename":  # of a pack that is there in an older format
    os.makedirs(os.path.join(out, "train"))
where, name = {
    "arrays": (shuffle._Writer, "close"), "manifest": (build.pack, "content_hash"), "rename": (os, "rename")
}[moment]
setattr(where, name, die)
build.build_pack(json.loads(entry), out, 1)
"""
    command = [sys.executable, "-c", code, moment, json.dumps(toy_entry), str(out)]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == -signal.SIGKILL
    with pytest.raises(UserError, match="no finished pack"):
        open_pack(str(out))
    reports = sorted((Path(f"{out}.partial") / "staging").glob("*.json"))
    stamps = [report.stat().st_mtime_ns for report in reports]
    seen = []
    original = build.stage_all

    def watched(*arguments):
        found = original(*arguments)
        seen.extend(report.stat().st_mtime_ns for report in reports)
        return found

    build.stage_all = watched
    try:
        build_pack(toy_entry, str(out), 1)
    finally:
        build.stage_all = original
    assert len(stamps) == 3 and seen == stamps
    assert open_pack(str(out)).content_hash == open_pack(toy_folder).content_hash


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a given size, and a way to make it larger. Only root may mount one."""
    folder = tmp_path / "small disk"
    folder.mkdir()

    def mount(size, *options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("there is no `mount` here")
        if done.returncode:
            pytest.skip(f"no right to mount a small file system: {done.stderr.strip()}")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


@pytest.mark.parametrize(("size", "where"), [("24k", "staging"), ("100k", "pack")])
def test_a_full_disk_is_one_message_and_with_room_the_command_goes_on(
    size, where, small_disk, toy_entry, toy_folder, run_symscale
):
    """A real file system without space: in staging, then while the arrays are written; then it grows."""
    disk = small_disk(size)
    out = disk / "full"
    arguments = ("pack", "--entry", json.dumps(toy_entry), "--out", out, "--processes", 1)
    result = run_symscale(*arguments)
    assert result.returncode == 1 and not out.exists()
    message = result.stderr.strip().splitlines()[-1]
    assert f"full.partial/{where}/" in message and "(No space left on device)" in message, message
    assert "Traceback" not in result.stderr
    small_disk("10m", "remount")
    result = run_symscale(*arguments)
    assert result.returncode == 0, result.stderr
    assert open_pack(str(out)).content_hash == open_pack(toy_folder).content_hash
    assert not Path(f"{out}.partial").exists()
