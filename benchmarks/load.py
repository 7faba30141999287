"""`dynamo serve` under load on this machine's loopback: throughput, overload, clients that give up, a soak, overhead.

    python benchmarks/load.py CHECKPOINT [key=value …] --output results/serving-cpu.json

Inputs are the first of each task's validation split, in turns, as a user would send them, so the overrides may have to
say where the checkpoint's data is. Every server is the command itself in a process of its own; clients share the
machine with it. ``docs/serving.md`` shows the file.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import aiohttp
import torch
from harness import machine

from dynamo_mtl.checkpoint.folder import CONFIG
from dynamo_mtl.config import load_config
from dynamo_mtl.config.serving_config import ServingConfig
from dynamo_mtl.evaluation.inputs import task_examples, task_input
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.training.provenance import source_revision

CONNECTIONS, QUESTIONS_CONNECTIONS = 32, 8
MAX_REQUESTS = 48
"""Room of the server under overload: at most two seconds of work, so that it is over soon after."""
DEADLINE = 10.0
UNBATCHED = ("serving.token_budget=1", "serving.max_writing=1")
"""One input a pass, one answer at a time."""
EACH_TASK = 20
PARTS = ["overhead", "throughput", "questions", "overload", "abandoned", "idle_connections", "soak"]
QUESTIONS = 6
"""Most tasks that are asked about one text."""


@dataclass(frozen=True)
class Reply:
    """One request, as its client saw it."""

    status: int
    """0 if there was no answer."""
    seconds: float
    began: float
    has_retry_after: bool = False


class Client:
    """Connections to one server."""

    def __init__(self, session: aiohttp.ClientSession, bodies: list[dict[str, Any]]) -> None:
        self.session = session
        self._bodies = itertools.cycle(bodies)

    async def ask(self, body: dict[str, Any] | None = None, seconds: float = 60.0) -> Reply:
        """Send one input, the next one if none is given, and wait."""
        began = time.perf_counter()
        try:
            limit = aiohttp.ClientTimeout(total=seconds)
            async with self.session.post("/v1/predict", json=body or next(self._bodies), timeout=limit) as said:
                await said.read()
                return Reply(said.status, time.perf_counter() - began, began, "Retry-After" in said.headers)
        except (aiohttp.ClientError, TimeoutError):
            return Reply(0, time.perf_counter() - began, began)

    async def closed_loop(self, connections: int, seconds: float) -> list[Reply]:
        """So many clients, each of which sends its next input when the last is answered."""
        end = time.perf_counter() + seconds

        async def one() -> list[Reply]:
            found: list[Reply] = []
            while time.perf_counter() < end:
                found.append(await self.ask())
            return found

        return [reply for replies in await asyncio.gather(*(one() for _ in range(connections))) for reply in replies]

    async def open_loop(self, rate: float, seconds: float) -> list[Reply]:
        """So many inputs a second, whether the ones before are answered or not."""
        began = time.perf_counter()
        sent: list[asyncio.Task[Reply]] = []
        while (now := time.perf_counter() - began) < seconds:
            while len(sent) < rate * now:
                sent.append(asyncio.create_task(self.ask()))
            await asyncio.sleep(0.002)
        return list(await asyncio.gather(*sent))


@contextmanager
def server(checkpoint: Path, *settings: str) -> Iterator[tuple[subprocess.Popen[bytes], int, float, float]]:
    """The command, with its process and port, and the seconds until it answered at all and until it was ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dynamo_mtl.cli", "serve", str(checkpoint), f"serving.port={port}", *settings]
    began = time.perf_counter()
    environment = {name: value for name, value in os.environ.items() if name != "DYNAMO_API_KEY"}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    try:
        live = _until(port, "/health/live", began)
        ready = _until(port, "/health/ready", began)
        yield process, port, live, ready
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _until(port: int, path: str, began: float) -> float:
    """Seconds until a route says 200."""
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    while time.perf_counter() - began < 120:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
                connection.sendall(request)
                if connection.recv(64).startswith(b"HTTP/1.1 200"):
                    return time.perf_counter() - began
        except OSError:
            pass
        time.sleep(0.02)
    raise SystemExit(f"{path} did not answer within two minutes")


