"""Mistakes that a fuzzer has to find: for each target a read past the end, and an error that no decoder may raise.

Each is one changed piece of the server's source, in a copy (trees.py). A read past the end in Cython reads memory that
is not ours, which AddressSanitizer sees. Python itself checks its reads: there a bound that is not checked gives a
value that is too short, or struct.error, which the target's properties refuse.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Plant:
    """path: from the root. old stands in it exactly once. shows: a pattern of what is printed when it was found."""

    path: str
    old: str
    new: str
    shows: str

    @property
    def is_compiled(self) -> bool:
        return self.path.endswith(".pyx")

    def planted(self) -> str:
        """Raises ValueError: the source has changed, and the plant must be placed anew."""
        source = (ROOT / self.path).read_text()
        if source.count(self.old) != 1:
            raise ValueError(f"{self.path} holds {self.old!r} {source.count(self.old)} times")
        return source.replace(self.old, self.new)


# How far behind the end a read lies is the input's: it may end in no red zone, and in no page either.
ASAN = "AddressSanitizer: ?(heap-buffer-overflow|SEGV|DEADLYSIGNAL)"
PRIMITIVES, TLV = "shardserver/protocol/primitives.py", "shardserver/protocol/tlv.py"
BATCH_VALUES, BATCH = "shardserver/protocol/batch_values.py", "shardserver/protocol/batch.pyx"
JOURNAL, RING = "shardserver/storage/journal_format.py", "shardserver/storage/journal_reader.py"
EVENTS, MSGPACK = "shardserver/core/metadata_events.py", "shardserver/core/msgpack.py"
SHORT = "    if len(raw) < _HEADER.size:\n"
NEVER_SHORT = "    if len(raw) < 0:\n"

PAST_THE_END = {
    "frames": Plant("shardserver/net/frame_reader.pyx", "or length < HEADER:", "or length < 100:", ASAN),
    "requests": Plant(PRIMITIVES, "if end > len(self._view):", "if end > len(self._view) + 3:", "rror"),
    "replies": Plant(PRIMITIVES, "if end > len(self._view):", "if end > len(self._view) + 1:", "rror"),
    "options": Plant(PRIMITIVES, "if end > len(self._view):", "if end > len(self._view) + 8:", "rror"),
    "batches": Plant(BATCH, "    if end - position < FRAME:\n", "    if end == position:\n", ASAN),
    "journal": Plant(JOURNAL, "header is None or header.length > len(raw):", "header is None:", "AssertionError"),
    "journal-ring": Plant(JOURNAL, "header is None or header.length > len(raw):", "header is None:", "AssertionError"),
    "segment": Plant(BATCH, "length > limit or length > <uint64_t>view.shape[0]:", "length > (1 << 20):", ASAN),
    "index": Plant("shardserver/storage/index.py", " or end > len(raw):", ":", "rror"),
    "offsets": Plant("shardserver/storage/offsets.py", " or end > len(raw) or", " or", "rror"),
    "metadata-log": Plant(
        "shardserver/storage/metadata_log.py", " or _HEADER.size + length > len(raw):", ":", "AssertionError"
    ),
    "metadata-payloads": Plant(EVENTS, "zip(uids, shards, strict=True)", "zip(uids, shards)", "AssertionError"),
}

FOREIGN = {
    "frames": Plant(
        "shardserver/protocol/frame.py",
        'raise ProtocolError("client id 0")',
        'raise KeyError("client id 0")',
        "KeyError",
    ),
    "requests": Plant(PRIMITIVES, "except UnicodeDecodeError", "except ZeroDivisionError", "UnicodeDecodeError"),
    "replies": Plant(TLV, "    except ValueError as", "    except ZeroDivisionError as", "ValueError|DecodeError"),
    "options": Plant(TLV, "    except ValueError as", "    except ZeroDivisionError as", "ValueError|DecodeError"),
    "batches": Plant(BATCH_VALUES, "raise RejectedError(Code.INVALID_MESSAGE_CHECKSUM,", "raise KeyError(", "KeyError"),
    "journal": Plant(
        JOURNAL,
        'raise CorruptionError(path, header.position + position, f"a record of',
        'raise KeyError(f"a record of',
        "KeyError",
    ),
    "journal-ring": Plant(
        RING, "    if header is None or name != fmt.file_name", "    if name != fmt.file_name", "AttributeError"
    ),
    "segment": Plant("shardserver/storage/segment.py", SHORT, NEVER_SHORT, "error: unpack"),
    "index": Plant("shardserver/storage/index.py", SHORT, NEVER_SHORT, "error: unpack"),
    "offsets": Plant("shardserver/storage/offsets.py", SHORT, NEVER_SHORT, "error: unpack"),
    "metadata-log": Plant(
        "shardserver/storage/metadata_log.py",
        'raise CorruptionError(path, position, f"revision {',
        'raise KeyError(f"revision {',
        "KeyError",
    ),
    "metadata-payloads": Plant(
        MSGPACK,
        "(UnicodeDecodeError, RecursionError) as error:\n        raise msgspec.DecodeError(",
        "msgspec.ValidationError as error:\n        raise KeyError(",
        "KeyError",
    ),
}
KINDS = {"read past the end": PAST_THE_END, "foreign exception": FOREIGN}
