"""Memory stays with the process while training, and goes back afterwards."""

from __future__ import annotations

import platform
import resource

import pytest
import torch

from nalanda.train.allocator import retained


def faults_of_a_step() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(8 * 2**20)  # 32 MiB: 8,192 pages, fewer where pages are larger
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_a_freed_block_is_used_again_without_page_faults() -> None:
    if faults_of_a_step() < 1000:
        pytest.skip("large pages: a new block costs few faults here")
    with retained():
        # A few blocks may come from holes that nothing was written to yet.
        assert min(faults_of_a_step() for _ in range(20)) < 100
    assert faults_of_a_step() > 1000


def test_an_error_passes_through() -> None:
    with pytest.raises(KeyError), retained():
        raise KeyError
