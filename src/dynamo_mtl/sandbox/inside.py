"""Runs in a process of its own: locks itself in, then runs code and says what the tests' expressions gave.

Started by ``run.py`` with the standard library alone. It speaks once, a JSON line with the nonce that it was given.
Layers, each of which must be there: limits; namespaces of its own for users, network and IPC; no new privileges;
Landlock (files and signals); seccomp (system calls that Landlock does not cover, and new processes).
"""

import ctypes
import json
import os
import resource
import struct
import sys
from typing import Any, NoReturn

X86_64 = 0xC000003E
MIB = 1024 * 1024
NEW_NAMESPACES = 0x10000000 | 0x40000000 | 0x08000000  # user, network, IPC
NO_NEW_PRIVILEGES, SET_SECCOMP, SECCOMP_FILTER = 38, 22, 2
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
REFUSED = {
    "fork": 57, "vfork": 58, "execve": 59, "execveat": 322,
    "socket": 41, "socketpair": 53, "connect": 42, "bind": 49, "listen": 50, "accept": 43, "sendto": 44,
    "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "pidfd_open": 434, "pidfd_send_signal": 424,
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
    "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "mount_setattr": 442,
    "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93, "lchown": 94,
    "fchownat": 260, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "utime": 132, "utimes": 235,
    "futimesat": 261, "utimensat": 280, "truncate": 76,
    "bpf": 321, "io_uring_setup": 425, "keyctl": 250, "add_key": 248, "request_key": 249, "perf_event_open": 298,
    "userfaultfd": 323, "memfd_create": 319, "setpriority": 141, "sched_setaffinity": 203, "prlimit64": 302,
}  # fmt: skip
"""System calls of x86-64 that fail with EPERM."""
CLONE, CLONE3, THREAD = 56, 435, 0x00010000
"""``clone`` is refused unless it makes a thread; ``clone3``, whose flags cannot be seen, is said not to exist."""

libc = ctypes.CDLL(None, use_errno=True)


def call(*arguments: Any) -> int:
    """A system call, by its number. Raises ``OSError``."""
    found = libc.syscall(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))
    if found < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return found


def limit(seconds: int) -> None:
    """Limits of CPU time, memory, files and descriptors."""
    for kind, most in (
        (resource.RLIMIT_CPU, seconds + 1),
        (resource.RLIMIT_AS, 512 * MIB),
        (resource.RLIMIT_FSIZE, MIB),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 8),
    ):
        resource.setrlimit(kind, (most, most))


def confine_files(folder: str) -> None:
    """Landlock: the interpreter can be read, ``folder`` can be used, all else is closed; no TCP, no signals out."""
    version = call(CREATE_RULESET, 0, 0, 1)
    rights = (1 << {1: 13, 2: 14}.get(version, 15 if version < 5 else 16)) - 1
    ruleset = struct.pack("=Q", rights)
    if version >= 4:
        ruleset += struct.pack("=Q", 0b11)  # bind and connect TCP
    if version >= 6:
        ruleset += struct.pack("=Q", 0b11)  # abstract sockets and signals
    held = call(CREATE_RULESET, ctypes.create_string_buffer(ruleset), len(ruleset), 0)
    readable = {sys.base_prefix, sys.prefix, *sys.path, "/usr/lib", "/lib", "/lib64"}
    places = [(path, EXECUTE | READ_FILE | READ_DIR) for path in sorted(readable) if os.path.isdir(path)]
    for path, allowed in [*places, (folder, rights & ~EXECUTE)]:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        call(ADD_RULE, held, 1, ctypes.create_string_buffer(struct.pack("=Qi", allowed & rights, opened)), 0)
        os.close(opened)
    call(RESTRICT_SELF, held, 0)
    os.close(held)


def confine_calls() -> None:
    """seccomp: refuse the calls of ``REFUSED``, new processes, and everything of another architecture."""

    def step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("=HBBI", code, yes, no, value)

    load, equal, has_bit, give = 0x20, 0x15, 0x45, 0x06
    kill, refuse, absent, allow = 0x80000000, 0x00050001, 0x00050026, 0x7FFF0000
    numbers = sorted(REFUSED.values())
    program = [step(load, 4), step(equal, X86_64, yes=1), step(give, kill), step(load, 0)]
    program += [step(has_bit, 0x40000000, no=1), step(give, kill)]  # x32 has other numbers
    for number in numbers:
        program += [step(equal, number, no=1), step(give, refuse)]
    program += [step(equal, CLONE3, no=1), step(give, absent)]
    program += [step(equal, CLONE, no=3), step(load, 16), step(has_bit, THREAD, yes=1), step(give, refuse)]
    program += [step(give, allow)]
    code = ctypes.create_string_buffer(b"".join(program))
    described = struct.pack("=HxxxxxxQ", len(program), ctypes.addressof(code))
    if libc.prctl(SET_SECCOMP, SECCOMP_FILTER, ctypes.create_string_buffer(described), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


def lock_in(folder: str, seconds: int) -> None:
    """All layers, outermost first. Raises ``OSError`` where one is missing."""
    if libc.unshare(NEW_NAMESPACES):
        raise OSError(ctypes.get_errno(), "unshare")
    limit(seconds)
    if libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    os.chdir(folder)
    confine_files(folder)
    confine_calls()


def source(value: Any) -> str:
    """A value as source of a literal; containers that equal a plain one, such as ``Counter``, as that one.

    What is no literal gives its ``repr``, which no test takes for one.
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{source(key)}: {source(own)}" for key, own in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(source, value)) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(f"{source(own)}, " for own in value) + ")"
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(map(source, value)) + "}" if value else "set()"
    if isinstance(value, float) and abs(value) == float("inf"):
        return "1e999" if value > 0 else "-1e999"
    return repr(value)


def main() -> None:
    """One job from standard input."""
    job = json.loads(sys.stdin.buffer.read())
    told = os.dup(1)

    def tell(**found: Any) -> NoReturn:
        os.write(told, json.dumps({"nonce": job["nonce"], **found}).encode() + b"\n")
        os._exit(0)

    try:
        lock_in(job["folder"], job["seconds"])
    except OSError as error:
        tell(missing=str(error))
    quiet = os.open(os.path.join(job["folder"], "output"), os.O_CREAT | os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    values: list[str] = []
    try:
        space: dict[str, Any] = {"__name__": "solution"}
        exec(compile(job["code"], "solution", "exec"), space)
        for expression in job["expressions"]:
            values.append(source(eval(compile(expression, "test", "eval"), space)))
    except BaseException as error:  # whatever the code raises is its failure
        tell(error=type(error).__name__, values=values)
    tell(values=values)


main()
