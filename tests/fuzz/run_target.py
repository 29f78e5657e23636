"""One target in a process of its own: `python -m tests.fuzz.run_target NAME CORPUS [libFuzzer's options]`.

libFuzzer ends the process: 0 when the time is over, else the input that broke something lies in a file crash-….
With --cover instead of options: runs the corpus once more and prints which lines of the covered modules ran.
"""

from __future__ import annotations

import importlib
import inspect
import os
import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from tests.fuzz.mutator import FieldMutator
from tests.fuzz.targets import TARGETS, Run, Target
from tests.fuzz.tree_mutator import TreeMutator


def fuzz(target: Target, options: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["shardserver"], enable_loader_override=False):
        run = target.load()

    # Looked up at each call: Fuzz() puts another function in this place.
    def mutate(data: bytes, limit: int) -> bytes:
        made: bytes = atheris.Mutate(data, limit)
        return made

    fields = FieldMutator(target.fields, target.nested, mutate, seals=target.seals, seeds=target.seeds())
    mutator = TreeMutator(mutate) if target.is_msgpack else fields
    if "asan_with_fuzzer" in os.environ.get("LD_PRELOAD", ""):
        run = with_changes(run, fields)
    atheris.Setup([target.name, *options], run, custom_mutator=mutator)
    atheris.Fuzz()


def with_changes(run: Run, mutator: FieldMutator) -> Run:
    """Each input, then one made of it, always the same: the preloaded libFuzzer does not call our mutator."""

    def both(data: bytes) -> None:
        run(data)
        run(mutator.changed(random.Random(zlib.crc32(data)), data))

    return both


def lines_of(code: CodeType) -> set[int]:
    """Those of the functions in it; what only runs at import is no reader of bytes."""
    found = set()
    for one in code.co_consts:
        if isinstance(one, CodeType):
            found |= {line for _, _, line in one.co_lines() if line} - {one.co_firstlineno} | lines_of(one)
    return found


def cover(target: Target, corpus: Path) -> tuple[int, int]:
    """(lines that ran, lines in functions) of the covered modules."""
    run = target.load()
    modules = [importlib.import_module(f"shardserver.{name}") for name in target.covers]
    files = {module.__file__: set[int]() for module in modules}

    def trace(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        seen = files.get(frame.f_code.co_filename)
        if seen is None:
            return None
        if event == "line":
            seen.add(frame.f_lineno)
        return trace

    sys.settrace(trace)
    for path in sorted(corpus.iterdir()):
        run(path.read_bytes())
    sys.settrace(None)
    sources = {module.__file__: compile(inspect.getsource(module), "", "exec") for module in modules}
    whole = {path: lines_of(code) for path, code in sources.items()}
    return sum(len(files[path] & lines) for path, lines in whole.items()), sum(map(len, whole.values()))


def main() -> None:
    name, corpus, *options = sys.argv[1:]
    if options == ["--cover"]:
        print("lines {} of {}".format(*cover(TARGETS[name], Path(corpus))))
    else:
        fuzz(TARGETS[name], [*options, corpus])


if __name__ == "__main__":
    main()
