"""What `keep_freed_memory` does to a process: each test has one of its own."""

import platform
import subprocess
import sys

import pytest

import dl_mamba

FREED = """
import resource, sys
from pathlib import Path
from threading import Thread
import numpy as np
import dl_mamba

def resident():  # MiB
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

if sys.argv[1] == "keep":
    assert dl_mamba.keep_freed_memory() is True
freed = []

def use():
    before = resident()
    numbers = np.ones(2**25)  # 256 MiB
    held = resident()
    assert held - before > 250
    del numbers
    freed.append(held - resident())

use()
thread = Thread(target=use)  # with a pool of its own, where it may
thread.start()
thread.join()
print(*freed)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc, and nothing is changed")
def test_freed_memory_stays_where_it_is_asked_for_and_goes_back_where_not():
    keep, give = (
        subprocess.run([sys.executable, "-c", FREED, what], capture_output=True, text=True, check=True).stdout
        for what in ("keep", "give")
    )
    assert max(map(int, keep.split())) < 16
    assert min(map(int, give.split())) > 240


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert dl_mamba.keep_freed_memory() is False
