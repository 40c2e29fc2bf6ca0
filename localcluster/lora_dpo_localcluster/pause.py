"""The sandbox image: a pod's first container, which does nothing but hold the pod's namespaces.

The program is a whole ELF file written by hand, since a machine that runs the cluster needn't have a compiler.
"""

from __future__ import annotations

import platform
import struct
from pathlib import Path

from lora_dpo_localcluster import errors, locks, oci, state

IMAGE = "localhost/pause:1"
_BASE = 0x400000
_HEADERS = 64 + 56
# Wait for a signal for ever: pause() where it exists, else ppoll(NULL, 0, NULL, NULL).
_CODE = {
    "x86_64": bytes.fromhex("b8220000000f05ebf7"),
    "aarch64": struct.pack("<7I", 0xD2800000, 0xD2800001, 0xD2800002, 0xD2800003, 0xD2800928, 0xD4000001, 0x17FFFFFA),
}
_MACHINE = {"x86_64": 62, "aarch64": 183}


def program(machine: str) -> bytes:
    """An executable for Linux that waits for ever.

    Args:
        machine: `x86_64` or `aarch64`.

    Raises:
        MissingProgramError: another machine.
    """
    if machine not in _CODE:
        raise errors.MissingProgramError(f"The local cluster runs on x86_64 and aarch64, not on {machine}.")
    code = _CODE[machine]
    size = _HEADERS + len(code)
    header = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, _MACHINE[machine], 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + code


def image_archive() -> Path:
    """The image as an archive in the cache folder, made on the first call."""
    target = state.cache_folder() / "images" / f"pause-{oci.architecture()}.tar"
    with locks.locked(target.with_suffix(".lock")):
        if not target.is_file():
            part = target.with_suffix(".part")
            oci.write_archive(part, IMAGE, [("pause", program(platform.machine()))], ["/pause"])
            part.rename(target)
    return target
