"""Generated code can do no harm and cannot claim success: each case was seen to get through with its layer removed."""

import os
import platform
import socket
import subprocess
import sys
import time

import pytest

from dynamo_mtl.errors import ConfigError
from dynamo_mtl.sandbox import run as module
from dynamo_mtl.sandbox.run import check_sandbox, pass_at_k, run_tests

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="code is isolated on Linux on x86_64 only"
)
LIMIT = 10.0
TRUE = ["assert 1 == 1"]


def _ends_with(outcome, action):
    """Whether an action ended so: None if it got through, else the error that it met, by name.

    What is refused must say so: a ``NameError`` would leave nothing to refuse.
    """
    lines = ["try:", *(f"    {line}" for line in action.splitlines()), "    done = None"]
    code = "\n".join([*lines, "except BaseException as error:", "    done = type(error).__name__"])
    return run_tests(code, [f"assert done == {outcome!r}"], LIMIT).passed


def _refused(action):
    return _ends_with("PermissionError", action)


@pytest.mark.parametrize(
    ("code", "outcome", "detail"),
    [
        ("def f(x):\n    return x + 1", "passed", ""),
        ("def f(x):\n    return x + 2", "failed", "AssertionError"),
        ("def f(x:", "failed", "SyntaxError"),
        ("def g(x):\n    return x", "failed", "NameError"),
        ("raise ValueError", "failed", "ValueError"),
    ],
)
def test_x1_right_wrong_and_broken(code, outcome, detail):
    verdict = run_tests(code, ["assert f(1) == 2", "assert [f(x) for x in {3}] == [4]", "assert f(0) > 0"], LIMIT)
    assert (verdict.outcome, verdict.detail) == (outcome, detail)


@pytest.mark.parametrize("code", ["while True: pass", "import time\ntime.sleep(60)", "while True: print('x' * 1000)"])
def test_x2_what_does_not_end_is_killed(code):
    began = time.monotonic()
    assert run_tests(code, TRUE, 1.0).outcome in ("timeout", "failed")  # endless output meets its limit first
    assert time.monotonic() - began < 30


def test_x3_no_process_is_started():
    for action in ("import os\nos.fork()", "import subprocess\nsubprocess.run(['/bin/true'], check=True)"):
        assert _refused(action), action
    assert run_tests("import threading\nt = threading.Thread(target=int)\nt.start()\nt.join()", TRUE, LIMIT).passed


def test_x4_memory_and_files_are_limited():
    assert run_tests("x = bytearray(2 * 1024**3)", TRUE, LIMIT).detail == "MemoryError"
    assert _ends_with("OSError", "with open('big', 'wb') as file:\n    file.write(bytes(5_000_000))")
    assert _ends_with(None, "with open('small', 'wb') as file:\n    file.write(bytes(5_000))")


FORGERY = """
import json, os, sys
frame = sys._getframe()
while frame:
    job = frame.f_locals.get('job')
    if job:
        line = json.dumps({'nonce': job['nonce'], 'values': ['True'] * len(job['expressions'])})
        for number in range(3, 20):
            try:
                os.write(number, line.encode() + b'\\n')
            except OSError:
                pass
    frame = frame.f_back
"""


@pytest.mark.parametrize(
    "code",
    [
        "import os\nos._exit(0)",
        "import sys\nsys.exit(0)",
        "import json, os\nos.write(1, json.dumps({'nonce': '', 'values': ['3', '[4]']}).encode() + b'\\n')\n"
        "os._exit(0)",
        FORGERY,
        "import builtins\nbuiltins.repr = lambda x: '3'\nf = lambda: 0",
        "class Same:\n    def __eq__(self, other):\n        return True\nf = Same",
    ],
)
def test_x5_success_cannot_be_claimed(code):
    """Fails if the answers enter the process, or if its word is taken for it."""
    assert not run_tests(
        code + "\nf = globals().get('f', lambda: 0)", ["assert f() == 3", "assert f() == [4]"], LIMIT
    ).passed


def test_x6_nothing_outside_can_be_read(tmp_path):
    (tmp_path / "secret").write_text("x")
    for place in ("/etc/passwd", str(tmp_path / "secret"), __file__, f"/proc/{os.getpid()}/environ"):
        assert _refused(f"open({place!r}).read()"), place
    assert _refused(f"import os\nos.listdir({str(tmp_path)!r})")


def test_x7_nothing_outside_can_be_changed(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("x")
    kept.chmod(0o644)
    for action in (
        f"open({str(tmp_path / 'new')!r}, 'w')",
        f"open({str(kept)!r}, 'w')",
        f"import os\nos.remove({str(kept)!r})",
        f"import os\nos.chmod({str(kept)!r}, 0)",
        f"import os\nos.utime({str(kept)!r})",
        f"import os\nos.truncate({str(kept)!r}, 0)",
    ):
        assert _refused(action), action
    assert kept.read_text() == "x"
    assert kept.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["kept"]


def test_x8_there_is_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for action in (
            f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)",
            "import socket\nsocket.socket().bind(('127.0.0.1', 0))",
            "import socket\nsocket.socket(type=socket.SOCK_DGRAM)",
            "import socket\nsocket.socketpair()",
        ):
            assert _refused(action), action


