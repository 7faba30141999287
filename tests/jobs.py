"""Runs functions as jobs of several processes on this machine, as a launcher would."""

import multiprocessing
import os
import socket
import traceback

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["dynamo_mtl.training.run", "dynamo_mtl.evaluation.benchmark"])


def run_job(count, function, *arguments, seconds=180):
    """Call ``function(*arguments)`` in ``count`` connected processes. Returns what each gave, in their order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes, processes = [], []
    for rank in range(count):
        receiving, sending = context.Pipe(duplex=False)
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        process = context.Process(target=_run, args=(sending, place, function, arguments), daemon=True)
        process.start()
        sending.close()
        pipes.append(receiving)
        processes.append(process)
    outcomes = []
    for pipe in pipes:
        assert pipe.poll(seconds), "a process of the job hangs"
        try:
            outcomes.append(pipe.recv())
        except EOFError:
            outcomes.append(("died", None))
    for process in processes:
        process.join(10)
        process.kill()
    broken = [text for kind, text in outcomes if kind == "raised"]
    assert not broken, "\n".join(broken)
    return [value for _, value in outcomes]


def _run(pipe, place, function, arguments):
    os.environ.update({key: str(value) for key, value in place.items()})
    import torch

    torch.set_num_threads(1)
    try:
        pipe.send(("done", function(*arguments)))
    except BaseException:
        pipe.send(("raised", traceback.format_exc()))
