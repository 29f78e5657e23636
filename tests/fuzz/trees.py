"""A copy of the package below build/fuzz with one source changed, or with extensions that AddressSanitizer watches.

Links to all that stays as it is; what is changed, and what is compiled anew, stands there itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.plants import ROOT, Plant

BUILD = ROOT / "build" / "fuzz"
ASAN_FLAGS = ("-O1", "-g1", "-fno-omit-frame-pointer", "-fsanitize=address")
KEPT_SUFFIXES = {".py", ".so", ".pyx", ".pxd"}


def asan_environment() -> dict[str, str]:
    """For a Python that loads such extensions: each object gets a red zone of its own (as in scripts/sanitize).

    The runtime is the fuzzer's: any other one hides libFuzzer's functions, and with them all coverage.
    """
    import atheris

    options = "detect_leaks=0:abort_on_error=1:allocator_may_return_null=1"
    library = Path(atheris.path()) / "asan_with_fuzzer.so"
    return {"LD_PRELOAD": str(library), "PYTHONMALLOC": "malloc", "ASAN_OPTIONS": options}


def make_tree(name: str, compiled: Sequence[str], plant: Plant | None = None) -> Path:
    """The tree's root: a working directory whose `shardserver` is the copy. compiled: sources to build with ASan."""
    tree = BUILD / name
    shutil.rmtree(tree, ignore_errors=True)
    for source in (ROOT / "shardserver").rglob("*"):
        if source.suffix in KEPT_SUFFIXES:
            link = tree / source.relative_to(ROOT)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source)
    (tree / "tests").symlink_to(ROOT / "tests")
    if plant is not None:
        replace(tree / plant.path, plant.planted())
    for path in dict.fromkeys([*compiled, *([plant.path] if plant and plant.is_compiled else [])]):
        build_extension(tree, path)
    return tree


def replace(link: Path, content: str) -> None:
    link.unlink()
    link.write_text(content)


def build_extension(tree: Path, path: str) -> None:
    """From path (of a .pyx) to the extension beside it."""
    target = (tree / path).with_suffix(sysconfig.get_config_var("EXT_SUFFIX"))
    source = target.with_name(Path(path).stem + ".c")
    cython = [str(Path(sys.executable).parent / "cython"), "-3", "-X", "boundscheck=False,wraparound=False"]
    subprocess.run([*cython, path, "-o", str(source)], cwd=tree, check=True, capture_output=True)
    target.unlink()
    flags = ["-c", "-fPIC", "-DXXH_INLINE_ALL=1", f"-I{sysconfig.get_path('include')}", *ASAN_FLAGS]
    compiled = source.with_suffix(".o")
    subprocess.run(["gcc", *flags, str(source), "-o", str(compiled)], check=True, capture_output=True)
    # Linked without gcc's own runtime: the one that is preloaded has the same functions.
    subprocess.run(["gcc", "-shared", str(compiled), "-o", str(target)], check=True, capture_output=True)


def environment(tree: Path, *, with_asan: bool) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(tree)} | (asan_environment() if with_asan else {})
