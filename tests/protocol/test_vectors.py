"""Bytes of real SDKs (tests/vectors): what is decoded equals the vector's values, and our replies are its bytes."""

import json
from pathlib import Path

from shardserver.core import metadata as md
from shardserver.core.metadata_commands import create_stream, create_topic
from shardserver.protocol import frame as wire
from shardserver.protocol.batch import check_stored_batch, slice_batch, stamp_batch, verify_batch
from shardserver.protocol.frame import FrameDecoder
from shardserver.protocol.login import PROTOCOL_VERSION, LoginRequest
from shardserver.protocol.streams import CreateStreamRequest
from shardserver.protocol.topics import CreateTopicRequest

VECTORS = Path(__file__).parent.parent / "vectors"


def load(name: str) -> dict:
    return json.loads((VECTORS / f"{name}.json").read_text())


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


def test_a_request_header_decodes_to_the_vectors_values() -> None:
    vector = load("006-create_stream")
    header, told = frame_of(vector).header, values(vector["request"])
    assert (header.size, header.operation, header.request, header.session) == (
        told["size"], told["operation"], told["request"], told["session"],
    )  # fmt: skip
    assert int.from_bytes(header.client, "little") == int(str(told["client"]), 16)
    assert int.from_bytes(header.request_checksum, "little") == int(str(told["request_checksum"]), 16)


def test_create_stream_answers_the_vectors_bytes() -> None:
    vector = load("006-create_stream")
    frame = frame_of(vector)
    created_at = int(str(values(vector["reply"])["stream.created_at"]))
    plan = create_stream(md.Metadata(), CreateStreamRequest.decode(frame.body), created_at)
    check_reply(vector, frame, wire.RESULT_OK + plan.reply)


def test_a_rejection_is_the_vectors_result_section() -> None:
    vector = load("007-create_stream_duplicate")
    check_reply(vector, frame_of(vector), wire.encode_rejection(1012))


def test_create_topic_with_every_option_answers_the_vectors_bytes() -> None:
    for name in ("013-create_topic_all_options", "014-create_topic_sentinels"):
        vector = load(name)
        frame, told = frame_of(vector), values(vector["reply"])
        metadata = md.Metadata()
        md.apply(metadata, md.StreamCreated(0, "orders", 1))
        metadata.streams[0].name = "orders-eu"
        created_at = int(str(told["topic.created_at"]))
        for number in range(int(str(told["topic.id"]))):
            md.apply(metadata, md.TopicCreated(0, number, f"other {number}", 1, {}, []))
        stream = wire_stream(frame)
        metadata.streams[0].name = stream if isinstance(stream, str) else metadata.streams[0].name
        reply = create_topic(metadata, CreateTopicRequest.decode(frame.body), created_at).reply
        check_reply(vector, frame, wire.RESULT_OK + reply)


def wire_stream(frame: wire.Frame) -> int | str:
    from shardserver.protocol.primitives import Reader

    return Reader(frame.body).identifier()


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
