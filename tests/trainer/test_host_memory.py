"""What was freed is the system's again. Each case has a process of its own: the setting lasts as long as one."""

from __future__ import annotations

import subprocess
import sys

MIB = 1 << 20

PROGRAM = """
import ctypes, pathlib, sys
from lora_dpo_trainer import host_memory

C = ctypes.CDLL(None)
C.malloc.restype, C.malloc.argtypes, C.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096

def filled(size):
    block = C.malloc(size)
    ctypes.memset(block, 1, size)
    return block

if sys.argv[1] == "mapped":
    host_memory.map_large_blocks()
C.free(filled(30 << 20))  # from here on glibc takes blocks below 30 MiB from its heap
before = resident()
blocks = [(filled(int(sys.argv[2])), filled(40_000)) for _ in range(int(sys.argv[3]))]
for large, _ in blocks:  # the small ones stay, and hold up the end of the heap
    C.free(large)
if sys.argv[1] == "trimmed":
    host_memory.give_back()
print(resident() - before)
"""


def _kept(how: str, size: int, count: int) -> int:
    command = [sys.executable, "-c", PROGRAM, how, str(size), str(count)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_large_blocks_go_back_though_small_ones_lie_between() -> None:
    """Eight blocks of 8 MiB, as arrays of an adapter are."""
    assert _kept("mapped", 8 * MIB, 8) < 2 * MIB
    assert _kept("untouched", 8 * MIB, 8) > 50 * MIB, "the case must be one where glibc keeps them"


def test_small_blocks_go_back_when_asked() -> None:
    """What is below the size from which blocks are mappings."""
    assert _kept("trimmed", MIB // 4, 256) < 16 * MIB
    assert _kept("untouched", MIB // 4, 256) > 50 * MIB
