"""`make help`, and set-up on a machine that lacks something."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
# What scripts/setup needs before it has found anything missing.
TOOLS = ("sh", "cat", "cksum", "find", "sort", "dirname")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A copy of what set-up reads, and a PATH without a compiler whose user is not root."""
    for name in ("pyproject.toml", "setup.py", "scripts/setup"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "shardserver").mkdir()
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))
    script(tmp_path, "id", "echo 1000")
    script(tmp_path, "apt-get", f"touch {tmp_path}/apt-get-was-called")
    return tmp_path


def script(bare: Path, name: str, text: str) -> None:
    (bare / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    (bare / "bin" / name).chmod(0o755)


def set_up(bare: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(bare / "bin"), "PYTHON": sys.executable}
    return subprocess.run(["sh", "scripts/setup"], cwd=bare, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("tool", "command"), [("sudo", "sudo sh -c 'apt-get"), ("other", "su -c 'apt-get")])
def test_a_missing_package_without_root_gives_the_command(bare: Path, tool: str, command: str) -> None:
    script(bare, tool, "exit 0")
    ended = set_up(bare)
    assert ended.returncode == 1
    assert f"    {command} update && apt-get install -y gcc libc6-dev" in ended.stderr
    assert not (bare / "apt-get-was-called").exists() and not (bare / ".venv").exists()


def test_what_is_up_to_date_is_left_alone(bare: Path) -> None:
    stamp = "cat pyproject.toml setup.py scripts/setup | cksum"
    now = subprocess.run(["sh", "-c", stamp], cwd=bare, env=os.environ, capture_output=True, text=True).stdout
    (bare / ".venv").mkdir()
    (bare / ".venv" / "setup.stamp").write_text(now)
    assert (set_up(bare).returncode, set_up(bare).stderr) == (0, "")
    (bare / "setup.py").write_text("changed")
    assert set_up(bare).returncode == 1


def test_make_help_lists_every_target() -> None:
    printed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    listed = {line.split("\t")[0] for line in printed.splitlines()}
    makefile = (ROOT / "Makefile").read_text()
    assert listed == set(re.findall("^([a-z-]+):", makefile, re.MULTILINE))
    assert listed == set(re.findall("^.PHONY: (.*)", makefile, re.MULTILINE)[0].split())
