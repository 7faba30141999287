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
import operator
import os
import platform
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
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
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}

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
        tests: ``assert`` statements; see ``read_check``.
        seconds: after which it is killed, with everything that it started.

    Raises:
        ValueError: a test that cannot be checked from outside.
    """
    checks = [read_check(test) for test in tests]
    began = time.perf_counter()
    report = _report(code, [check.expression for check in checks], seconds)
    taken = time.perf_counter() - began
    if isinstance(report, str):
        return Verdict("timeout" if report == "timeout" else "no report", report, taken)
    if "missing" in report:
        return Verdict("no report", f"isolation is incomplete: {report['missing']}", taken)
    if "error" in report:
        return Verdict("failed", str(report["error"]), taken)
    values = report.get("values")
    if not isinstance(values, list) or len(values) != len(checks):
        return Verdict("failed", "not every test was run", taken)
    right = all(check.holds(value) for check, value in zip(checks, values, strict=True))
    return Verdict("passed", "", taken) if right else Verdict("failed", "AssertionError", taken)


def pass_at_k(total: int, passed: int, k: int) -> float:
    """Chance that one of ``k`` of ``total`` programs passes, when ``passed`` do: unbiased.

    ``1 - C(n - c, k) / C(n, k)`` (Chen et al. 2021, arXiv 2107.03374, equation 1).
    """
    return 1.0 - comb(total - passed, k) / comb(total, k)


@dataclass(frozen=True)
class _Check:
    """A test, in the part that runs in isolation and the part that does not."""

    expression: str
    compare: Callable[[Any, Any], bool]
    """Of the value and what is expected."""
    expected: Any

    def holds(self, value: Any) -> bool:
        """Whether the value, as source of a literal, is what it should be."""
        try:
            return bool(self.compare(ast.literal_eval(str(value)), self.expected))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return False


def read_check(test: str) -> _Check:
    """Take a test apart: ``assert EXPRESSION == LITERAL`` (or another order), ``assert f(LITERALS)``, ``assert not …``.

    In other comparisons a program could redefine what compares, and so decide for itself that it is right.

    Raises:
        ValueError: a test of another form.
    """
    try:
        statements = ast.parse(test.strip()).body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"not an assert statement: {test!r:.80}") from error
    if len(statements) != 1 or not isinstance(statements[0], ast.Assert):
        raise ValueError(f"not an assert statement: {test!r:.80}")
    tested = statements[0].test
    if isinstance(tested, ast.Compare) and len(tested.ops) == 1 and type(tested.ops[0]) in COMPARISONS:
        compare = COMPARISONS[type(tested.ops[0])]
        return _Check(ast.unparse(tested.left), compare, _literal(tested.comparators[0], test))
    negated = isinstance(tested, ast.UnaryOp) and isinstance(tested.op, ast.Not)
    call = tested.operand if isinstance(tested, ast.UnaryOp) and negated else tested
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(f"compares with no literal: {test!r:.80}")
    for argument in (*call.args, *(keyword.value for keyword in call.keywords)):
        _literal(argument, test)
    return _Check(ast.unparse(call), lambda found, expected: bool(found) is expected, not negated)


def _literal(node: ast.expr, test: str) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        raise ValueError(f"compares with no literal: {test!r:.80}") from error


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
                except (ValueError, RecursionError):
                    continue
                if isinstance(report, dict) and report.get("nonce") == nonce:
                    return report
    return "timeout" if len(read) < MOST_OUTPUT else "it wrote too much"
