"""A copy of the server and its tests with one source changed, below a temporary directory."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.mutants.rules import Mutant

ROOT = Path(__file__).parent.parent.parent
COPIED = {".py", ".pyi", ".pyx", ".pxd", ".h"}
DEFINES = ("-DXXH_INLINE_ALL=1", "-D_GNU_SOURCE")


class StaleMutantError(Exception):
    """The source has changed, and the mutant must be placed anew."""


def make_tree(tree: Path) -> None:
    """Sources copied, extensions linked to the built ones."""
    for source in (ROOT / "shardserver").rglob("*"):
        target = tree / source.relative_to(ROOT)
        if source.suffix in COPIED:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
        elif source.suffix == ".so":
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "docs", "scripts"):
        (tree / name).symlink_to(ROOT / name)


def mutated_source(mutant: Mutant) -> str:
    """Raises StaleMutantError."""
    source = (ROOT / mutant.path).read_text()
    if source.count(mutant.old) != 1:
        raise StaleMutantError(f"{mutant.path} holds {mutant.old!r} {source.count(mutant.old)} times")
    return source.replace(mutant.old, mutant.new)


def apply(tree: Path, mutant: Mutant) -> None:
    (tree / mutant.path).write_text(mutated_source(mutant))
    if mutant.is_compiled:
        _build_extension(tree, mutant.path)


def restore(tree: Path, mutant: Mutant) -> None:
    shutil.copyfile(ROOT / mutant.path, tree / mutant.path)
    if mutant.is_compiled:
        built = _extension(Path(mutant.path))
        (tree / built).unlink(missing_ok=True)
        (tree / built).symlink_to(ROOT / built)


def _extension(path: Path) -> Path:
    return path.with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))


def _build_extension(tree: Path, path: str) -> None:
    """-O1: the half of the time that -O3 takes."""
    target = tree / _extension(Path(path))
    source = (tree / path).with_suffix(".c")
    cython = [str(Path(sys.executable).parent / "cython"), "-3", "-X", "boundscheck=False,wraparound=False"]
    subprocess.run([*cython, path, "-o", str(source)], cwd=tree, check=True, capture_output=True)
    target.unlink()
    flags = ["-shared", "-fPIC", "-O1", *DEFINES, f"-I{sysconfig.get_path('include')}"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(target)], check=True, capture_output=True)
