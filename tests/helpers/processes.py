"""Processes of their own for the tests, forked from one that has only imported: a start takes no time."""

import gc
import multiprocessing
import os
import socket

import torch

# Two processes of a script, as `python -m ...`.
LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    # `--cpu --num_processes 2` would start one process and say nothing.
    "accelerate": [
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ],
}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["modeling_romebert", "transformers.trainer"])


def environments(processes: int) -> list[dict[str, str]]:
    """What a launcher sets for each process of a group; nothing for a single one."""
    if processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def enter(environment: dict[str, str]) -> None:
    """The first thing that such a process does. What was imported need not be looked at by each collection of
    garbage.
    """
    os.environ |= environment
    torch.set_num_threads(1)
    gc.freeze()


def leave_group() -> None:
    """The last thing that one process of several does: gloo's threads may abort an interpreter that ends
    while they run.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
