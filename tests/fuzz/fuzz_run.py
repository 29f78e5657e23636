"""One child process with libFuzzer in it, and what it printed."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutator import dictionary
from tests.fuzz.targets import Target
from tests.fuzz.trees import environment

INPUT_LIMIT_S, MEMORY_LIMIT_MB = 10, 1024
# What a child takes beside its time: imports, its seeds, and the reading of its last input.
BESIDE_S = 120


@dataclass(frozen=True)
class FuzzRun:
    executions: int
    found: bool
    printed: str

    @property
    def reason(self) -> str:
        """The line that says what broke."""
        told = re.findall(
            r"^.*AddressSanitizer:.*$|^[\w.]*(?:Error|error): .*$|^.*libFuzzer:.*$", self.printed, re.MULTILINE
        )
        return told[0].strip() if told else self.printed[-300:]


def fuzz_target(target: Target, tree: Path, corpus: Path, seconds: float, *, with_asan: bool) -> FuzzRun:
    """corpus: takes the seeds and what the fuzzer adds. An input that breaks something stays in tree/crash-…."""
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds()):
        (corpus / f"seed{number}").write_bytes(seed)
    options = [
        *_dictionary(target, tree),
        f"-max_total_time={max(1, round(seconds))}",
        f"-max_len={target.max_bytes}",
        f"-timeout={INPUT_LIMIT_S}",
        f"-rss_limit_mb={MEMORY_LIMIT_MB}",
        f"-artifact_prefix={tree}/",
        "-print_final_stats=1",
        "-use_value_profile=1",
        # Whole files stay beside shorter ones that run the same lines: only there a field is where it belongs.
        "-keep_seed=1",
        "-reduce_inputs=0",
    ]
    done = _run(target, tree, corpus, *options, with_asan=with_asan, limit_s=seconds + BESIDE_S)
    executions = re.findall(r"number_of_executed_units: (\d+)", done.stdout)
    count = int(executions[-1]) if executions else max(map(int, re.findall(r"^#(\d+)", done.stdout, re.M)), default=0)
    return FuzzRun(count, done.returncode != 0, done.stdout)


def _dictionary(target: Target, tree: Path) -> list[str]:
    """The option; none without words, as libFuzzer refuses an empty file."""
    path, words = tree / "words.dict", target.words()
    path.write_text(dictionary(words))
    return [f"-dict={path}"] if words else []


def covered_lines(target: Target, tree: Path, corpus: Path) -> str:
    done = _run(target, tree, corpus, "--cover", with_asan=False, limit_s=BESIDE_S)
    found = re.findall(r"lines (\d+ of \d+)", done.stdout)
    return found[-1] if found else f"? ({done.stdout[-200:]})"


def _run(
    target: Target, tree: Path, corpus: Path, *options: str, with_asan: bool, limit_s: float
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.fuzz.run_target", target.name, str(corpus), *options]
    return subprocess.run(
        command,
        cwd=tree,
        env=environment(tree, with_asan=with_asan),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=limit_s,
        check=False,
    )
