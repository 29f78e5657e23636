"""Bytes of real SDKs (tests/vectors): what our codecs decode equals the vector's list, and encodes to its bytes.

Nothing is compared as opaque bytes: batches, options and user headers are decoded to values and built again.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import xxhash

from shardserver.core import metadata as md
from shardserver.core import metadata_events as ev
from shardserver.core.handlers import consumer_number
from shardserver.core.metadata_commands import create_stream, create_topic
from shardserver.core.planning import PlanContext
from shardserver.protocol import frame as wire
from shardserver.protocol.batch import check_stored_batch, slice_batch, stamp_batch, verify_batch
from shardserver.protocol.batch_values import Batch, decode_batches
from shardserver.protocol.body import Body, Done, Empty
from shardserver.protocol.frame import FrameDecoder, ReplyHeader, RequestHeader
from shardserver.protocol.login import PROTOCOL_VERSION, LoginRequest
from shardserver.protocol.messages import PollReply, SendRequest
from shardserver.protocol.primitives import Reader
from shardserver.protocol.streams import CreateStreamRequest
from shardserver.protocol.table import OP_TRUNCATE_PARTITION, TABLE, find_row
from shardserver.protocol.topics import CreateTopicRequest
from tests.protocol import vector_parts, vector_rows

VECTORS = Path(__file__).parent.parent / "vectors"
FILES = {path.stem: json.loads(path.read_text()) for path in sorted(VECTORS.glob("*.json"))}
PAIRS = {name: vector for name, vector in FILES.items() if "request" in vector}
# Not pairs; each has tests of its own below.
OTHERS = {"algorithms", "batch-life", "websocket-session"}


def load(name: str) -> dict:
    return FILES[name]


def values(part: dict) -> dict[str, object]:
    return {row[2]: row[3] for row in part["decoded"]}


def frame_of(vector: dict) -> wire.Frame:
    decoder = FrameDecoder()
    decoder.feed(bytes.fromhex(vector["request"]["hex"]))
    frame = decoder.next_frame()
    assert frame is not None and decoder.buffered_bytes == 0
    return frame


def check_reply(vector: dict, frame: wire.Frame, body: bytes) -> None:
    """Whole reply bytes; op, commit and the moment of creation are the server's choice."""
    expected = bytearray.fromhex(vector["reply"]["hex"])
    moments = [row for row in vector["reply"]["decoded"] if str(row[2]).endswith("created_at")]
    for position, length, *_ in moments:
        first = moments[0][0]
        expected[position : position + length] = expected[first : first + length]
    expected[176:192] = bytes(16)
    assert wire.encode_reply_header(frame.header, len(body)) + body == expected


def told_rows(part: dict) -> list[tuple[int, str, object]]:
    return [(row[1], row[2], row[3]) for row in part["decoded"]]


def rebuilt(body: Body) -> bytes:
    """The bytes of body, its batches built from their values."""
    if isinstance(body, SendRequest):
        body = replace(body, batch=b"".join(one.encode() for one in decode_batches(body.batch)))
    if isinstance(body, PollReply):
        body = replace(body, batches=b"".join(one.encode() for one in decode_batches(body.batches)))
    return body.encode()


def read_request(raw: bytes) -> tuple[RequestHeader, Body, bytes]:
    """Header, body and the bytes after it that are to be ignored."""
    header, body = RequestHeader.decode(raw), memoryview(raw)[256:]
    row = find_row(header.operation, header.code)
    request = Empty() if row is None else row.request.decode(body)
    return header, request, bytes(body[len(request.encode()) :])


def reply_codec(header: ReplyHeader, code: int) -> tuple[type[Body], bool]:
    """The payload's codec, and whether a result section stands before it."""
    if header.operation == OP_TRUNCATE_PARTITION:
        return Done, True
    row = find_row(header.operation, code)
    if row is None:
        return Done, False
    return row.reply, row.has_result_section


def read_reply(raw: bytes, code: int) -> tuple[list, bytes]:
    """A reply's rows, and the bytes made from the decoded values."""
    header, body = wire.decode_answer(raw), memoryview(raw)[256:]
    if isinstance(header, wire.Eviction):
        assert not body
        return vector_parts.eviction_rows(header), header.encode()
    rows, made = vector_parts.reply_header_rows(header), header.encode()
    codec, framed = reply_codec(header, code)
    if framed and header.status == 0:
        errors, body = wire.split_result(body)
        rows += vector_parts.result_rows(errors)
        made += wire.encode_rejection(errors[0][1]) if errors else wire.RESULT_OK
        codec = Done if errors else codec
    if header.status != 0 or (not body and not framed):
        assert not body
        return rows, made
    payload = codec.decode(body)
    return rows + vector_rows.body_rows(payload), made + rebuilt(payload)


def test_every_vector_is_covered() -> None:
    assert set(FILES) == set(PAIRS) | OTHERS
    assert len(PAIRS) == 102


