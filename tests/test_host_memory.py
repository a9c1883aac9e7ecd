"""Memory that a layer frees is there for the next one."""

import os
import platform
import subprocess
import sys

import pytest

from modeling_romebert import host_memory

# What layers need between their steps, for batches of ever other sizes; then what the allocator had to ask the system for, before
# and after. The allocator itself is asked: not every machine counts the pages of a process.
LAYERS = """
import ctypes, random, torch
from modeling_romebert.host_memory import keep_freed_memory

class Mallinfo(ctypes.Structure):
    fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_int) for name in fields.split()]

mallinfo = ctypes.CDLL(None).mallinfo
mallinfo.restype = Mallinfo
asked = has = 0  # bytes

def ones(*shape):
    tensor = torch.ones(shape)
    look()
    return tensor

def look():
    global asked, has
    info, had = mallinfo(), has
    has = info.arena + info.hblkhd
    asked += max(0, has - had)

def layers(rows):
    hidden = ones(rows, 384)
    for _ in range(2):
        queries, keys, values, mixed = (ones(rows, 384) for _ in range(4))
        del queries, keys, values
        look()
        hidden, wide = hidden + mixed, ones(rows, 1536)
        active = ones(rows, 1536)
        del wide
        look()
        back = ones(rows, 384)
        del active
        look()
        hidden = hidden + back

def asked_by_batches():
    before = asked
    for _ in range(20):
        layers(random.randrange(500, 1024))
    return asked - before

torch.set_num_threads(1)
random.seed(0)
gaps = [torch.ones(25_000) for _ in range(200)]  # fill what importing left free, so that layers lie at the end of the heap
asked_by_batches()
print(asked_by_batches())
keep_freed_memory()
asked_by_batches()
print(asked_by_batches())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about the allocator of glibc")
def test_layers_do_not_ask_for_memory_again_and_again():
    # In a process of its own: the allocator remembers what others have freed, and can be set from outside.
    outside = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
    output = subprocess.check_output([sys.executable, "-c", LAYERS], text=True, env=environment)
    before, after = map(int, output.split())
    # Before, it is hundreds of MiB; none where something small stays on the end of the heap, which its layout decides.
    assert after <= 0.1 * before


def test_without_glibc_nothing_is_given_back(monkeypatch):
    def no_library(name):
        raise OSError("no such library")

    monkeypatch.setattr(host_memory.ctypes, "CDLL", no_library)
    host_memory._malloc_trim.cache_clear()
    host_memory.give_back_memory()
    assert host_memory._malloc_trim() is None
    host_memory._malloc_trim.cache_clear()
