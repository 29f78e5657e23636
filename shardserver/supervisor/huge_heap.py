"""Huge pages for the heap of a shard: glibc asks the kernel for them, when its environment says so as it starts.

What a send touches of its partition lies on pages that no other partition uses. With thousands of them each is looked
up in page tables, which costs a virtual machine 0.1 us a page (docs/performance.md, "Many partitions").
"""

from __future__ import annotations

VARIABLE = "GLIBC_TUNABLES"  # glibc 2.35; others take no notice
NAME, VALUE = "glibc.malloc.hugetlb", "1"


def with_huge_heap(tunables: str | None) -> str:
    """The variable's value, with this one added, unless it is there."""
    given = [one for one in (tunables or "").split(":") if one]
    if not any(one.split("=")[0] == NAME for one in given):
        given.append(f"{NAME}={VALUE}")
    return ":".join(given)