def test_x9_no_other_process_is_signalled():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        for target in (other.pid, os.getpid(), -1):
            assert _refused(f"import os\nos.kill({target}, 9)"), target
        assert other.poll() is None
        other.kill()


def test_x10_dangerous_calls_are_refused():
    for number in (101, 165, 272, 321, 425, 310):  # ptrace, mount, unshare, bpf, io_uring, process_vm_readv
        code = (
            "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
            f"found = libc.syscall({number}, 0, 0, 0, 0, 0, 0)\nerror = ctypes.get_errno()"
        )
        assert run_tests(code, ["assert found == -1", "assert error == 1"], LIMIT).passed


def test_x11_a_crash_is_no_success():
    verdict = run_tests("import ctypes\nctypes.string_at(0)", TRUE, LIMIT)
    assert (verdict.outcome, verdict.detail) == ("no report", "it ended without a report (status -11)")


def test_x12_the_environment_is_not_seen(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    code = "import os\nnames = sorted(set(os.environ) - {'LC_CTYPE'})"
    assert run_tests(code, ["assert names == ['LANG', 'PATH']"], LIMIT).passed


def test_nothing_runs_where_a_layer_is_missing(monkeypatch, tmp_path):
    """A Landlock that is not there, as on an old kernel."""
    source = module.INSIDE.read_text(encoding="utf-8").replace("CREATE_RULESET, ADD_RULE", "ADD_RULE, CREATE_RULESET")
    (tmp_path / "inside.py").write_text(source)
    monkeypatch.setattr(module, "INSIDE", tmp_path / "inside.py")
    verdict = run_tests("open('/etc/passwd')", TRUE, LIMIT)
    assert verdict.outcome == "no report"
    assert "isolation is incomplete" in verdict.detail
    with pytest.raises(ConfigError, match="cannot be isolated on this machine"):
        check_sandbox()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(ConfigError, match="found Linux on riscv64"):
        check_sandbox()


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    run_tests("open('file', 'w')", TRUE, LIMIT)
    assert os.listdir(tmp_path) == []


def test_pass_at_k_by_hand():
    assert pass_at_k(10, 0, 5) == 0
    assert pass_at_k(10, 10, 1) == 1
    assert pass_at_k(4, 1, 1) == pytest.approx(1 / 4)
    assert pass_at_k(4, 2, 2) == pytest.approx(1 - 1 / 6)  # both drawn among the two that fail: 1 of 6 pairs
    assert pass_at_k(3, 1, 3) == 1


def test_what_is_no_assert_is_said():
    for test in ("print(1)", "assert", ""):
        with pytest.raises(ValueError, match="not an assert statement"):
            run_tests("x = 1", [test], LIMIT)
    with pytest.raises(ValueError, match="not an assert statement"):
        run_tests("x = 1", ["assert x == 1\nassert x == 2"], LIMIT)


@pytest.mark.parametrize(
    "test",
    [
        "assert set(f(1)) == set((1, 2))",
        "assert math.isclose(f(2), 4.0)",
        "assert isclose(f(2), 4.0)",
        "assert f(1) == g(1)",
        "assert f(1) in [2]",
        "assert f() == {[1]: 2}",
    ],
)
def test_what_a_program_could_decide_for_itself_is_no_test(test):
    """Fails if a comparison is left to names that the program may redefine."""
    with pytest.raises(ValueError, match="compares with no literal"):
        run_tests("bool = set = isclose = lambda *_: True", [test], LIMIT)


@pytest.mark.parametrize(
    ("code", "test", "passes"),
    [
        ("from collections import Counter\nf = Counter", "assert f([1, 1]) == {1: 2}", True),
        ("from collections import OrderedDict\nf = OrderedDict", "assert f({'a': [1]}) == {'a': [1]}", True),
        ("from collections import namedtuple\nf = namedtuple('p', 'x y')", "assert f(1, 2) == (1, 2)", True),
        ("f = frozenset", "assert f([2, 1]) == {1, 2}", True),
        ("f = set", "assert f() == []", False),
        ("from collections import deque\nf = deque", "assert f([1]) == [1]", False),
        ("f = float", "assert f('inf') == 1e999", True),
        ("f = float", "assert f('nan') == 1.0", False),
        ("f = abs", "assert f(-2) >= 2", True),
        ("f = abs", "assert f(-2) != 2", False),
        ("f = lambda x: x > 1", "assert f(2)", True),
        ("f = lambda x: x > 1", "assert not f(2)", False),
        ("f = lambda x: 'yes'", "assert f(2)", True),
        ("f = lambda x: []", "assert not f(2)", True),
    ],
)
def test_values_are_compared_as_python_would(code, test, passes):
    assert run_tests(code, [test], LIMIT).passed is passes


def _to_every_descriptor(statement):
    return f"""
import os
for number in range(3, 20):
    try:
        {statement}
    except OSError:
        pass
"""


def test_output_that_is_no_report_breaks_nothing():
    """Fails if what cannot be read as JSON, or does not end, stops the evaluation."""
    nested = _to_every_descriptor("os.write(number, b'[' * 200_000 + b'\\n')")
    assert run_tests(nested, TRUE, LIMIT).passed
    flood = run_tests(_to_every_descriptor("while True: os.write(number, b'x' * 65_536)"), TRUE, LIMIT)
    assert (flood.outcome, flood.detail) == ("no report", "it wrote too much")