@asynccontextmanager
async def client(port: int, bodies: list[dict[str, Any]]) -> AsyncIterator[Client]:
    """A client of a server on this machine, with as many connections as it wants."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as session:
        found = Client(session, bodies)
        await found.closed_loop(4, 3.0)  # warm up
        yield found


def quantile_ms(replies: list[Reply], share: float) -> float:
    """Milliseconds that so large a share of the replies took at most."""
    times = sorted(reply.seconds for reply in replies)
    return 1000 * times[min(len(times) - 1, int(share * len(times)))]


def failures(replies: list[Reply]) -> int:
    """Replies that were neither an answer nor a polite refusal."""
    return sum(reply.status not in (200, 429) for reply in replies)


async def throughput(checkpoint: Path, bodies: list[dict[str, Any]], seconds: float, rounds: int) -> dict[str, Any]:
    """Batched against one by one, in turns, with as many clients; and what a lone client waits."""
    with server(checkpoint) as (_, port, _, _), server(checkpoint, *UNBATCHED) as (_, other, _, _):
        async with client(port, bodies) as batched, client(other, bodies) as unbatched:
            pairs = [
                (
                    await batched.closed_loop(CONNECTIONS, seconds / rounds),
                    await unbatched.closed_loop(CONNECTIONS, seconds / rounds),
                )
                for _ in range(rounds)
            ]
            lone = await batched.closed_loop(1, seconds / rounds)
    share = seconds / rounds
    rates = [(len(first) / share, len(second) / share) for first, second in pairs]
    ratios = sorted(first / second for first, second in rates)
    replies = [reply for first, _ in pairs for reply in first]
    return {
        "throughput_ratio": statistics.median(ratios),
        "errors": sum(reply.status != 200 for pair in pairs for side in pair for reply in side),
        "throughput": {
            "connections": CONNECTIONS, "seconds": seconds, "rounds": rounds, "low": ratios[0], "high": ratios[-1],
            "batched_per_second": statistics.median(first for first, _ in rates),
            "unbatched_per_second": statistics.median(second for _, second in rates),
            "p50_ms": quantile_ms(replies, 0.5), "p99_ms": quantile_ms(replies, 0.99),
            "lone_p50_ms": quantile_ms(lone, 0.5), "lone_p99_ms": quantile_ms(lone, 0.99),
        },
    }  # fmt: skip


async def questions(checkpoint: Path, model: DynamoInference, seconds: float) -> dict[str, Any]:
    """Several tasks about each text, by several clients."""
    fitting = [name for name, task in model.system.tasks.items() if not (task.needs_context or task.takes_choices)]
    texts = [body["inputs"]["text"] for body in mixed_bodies(model)]
    bodies = [{"inputs": text, "tasks": fitting[:QUESTIONS]} for text in texts]
    with server(checkpoint) as (_, port, _, _):
        async with client(port, bodies) as asking:
            replies = await asking.closed_loop(QUESTIONS_CONNECTIONS, seconds)
    return {
        "tasks": len(fitting[:QUESTIONS]), "connections": QUESTIONS_CONNECTIONS, "requests": len(replies),
        "errors": sum(reply.status != 200 for reply in replies),
        "p50_ms": quantile_ms(replies, 0.5), "p99_ms": quantile_ms(replies, 0.99),
        "deadline_ms": 1000 * ServingConfig().deadline_seconds,
    }  # fmt: skip


async def overload(checkpoint: Path, bodies: list[dict[str, Any]], capacity: float, seconds: float) -> dict[str, Any]:
    """Four times what the server can do, and how soon after it answers as before."""
    limits = (f"serving.max_requests={MAX_REQUESTS}", f"serving.deadline_seconds={DEADLINE}")
    with server(checkpoint, *limits) as (_, port, _, _):
        async with client(port, bodies) as asking:
            normal = quantile_ms(await asking.closed_loop(1, 6.0), 0.5)
            loop = asyncio.create_task(asking.open_loop(4 * capacity, seconds))
            await asyncio.sleep(seconds)
            ended = time.perf_counter()
            after = await asking.closed_loop(1, 6.0)
            replies = await loop
    accepted = [reply for reply in replies if reply.status == 200]
    refused = [reply for reply in replies if reply.status == 429]
    return {
        "sent_per_second": 4 * capacity, "seconds": seconds, "max_requests": MAX_REQUESTS,
        "deadline_ms": 1000 * DEADLINE, "accepted": len(accepted), "rejected": len(refused),
        "accepted_p99_ms": quantile_ms(accepted, 0.99), "rejected_p50_ms": quantile_ms(refused, 0.5),
        "rejected_p99_ms": quantile_ms(refused, 0.99),
        "rejected_without_retry_after": sum(not reply.has_retry_after for reply in refused),
        "five_xx": sum(reply.status >= 500 for reply in replies + after), "failures": failures(replies + after),
        "recovery_seconds": recovery(after, ended, normal), "normal_p50_ms": normal,
    }  # fmt: skip


def recovery(after: list[Reply], ended: float, normal_ms: float) -> float | None:
    """Seconds from the end of the overload until five answers in a row had a median like before; None if none had.

    Like before is at most half as long again.
    """
    for place in range(len(after) - 4):
        five = after[place : place + 5]
        if all(reply.status == 200 for reply in five) and quantile_ms(five, 0.5) <= 1.5 * normal_ms:
            return max(0.0, five[0].began - ended)
    return None


async def abandoned(checkpoint: Path, bodies: list[dict[str, Any]], longest: dict[str, Any]) -> dict[str, Any]:
    """200 clients that want much and give up after half a second; then one that waits."""
    with server(checkpoint) as (_, port, _, _):
        async with client(port, bodies) as asking:
            given_up = await asyncio.gather(*(asking.ask(longest, 0.5) for _ in range(200)))
            last = await asking.ask(bodies[0])
    assert last.status == 200, last
    return {
        "abandoned_then_answered_seconds": last.seconds,
        "abandoned": {"clients": 200, "gave_up": sum(reply.status == 0 for reply in given_up)},
    }


async def idle_connections(checkpoint: Path, bodies: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """What 950 open connections that say nothing cost those who ask."""
    with server(checkpoint) as (_, port, _, _):
        async with client(port, bodies) as asking:
            before = await asking.closed_loop(4, seconds)
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(950)]
            during = await asking.closed_loop(4, seconds)
            for _, writer in idle:
                writer.close()
            after = await asking.closed_loop(4, seconds)
    without = (quantile_ms(before, 0.5) + quantile_ms(after, 0.5)) / 2
    return {
        "connections": len(idle), "failures": failures(before + during + after),
        "p50_over_without": quantile_ms(during, 0.5) / without,
    }  # fmt: skip


async def soak(checkpoint: Path, bodies: list[dict[str, Any]], minutes: float) -> dict[str, Any]:
    """Steady traffic: memory, threads and open files after a tenth of the time, and at the end."""
    with server(checkpoint) as (process, port, _, _):
        async with client(port, bodies) as asking:
            replies = await asking.closed_loop(8, 6 * minutes)
            first = resources(process.pid)
            replies += await asking.closed_loop(8, 54 * minutes)
            last = resources(process.pid)
    return {
        "minutes": minutes, "requests": len(replies), "failures": failures(replies),
        "rss_growth": last["rss_mib"] / first["rss_mib"] - 1, "first": first, "last": last,
    }  # fmt: skip


def resources(pid: int) -> dict[str, float]:
    """Memory, threads and open files of a process."""
    place = Path("/proc") / str(pid)
    status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines() if ":\t" in line)
    return {
        "rss_mib": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "files": len(list((place / "fd").iterdir())),
    }


async def overhead(checkpoint: Path, model: DynamoInference, bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """What a lone client waits beyond the call itself, input by input, in turns; both have all threads."""
    differences: list[float] = []
    with server(checkpoint) as (_, port, live, ready):
        async with client(port, bodies) as asking:
            for body in itertools.islice(itertools.cycle(bodies), 200):
                over = (await asking.ask(body)).seconds
                began = time.perf_counter()
                model.predict(**body["inputs"])
                differences.append(1000 * (over - (time.perf_counter() - began)))
    low, middle, high = statistics.quantiles(differences, n=4)
    return {
        "http_overhead_ms": middle, "http_overhead": {"low": low, "high": high, "pairs": len(differences)},
        "start": {"live_seconds": live, "ready_seconds": ready},
    }  # fmt: skip


def main() -> None:
    """Parse the command line, run every load in turn, write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings of the checkpoint, such as data.root=PATH")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the closed loop; the others follow")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the soak")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS, help="those not named stay in the file")
    chosen = parser.parse_args()
    config = load_config(chosen.checkpoint / CONFIG, chosen.overrides)
    model = DynamoInference(chosen.checkpoint, config, device="cpu")
    bodies = mixed_bodies(model)
    quick = bodies[:: len(model.task_names)]  # those of the first task, which writes nothing
    found: dict[str, Any] = {"checkpoint": model.metadata.backbone, "commits": {}}
    if chosen.output.exists() and list(chosen.parts) != PARTS:
        found.update(json.loads(chosen.output.read_text(encoding="utf-8")))

    checkpoint, seconds = chosen.checkpoint, chosen.seconds

    def overloaded() -> Coroutine[Any, Any, dict[str, Any]]:
        return overload(checkpoint, bodies, found["throughput"]["batched_per_second"], seconds / 2)

    def given_up() -> Coroutine[Any, Any, dict[str, Any]]:
        longest = {"inputs": longest_input(model, bodies), "parameters": {"max_new_tokens": 128}}
        return abandoned(checkpoint, bodies, longest)

    loads: dict[str, Callable[[], Coroutine[Any, Any, dict[str, Any]]]] = {
        "overhead": lambda: overhead(checkpoint, model, quick),
        "throughput": lambda: throughput(checkpoint, bodies, seconds, 3),
        "questions": lambda: questions(checkpoint, model, seconds / 2),
        "overload": overloaded,
        "abandoned": given_up,
        "idle_connections": lambda: idle_connections(checkpoint, bodies, seconds / 6),
        "soak": lambda: soak(checkpoint, bodies, chosen.minutes),
    }

    def run(part: str) -> dict[str, Any]:
        measured = asyncio.run(loads[part]())
        return measured if part in ("overhead", "throughput", "abandoned") else {part: measured}

    for part in chosen.parts:
        measured = run(part)
        found.update(measured)
        found["commits"][part] = source_revision()
        content = {**found, "machine": machine(torch.device("cpu")), "settings": ServingConfig().model_dump()}
        chosen.output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        print(json.dumps(measured), flush=True)


def mixed_bodies(model: DynamoInference) -> list[dict[str, Any]]:
    """Requests of one input each, the tasks in turns."""
    system = model.system
    by_task = [
        [
            {"inputs": {name: value for name, value in asdict(task_input(system, task, example)).items() if value}}
            for example in task_examples(system, task, "validation", model.metadata.seed, EACH_TASK)
        ]
        for task in system.tasks
    ]
    return [body for bodies in zip(*by_task, strict=False) for body in bodies]


def longest_input(model: DynamoInference, bodies: list[dict[str, Any]]) -> dict[str, Any]:
    """The input that is written about for the longest time: a text to be summarized, or the longest one."""
    longest = max((body["inputs"] for body in bodies), key=lambda inputs: len(inputs["text"]))
    hint = "summarization" if "summarization" in model.task_names else model.task_names[0]
    return {**longest, "task_hint": hint}


if __name__ == "__main__":
    main()
