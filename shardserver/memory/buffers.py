"""What functions that take bytes accept, blocks of an arena among them. A Block has no slices; a view of it has."""

from __future__ import annotations

from typing import TypeAlias

from shardserver.memory.arena import Block

WritableBuffer: TypeAlias = bytearray | memoryview | Block
Buffer: TypeAlias = bytes | WritableBuffer
