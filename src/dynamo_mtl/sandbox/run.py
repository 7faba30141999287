"""Run code that a model wrote against tests, and score it.

The code runs in a process of its own under ``inside.py``, which refuses to run where a layer of its isolation is
missing: it needs Linux on x86-64 with user namespaces, Landlock and seccomp. Of a test ``assert call == expected`` only
the call enters that process; its value comes back and is compared here, so that success cannot be claimed without
knowing the answer.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import platform
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from typing import Any, Literal

from dynamo_mtl.errors import ConfigError

INSIDE = Path(__file__).parent / "inside.py"
SHORTEST = 4.0
"""Seconds that a program may take, if the reference solution is fast (EvalPlus, Liu et al. 2023, arXiv 2305.01210)."""
SLACK = 4.0
"""Times that the reference solution took."""
MOST_OUTPUT = 1 << 20

Outcome = Literal["passed", "failed", "timeout", "no report"]


@dataclass(frozen=True)
class Verdict:
    """What became of a program."""

    outcome: Outcome
    detail: str
    """Such as the exception's name."""
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every test gave what it should."""
        return self.outcome == "passed"


def check_sandbox() -> None:
    """Raises ``ConfigError`` where code cannot be isolated."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise ConfigError(
            f"--confirm-run-unsafe-code: code can be isolated on Linux on x86_64 only, found {platform.system()} on "
            f"{platform.machine()}; leave it out to score without running code"
        )
    verdict = run_tests("x = 1", ["assert x == 1"], SHORTEST)
    if not verdict.passed:
        raise ConfigError(
            f"--confirm-run-unsafe-code: code cannot be isolated on this machine ({verdict.detail}); leave it out to "
            "score without running code"
        )


def run_tests(code: str, tests: Sequence[str], seconds: float) -> Verdict:
    """Run a program and its tests in isolation.

    Args:
        code: of the program.
        tests: ``assert`` statements.
        seconds: after which it is killed, with everything that it started.
    """
    expressions, expected = zip(*(_split(test) for test in tests), strict=True)
    began = time.perf_counter()
    report = _report(code, list(expressions), seconds)
    taken = time.perf_counter() - began
    if isinstance(report, str):
        return Verdict("timeout" if report == "timeout" else "no report", report, taken)
    if "missing" in report:
        return Verdict("no report", f"isolation is incomplete: {report['missing']}", taken)
    if "error" in report:
        return Verdict("failed", str(report["error"]), taken)
    values = report.get("values")
    if not isinstance(values, list) or len(values) != len(expected):
        return Verdict("failed", "not every test was run", taken)
    right = all(_equal(value, answer) for value, answer in zip(values, expected, strict=True))
    return Verdict("passed", "", taken) if right else Verdict("failed", "AssertionError", taken)


def pass_at_k(total: int, passed: int, k: int) -> float:
    """Chance that one of ``k`` of ``total`` programs passes, when ``passed`` do: unbiased.

    ``1 - C(n - c, k) / C(n, k)`` (Chen et al. 2021, arXiv 2107.03374, equation 1).
    """
    return 1.0 - comb(total - passed, k) / comb(total, k)


def _split(test: str) -> tuple[str, str]:
    """An ``assert`` as what is evaluated in isolation, and the literal that it should give."""
    try:
        statement = ast.parse(test.strip()).body[0]
    except (SyntaxError, IndexError) as error:
        raise ValueError(f"not an assert statement: {test!r:.80}") from error
    if not isinstance(statement, ast.Assert):
        raise ValueError(f"not an assert statement: {test!r:.80}")
    tested = statement.test
    if isinstance(tested, ast.Compare) and len(tested.ops) == 1 and isinstance(tested.ops[0], ast.Eq):
        try:
            ast.literal_eval(tested.comparators[0])
        except ValueError:
            pass
        else:
            return ast.unparse(tested.left), ast.unparse(tested.comparators[0])
    return f"bool({ast.unparse(tested)})", "True"


def _equal(value: Any, expected: str) -> bool:
    try:
        return bool(ast.literal_eval(str(value)) == ast.literal_eval(expected))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


def _report(code: str, expressions: list[str], seconds: float) -> dict[str, Any] | str:
    """The report of the isolated process, or in words why there is none."""
    nonce = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="dynamo-sandbox-") as folder:
        job = {"nonce": nonce, "code": code, "expressions": expressions, "folder": folder, "seconds": int(seconds) + 1}
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(INSIDE)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd="/", env=environment, start_new_session=True, close_fds=True,
        )  # fmt: skip
        try:
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(job).encode())
                process.stdin.close()
            except BrokenPipeError:
                return f"it ended before it began (status {process.wait()})"
            return _read(process, nonce, seconds)
        finally:
            # Everything that it may have started is in its group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _read(process: subprocess.Popen[bytes], nonce: str, seconds: float) -> dict[str, Any] | str:
    assert process.stdout is not None
    deadline = time.monotonic() + seconds
    read = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while (left := deadline - time.monotonic()) > 0 and len(read) < MOST_OUTPUT:
            if not selector.select(left):
                break
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                return f"it ended without a report (status {process.wait()})"
            read += chunk
            for line in read.split(b"\n")[:-1]:
                try:
                    report = json.loads(line)
                except ValueError:
                    continue
                if isinstance(report, dict) and report.get("nonce") == nonce:
                    return report
    return "timeout"
