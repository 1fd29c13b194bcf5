"""What a step frees goes back to the system, so that a process holds what it uses."""

import ctypes
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from tunemath.runner import allocator

# Large blocks with small ones between them that stay: what is held once the large ones are freed?
HELD = """
import json
import torch
from tunemath.runner.models import choose_device

def held():
    with open("/proc/self/statm") as counts:
        return int(counts.read().split()[1]) * 4096

choose_device()
freed = torch.ones(6 * 2**20)
del freed  # glibc's heap takes blocks of this size from now on
before, large, small = held(), [], []
for size in (3, 16, 5, 9, 12, 7) * 5:
    large.append(torch.ones(size * 2**18))
    small.append(torch.ones(2**14))
used = held() - before
large.clear()
print(json.dumps([used, held() - before]))
"""


def test_freed_blocks_are_given_back():
    if not (sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")):
        pytest.skip("the C library isn't glibc")
    if os.sysconf("SC_PAGE_SIZE") != 4096:
        pytest.skip("counts pages of 4 KiB")
    done = subprocess.run(
        [sys.executable, "-c", HELD],
        capture_output=True, text=True, timeout=120, check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    used, still = json.loads(done.stdout)
    assert used > 200 * 2**20
    assert still < 0.15 * used  # the blocks of 3 MiB are the heap's


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("MALLOC_MMAP_THRESHOLD_", "65536", []),
        ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=65536", []),
        ("GLIBC_TUNABLES", "glibc.malloc.check=1", [(-3, 2**22)]),
    ],
)
def test_the_users_threshold_stands(monkeypatch, name, value, told):
    calls = []
    library = SimpleNamespace(gnu_get_libc_version=None, mallopt=lambda *given: calls.append(given))
    monkeypatch.setattr(allocator, "ctypes", SimpleNamespace(CDLL=lambda name: library))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv(name, value)
    allocator.give_back_blocks.__wrapped__()
    assert calls == told
