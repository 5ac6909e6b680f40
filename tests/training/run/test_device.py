"""What a run says of the machine it is on."""

import platform

import torch

from training.run.device import JEMALLOC, allocator_lines

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_an_allocator_is_named_once_where_it_matters(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    (line,) = allocator_lines(CPU, {})
    assert all(f"{name}={value}" in line for name, value in JEMALLOC.items())
    assert allocator_lines(CPU, JEMALLOC) == allocator_lines(GPU, {}) == []
    assert allocator_lines(CPU, {"LD_PRELOAD": "/usr/lib/libtcmalloc_minimal.so.4"}) == []
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert allocator_lines(CPU, {}) == []
