"""The filter on user code's system calls, run here by a small interpreter of its BPF."""

from __future__ import annotations

import errno

import pytest

from belljar_server.guest import refusals

ALLOWED = refusals.ALLOW
REFUSED = refusals.FAIL | errno.EPERM
MACHINES = {"x86_64": (refusals.X86_64, 0), "aarch64": (refusals.AARCH64, 1)}
SIGCHLD = 17
CLONE_THREAD = 0x003D0F00
CLONE_NEWUSER = 0x10000000


def answer(machine: str, number: int, argument: int = 0, architecture: int | None = None) -> int:
    """What the filter says to a system call."""
    program = refusals.program(machine)
    words = {
        refusals.NUMBER: number,
        refusals.ARCHITECTURE: architecture or MACHINES[machine][0],
        refusals.FIRST_ARGUMENT: argument,
    }
    value = at = 0
    while True:
        code, yes, no, operand = program[at]
        at += 1
        match code:
            case refusals.LOAD:
                value = words[operand]
            case refusals.EQUAL:
                at += yes if value == operand else no
            case refusals.AT_LEAST:
                at += yes if value >= operand else no
            case refusals.ANY_BIT:
                at += yes if value & operand else no
            case refusals.RETURN:
                return operand


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_of_the_list_is_refused_and_no_other(machine: str) -> None:
    """All numbers that the kernel may know are asked."""
    column = MACHINES[machine][1]
    listed = {both[column] for both in refusals.REFUSED.values()}
    special = {refusals.CLONE3}
    assert {n for n in range(600) if answer(machine, n) == REFUSED} == listed
    assert {n for n in range(600) if answer(machine, n) != ALLOWED} == listed | special


@pytest.mark.parametrize("machine", MACHINES)
def test_clone_makes_processes_and_threads_but_no_namespace(machine: str) -> None:
    """Processes are told from namespaces by the flags of clone; clone3, which hides its flags, is not there."""
    clone = refusals.CLONE[MACHINES[machine][1]]
    assert answer(machine, clone, SIGCHLD) == answer(machine, clone, CLONE_THREAD) == ALLOWED
    for flag in (0x20000, 0x02000000, 0x04000000, 0x08000000, CLONE_NEWUSER, 0x20000000, 0x40000000):
        assert answer(machine, clone, flag | SIGCHLD) == REFUSED
    assert answer(machine, refusals.CLONE3) == refusals.FAIL | errno.ENOSYS


def test_other_calling_conventions_are_refused() -> None:
    """Numbers of 32-bit programs and of x32 mean other calls, so none is allowed."""
    assert answer("x86_64", 0, architecture=0x40000003) == REFUSED
    assert answer("x86_64", refusals.X32 | 1) == REFUSED
