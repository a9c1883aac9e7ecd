"""Memory that a layer frees is there for the next one."""

import platform
import subprocess
import sys

import pytest

from modeling_romebert import host_memory

# What layers need between their steps, for batches of ever other sizes; then how many pages had to be asked for, before and after.
LAYERS = """
import random, resource, torch
from modeling_romebert.host_memory import keep_freed_memory

def layers(rows):
    hidden = torch.ones(rows, 384)
    for _ in range(2):
        queries, keys, values, mixed = (torch.ones(rows, 384) for _ in range(4))
        del queries, keys, values
        hidden, wide = hidden + mixed, torch.ones(rows, 1536)
        active = torch.ones(rows, 1536)
        del wide
        back = torch.ones(rows, 384)
        del active
        hidden = hidden + back

def pages_of_batches():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        layers(random.randrange(500, 1024))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
random.seed(0)
pages_of_batches()
print(pages_of_batches())
keep_freed_memory()
pages_of_batches()
print(pages_of_batches())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about the allocator of glibc")
def test_layers_do_not_ask_for_memory_again_and_again():
    # In a process of its own: the allocator remembers what others have freed.
    before, after = map(int, subprocess.check_output([sys.executable, "-c", LAYERS], text=True).split())
    assert after < 0.1 * before


def test_without_glibc_nothing_is_given_back(monkeypatch):
    def no_library(name):
        raise OSError("no such library")

    monkeypatch.setattr(host_memory.ctypes, "CDLL", no_library)
    host_memory._malloc_trim.cache_clear()
    host_memory.give_back_memory()
    assert host_memory._malloc_trim() is None
    host_memory._malloc_trim.cache_clear()
