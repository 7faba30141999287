"""Serve a checkpoint from one process until it is asked to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import uvicorn

from dynamo_mtl.config.load import DynamoConfig
from dynamo_mtl.errors import ConfigError, DynamoError
from dynamo_mtl.inference.api import DynamoInference
from dynamo_mtl.serving.app import make_app
from dynamo_mtl.serving.connection import listener_config
from dynamo_mtl.serving.handlers import Server
from dynamo_mtl.serving.job import Overloaded
from dynamo_mtl.serving.security import KEY_VARIABLE, check_exposure

logger = logging.getLogger(__name__)

CONNECTIONS = 1024
"""Most open connections. Beyond them, uvicorn itself answers 503."""
RELOAD = getattr(signal, "SIGHUP", None)
"""Signal that has the model loaded anew, where there is such a signal."""
DEAD = 1
"""Exit code when the engine died."""


class _Listener(uvicorn.Server):
    """A uvicorn server that keeps listening while it drains, so that new clients still get a response."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self.server = server
        self.signals: socket.socket | None = None
        """Socket on which the numbers of signals arrive as bytes."""
        self.exit_code = 0
        self._drain: asyncio.Task[None] | None = None
        self._reload: asyncio.Task[None] | None = None
        self._asked_again = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Store the running event loop, and let it watch for signals."""
        self._loop = asyncio.get_running_loop()
        if self.signals is not None:
            self._loop.add_reader(self.signals, self._read_signals, self.signals)
        await super().startup(sockets)

    def _read_signals(self, signals: socket.socket) -> None:
        """Drain at the first signal, leave at the second; load the model anew at ``RELOAD``."""
        for number in signals.recv(64):
            if number == RELOAD:
                self._start_reloading()
                continue
            if self.server.is_draining:
                self.should_exit = self.force_exit = True
                return
            logger.info("%s: finishing %d inputs", signal.Signals(number).name, self.server.engine.in_flight)
            self.server.is_draining = True
            self._start_draining()

    def _start_reloading(self) -> None:
        """Load the model anew, and once more if the signal comes again meanwhile."""
        self._asked_again = self._reload is not None and not self._reload.done()
        if not self._asked_again and not self.server.is_draining:
            self._reload = asyncio.create_task(self._reloaded())

    async def _reloaded(self) -> None:
        try:
            await self.server.replace()
        except Overloaded:  # a request has it loaded already
            await asyncio.sleep(1.0)
            self._asked_again = True
        except DynamoError as error:
            logger.error("the model could not be loaded anew, and the one that was there goes on: %s", error)
        except Exception:
            logger.exception("the model could not be loaded anew, and the one that was there goes on")
        if self._asked_again and not self.server.is_draining:
            self._asked_again = False
            self._reload = asyncio.create_task(self._reloaded())

    def die(self) -> None:
        """Stop because the engine died. For a moment, new requests still get an error response."""
        self.exit_code = DEAD
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._start_draining)

    def _start_draining(self) -> None:
        self._drain = asyncio.create_task(self._drained())

    async def _drained(self) -> None:
        end = asyncio.get_running_loop().time() + self.server.config.drain_seconds
        while self.server.engine.in_flight and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)  # time to send the answers that are done
        self.should_exit = True


def serve(
    checkpoint: Path,
    read_config: Callable[[], DynamoConfig],
    insecure: bool = False,
    device: str | None = None,
) -> int:
    """Serve a checkpoint until SIGTERM or Ctrl-C.

    Args:
        checkpoint: its folder.
        read_config: gives its settings, again each time the model is loaded anew. Those of the server are read once.
        insecure: serve addresses that others can reach without a key.
        device: where the model runs, as of ``DynamoInference``.

    Returns:
        The exit code: 0, or 1 if the engine died.

    Raises:
        ConfigError: others can reach the address without a key, or the server cannot listen on it.
        DynamoError: the checkpoint cannot be loaded.
    """
    key, config = os.environ.get(KEY_VARIABLE) or None, read_config().serving
    check_exposure(config.host, key, insecure)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)

    def load() -> DynamoInference:
        return DynamoInference(checkpoint, read_config(), device)

    listening = _listen(config.host, config.port)
    try:
        listener: _Listener | None = None
        server = Server(load(), config, lambda: listener.die() if listener is not None else None, load)
        server.model.route("warm up")
        settings = listener_config(
            make_app(server, key), config.header_seconds, config.keep_alive_seconds, server_header=False,
            limit_concurrency=CONNECTIONS, timeout_graceful_shutdown=5, root_path=config.root_path,
            proxy_headers=True, forwarded_allow_ips=config.forwarded_allow_ips,
        )  # fmt: skip
        listener = _Listener(settings, server)
        host, port = listening.getsockname()[:2]
        try:
            listening.listen(CONNECTIONS)  # clients that connect from now on wait for the listener to start
        except OSError as error:  # another process has bound the same address and listened first
            raise _taken(host, port, error) from error
        shown = f"[{host}]" if ":" in host else host
        logger.info("serving %s on http://%s:%d", checkpoint, shown, port)
        _run(listener, server, listening)
        return listener.exit_code
    finally:
        listening.close()


def _run(listener: _Listener, server: Server, listening: socket.socket) -> None:
    """Run the engine in this thread, which must be the main thread, and the listener in another.

    OpenMP keeps the workers of the main thread in a busy loop between two operations. With more threads than cores,
    such as the workers of a second thread, it puts them to sleep instead, and a pass takes twice as long.
    """

    def listen() -> None:
        try:
            listener.run(sockets=[listening])
        except BaseException:
            listener.exit_code = DEAD
            raise
        finally:
            server.engine.stop(server.config.drain_seconds if listener.exit_code == 0 else 0.0)
            if not server.engine.has_ended:
                logger.error("a pass does not end; leaving without it")
                os._exit(listener.exit_code)  # nothing else ends a thread that is inside of a pass

    thread = threading.Thread(target=listen, name="listener")
    with _signals() as listener.signals:
        thread.start()
        server.engine.run()
        thread.join()


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Yield a socket on which SIGTERM, Ctrl-C and SIGHUP arrive as bytes, whichever thread receives them.

    Handlers run only in the main thread, and a signal to another thread does not wake it. Without the socket, it would
    notice the signal only at the next input.
    """
    reading, writing = socket.socketpair()
    for end in (reading, writing):
        end.setblocking(False)
    descriptor = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    watched = [sig for sig in (signal.SIGTERM, signal.SIGINT, RELOAD) if sig is not None]
    before = {sig: signal.signal(sig, lambda number, frame: None) for sig in watched}
    try:
        yield reading
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)
        signal.set_wakeup_fd(descriptor)
        reading.close()
        writing.close()


def _taken(host: str, port: int, error: OSError) -> ConfigError:
    return ConfigError(f"serving.host, serving.port: cannot listen on {host}:{port} ({error.strerror})")


def _listen(host: str, port: int) -> socket.socket:
    with ExitStack() as failing:
        try:
            family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            listening = failing.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
        except OSError as error:
            raise _taken(host, port, error) from error
        failing.pop_all()
    return listening
