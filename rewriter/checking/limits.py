"""How much time and memory the child that runs the models may take, and how it is held to that.

Invariant: `restrict` is called in the child after the engine is imported and before any byte of a model is parsed, so
the budget is what the models cost, not what Python costs; what the system cannot enforce is said, never ignored.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, field

_GIB = 1 << 30


def _three_quarters() -> int:
    """Three quarters of the machine's memory, or 8 GiB where the system does not say how much it has."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 8 * _GIB
    return max(total * 3 // 4, _GIB)


@dataclass(frozen=True, slots=True)
class Limits:
    """`seconds` of wall time for the whole comparison, `memory` bytes for the models, their inputs and outputs."""

    seconds: float = 900.0
    memory: int = field(default_factory=_three_quarters)


def restrict(limits: Limits) -> str:
    """Hold this process to `limits`; returns what could not be enforced, empty if all of it is."""
    if sys.platform == "win32":
        return "no memory limit on this system"
    import resource

    if sys.platform == "linux":
        _die_with_parent()
    _lower(resource.RLIMIT_CORE, 0)  # a core dump of a large model would fill the user's folder
    # Only a backstop for a child whose parent was killed outright: the parent measures wall time.
    _lower(resource.RLIMIT_CPU, int(limits.seconds * (os.cpu_count() or 1)) + 60)
    if sys.platform != "linux":
        return "no memory limit on this system"
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    _lower(resource.RLIMIT_AS, used + limits.memory)
    return ""


def _die_with_parent() -> None:
    """A parent that is killed outright cannot end us; on Linux the kernel does it."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, int(signal.SIGKILL))


def _lower(which: int, value: int) -> None:
    """Set both limits to `value` unless a lower hard limit is in force already."""
    import resource

    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def peak_bytes() -> int:
    """The most memory this process has held; 0 where the system does not count it."""
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
