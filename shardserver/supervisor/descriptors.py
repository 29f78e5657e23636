"""The descriptors that a shard is given, and who they are for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple


class OwnDescriptors(NamedTuple):
    """arena: read and write. doorbell: eventfd. inbox: read end, SOCK_SEQPACKET. All are the receiver's to close."""

    arena: int
    doorbell: int
    inbox: int


class PeerDescriptors(NamedTuple):
    """ring_to: we push, the peer takes. ring_from: the other way. arena: read-only. inbox: write end."""

    ring_to: int
    ring_from: int
    arena: int
    doorbell: int
    inbox: int


def close_all(descriptors: Iterable[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def copies(descriptors: Iterable[int]) -> list[int]:
    """By dup(2), all or none. Raises OSError."""
    made: list[int] = []
    try:
        for one in descriptors:
            made.append(os.dup(one))
    except OSError:
        close_all(made)
        raise
    return made