@pytest.mark.parametrize("name", PAIRS)
def test_a_request_is_the_vectors_values_and_bytes(name: str) -> None:
    vector = PAIRS[name]
    raw = bytes.fromhex(vector["request"]["hex"])
    header, request, trailing = read_request(raw)
    rows = vector_parts.request_header_rows(header) + vector_rows.body_rows(request)
    if trailing:
        rows.append((len(trailing), "trailing bytes (ignored by the server)", trailing.hex()))
    assert rows == told_rows(vector["request"])
    assert header.encode() + rebuilt(request) + trailing == raw
    assert (header.operation, header.code if header.operation == 2 else None) == (
        vector["operation"], vector["command_code"],
    )  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_a_reply_is_the_vectors_values_and_bytes(name: str) -> None:
    vector = PAIRS[name]
    raw = bytes.fromhex(vector["reply"]["hex"])
    rows, made = read_reply(raw, vector["command_code"] or 0)
    assert rows == told_rows(vector["reply"])
    assert made == raw


def test_an_empty_reply_means_missing_only_where_the_table_says_so() -> None:
    for name, vector in PAIRS.items():
        header = RequestHeader.decode(bytes.fromhex(vector["request"]["hex"]))
        row, reply = find_row(header.operation, header.code), values(vector["reply"])
        if row is None or reply["size"] != 256 or reply.get("status") != 0 or row.reply is Done:
            continue
        assert row.may_be_missing, name


def test_every_command_of_the_table_has_a_vector() -> None:
    headers = [RequestHeader.decode(bytes.fromhex(vector["request"]["hex"])) for vector in PAIRS.values()]
    seen = {find_row(header.operation, header.code) for header in headers}
    # Both logins have operation 1; vector 082 is the one with a token.
    missing = {row.command.name for row in TABLE.values() if row not in seen}
    assert missing == {"LOGIN_WITH_TOKEN"}


def test_all_requests_arrive_whole_byte_by_byte_and_one_after_the_other() -> None:
    frames = [bytes.fromhex(vector["request"]["hex"]) for vector in PAIRS.values()]
    decoder, got = FrameDecoder(), []
    for byte in b"".join(frames):
        decoder.feed(bytes([byte]))
        frame = decoder.next_frame()
        if frame is not None:
            got.append(frame.header.encode() + frame.body)
    assert got == frames and decoder.buffered_bytes == 0


def test_create_stream_answers_the_vectors_bytes() -> None:
    vector = load("006-create_stream")
    frame = frame_of(vector)
    created_at = int(str(values(vector["reply"])["stream.created_at"]))
    plan = create_stream(md.Metadata(), CreateStreamRequest.decode(frame.body), PlanContext(created_at))
    check_reply(vector, frame, wire.RESULT_OK + plan.reply)


def test_a_rejection_is_the_vectors_result_section() -> None:
    vector = load("007-create_stream_duplicate")
    check_reply(vector, frame_of(vector), wire.encode_rejection(1012))


def test_create_topic_with_every_option_answers_the_vectors_bytes() -> None:
    for name in ("013-create_topic_all_options", "014-create_topic_sentinels"):
        vector = load(name)
        frame, told = frame_of(vector), values(vector["reply"])
        metadata = md.Metadata()
        ev.apply(metadata, ev.StreamCreated(0, "orders", 1))
        created_at = int(str(told["topic.created_at"]))
        for number in range(int(str(told["topic.id"]))):
            ev.apply(metadata, ev.TopicCreated(0, number, f"other {number}", 1, {}, [], []))
        request = CreateTopicRequest.decode(frame.body)
        ev.apply(metadata, ev.StreamRenamed(0, str(request.stream)))
        reply = create_topic(metadata, request, PlanContext(created_at)).reply
        check_reply(vector, frame, wire.RESULT_OK + reply)


def test_a_login_decodes_and_the_protocol_gate_answers_the_vectors_eviction() -> None:
    told = values(load("004-login_register")["request"])
    request = LoginRequest.decode(frame_of(load("004-login_register")).body)
    assert request.protocol_version == PROTOCOL_VERSION
    assert request.username in told.values() and request.password in told.values()
    vector = load("088-login_incompatible_protocol")
    header = frame_of(vector).header
    gate = values(vector["reply"])
    lowest, highest = gate["server_protocol_version_min"], gate["server_protocol_version"]
    eviction = wire.encode_eviction(header, 14, int(str(lowest)), int(str(highest)))
    assert eviction == bytes.fromhex(vector["reply"]["hex"])


