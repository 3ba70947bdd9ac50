"""System calls that user code is refused, by a seccomp filter on the worker and all that it starts.

gVisor implements each of them itself, inside the sandbox, so none would be a way out. But an ordinary user may make
a user namespace there, and in it mount and configure networks with every capability: much code that no program of
a code node needs, and where one who looks for a way out would look first. gVisor decides about an allowed call once
and remembers it, so the filter costs nothing measurable.
"""

import ctypes
import errno
import os
import struct

X86_64, AARCH64 = 0xC000003E, 0xC00000B7
"""AUDIT_ARCH_… of linux/audit.h."""
REFUSED = {
    # name: (number on x86_64, number on aarch64), from the kernel's syscall tables
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "unshare": (272, 97),
    "setns": (308, 268),
    "chroot": (161, 51),
    "pivot_root": (155, 41),
    "mount": (165, 40),
    "umount2": (166, 39),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
CLONE = (56, 220)
CLONE3 = 435
"""Its flags are in memory, where a filter cannot look; C libraries take clone when it is not there."""
NEW_NAMESPACES = 0x7E020000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET."""
X32 = 0x40000000

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16
"""Offsets in struct seccomp_data; of the argument the low half, on these little-endian machines."""
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2

Instruction = tuple[int, int, int, int]


def program(machine: str) -> list[Instruction]:
    """The filter as BPF: (code, jump if true, jump if false, operand). Raises KeyError for another machine."""
    architecture, column = {"x86_64": (X86_64, 0), "aarch64": (AARCH64, 1)}[machine]
    numbers = [both[column] for both in REFUSED.values()]
    flags, refuse, missing = 1, 4, 5  # where they are in `end`
    tests = [
        (EQUAL, CLONE3, missing),
        (EQUAL, CLONE[column], flags),
        (AT_LEAST, X32, refuse),
        *((EQUAL, number, refuse) for number in numbers),
    ]
    start: list[Instruction] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, FAIL | errno.EPERM),
        (LOAD, 0, 0, NUMBER),
    ]
    jumps = [(code, len(tests) - at + target - 1, 0, operand) for at, (code, operand, target) in enumerate(tests)]
    end: list[Instruction] = [
        (RETURN, 0, 0, ALLOW),
        (LOAD, 0, 0, FIRST_ARGUMENT),
        (ANY_BIT, 1, 0, NEW_NAMESPACES),
        (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, FAIL | errno.EPERM),
        (RETURN, 0, 0, FAIL | errno.ENOSYS),
    ]
    return [*start, *jumps, *end]


def install() -> None:
    """Puts the filter on this process, for good and for all that it starts. Raises OSError."""
    load(program(os.uname().machine))


def load(instructions: list[Instruction]) -> None:
    """Puts a filter on this process, beside those that it has. Raises OSError."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)
    program_ = ctypes.create_string_buffer(code, len(code))
    filter_ = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(program_))
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((PR_SET_NO_NEW_PRIVS, 1), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER)):
        argument = filter_ if option == PR_SET_SECCOMP else 0
        if libc.prctl(option, ctypes.c_ulong(value), argument, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"prctl {option}: {os.strerror(number)}")