def test_a_batch_goes_through_its_life_as_the_vector_tells() -> None:
    life = load("batch-life")
    sent, stored = bytearray.fromhex(life["as_sent"]["hex"]), bytes.fromhex(life["as_stored"]["hex"])
    assert verify_batch(sent, 3) == 0
    assert verify_batch(sent, 2) == 3
    stage = life["as_stored"]
    stamp_batch(sent, stage["partition_id"], stage["base_offset"], stage["base_timestamp"])
    assert sent == stored
    assert check_stored_batch(stored, len(stored)) == len(stored)
    ours = [one for one in life["slices_served"] if one["base_offset"] == stage["base_offset"]]
    assert ours  # the others are of another batch
    for sliced in ours:
        deltas = [frame["offset_delta"] for frame in sliced["frames"]]
        assert slice_batch(stored, deltas[0], deltas[-1]) == bytes.fromhex(sliced["hex"])
    for position in (48, 40, 100, 264, len(stored) - 1):
        damaged = bytearray(stored)
        damaged[position] ^= 1
        assert check_stored_batch(damaged, len(damaged)) == 0, position


def test_the_stages_of_a_batch_decode_to_the_vectors_values() -> None:
    life = load("batch-life")
    for stage in (life["as_sent"], life["as_stored"], *life["slices_served"]):
        raw = bytes.fromhex(stage["hex"])
        batch = Batch.read(Reader(raw))
        for field in ("partition_id", "base_offset", "base_timestamp", "origin_timestamp", "batch_length"):
            assert getattr(batch, field) == stage[field], field
        assert len(batch.messages) == stage["message_count"]
        assert f"0x{batch.checksum:016x}" == stage["batch_checksum"]
        checked = bytes.fromhex(stage["batch_checksum_input_hex"])
        assert checked[:44] == raw[:40] + raw[48:52]
        assert xxhash.xxh3_64_intdigest(checked) == batch.checksum
        for message, frame in zip(batch.messages, stage["frames"], strict=True):
            rows = {row[1].removeprefix("m."): row[2] for row in vector_parts.part_rows(message, "m")}
            assert {key: rows[key] for key in frame if key in rows} == {key: frame[key] for key in frame if key in rows}
            first, last = frame["hashed_range"]
            assert xxhash.xxh3_64_intdigest(raw[first:last]) == message.checksum
        assert batch.encode() == raw


def hash_input(row: dict) -> bytes:
    if "input_hex" in row:
        return bytes.fromhex(row["input_hex"])
    if "input_utf8" in row:
        return row["input_utf8"].encode()
    assert row["input_rule"] == "byte[i] = (31*i + 7) mod 256"
    return bytes((31 * i + 7) % 256 for i in range(row["length"]))


def test_xxh3_gives_the_vectors_hashes() -> None:
    for row in load("algorithms")["xxh3_64"]:
        checksum = wire.request_checksum(hash_input(row))
        assert int.from_bytes(checksum, "little") == int(row["xxh3_64_seed0"], 16)
        assert checksum[:8].hex() == row["as_le_bytes"]


def test_xxh32_maps_keys_and_names_as_the_vectors_say() -> None:
    for row in load("algorithms")["xxh32"]:
        number = xxhash.xxh32_intdigest(hash_input(row))
        assert number == row["xxh32_seed0"]
        assert (number % 3, number % 10) == (row["mod_3"], row["mod_10"])
        if "input_utf8" in row:
            assert consumer_number(row["input_utf8"]) == number


def test_request_checksums_are_the_vectors() -> None:
    by_name = {vector["name"]: vector for vector in PAIRS.values()}
    for row in load("algorithms")["request_checksum"]:
        raw = bytes.fromhex(by_name[row["vector"]]["request"]["hex"])
        header, body = RequestHeader.decode(raw), raw[256:]
        assert (header.operation, len(body)) == (row["operation"], row["body_length"])
        assert wire.request_checksum(body) == header.request_checksum
        assert int.from_bytes(header.request_checksum, "little") == int(row["request_checksum"], 16)


def unmask(step: dict) -> bytes:
    """The payload of a WebSocket message that is one frame. WebSocket's own framing is not served yet."""
    raw, key = bytes.fromhex(step["hex"]), bytes.fromhex(step["mask_key"]) or bytes(4)
    payload = raw[step["header_length"] :]
    return bytes(byte ^ key[place % 4] for place, byte in enumerate(payload))


def test_the_frames_in_a_websocket_session_are_ours() -> None:
    """The upgrade and the framing around the payloads wait for the WebSocket listener."""
    steps = [step for step in load("websocket-session")["steps"] if step["kind"] == "websocket frame"]
    seen, code = [], 0
    for step in steps:
        raw = unmask(step)
        assert raw.hex() == step["unmasked_payload_hex"]
        if step["from"] == "client":
            header, request, trailing = read_request(raw)
            code, seen = header.code, [*seen, (header.operation, header.code)]
            assert header.encode() + rebuilt(request) == raw and not trailing
        else:
            assert read_reply(raw, code)[1] == raw
    assert len(steps) == 2 * len(seen)
    assert seen == [(2, 1), (2, 1), (128, 0)]
