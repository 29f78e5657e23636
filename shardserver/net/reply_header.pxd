# cython: language_level=3
"""A reply's header (framing 3) from what its request's header held (framing 2)."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from shardserver.protocol.little_endian cimport write_u32

cdef enum:
    ECHO = 49  # bytes of a request header that its reply gives back: client, checksum, timestamp, request, operation
    HEADER = 256
    CLIENT = 128
    CHECKSUM = 144
    OPERATION = 176
    REPLY_SIZE = 48
    REPLY_COMMAND = 60
    REPLY_CHECKSUM = 128
    REPLY_CLIENT = 160
    REPLY_TIMESTAMP = 192
    REPLY_OPERATION = 208
    REPLY_STATUS = 216
    COMMAND_REPLY = 8


cdef inline void keep_echo(uint8_t* echo, const uint8_t* request) noexcept nogil:
    memcpy(echo, request + CLIENT, ECHO)


cdef inline void write_reply_header(uint8_t* at, const uint8_t* echo, size_t size) noexcept nogil:
    """Of a reply of `size` bytes with status 0."""
    memset(at, 0, HEADER)
    write_u32(at + REPLY_SIZE, <uint32_t>size)
    at[REPLY_COMMAND] = COMMAND_REPLY
    memcpy(at + REPLY_CHECKSUM, echo + CHECKSUM - CLIENT, 16)
    memcpy(at + REPLY_CLIENT, echo, 16)
    memcpy(at + REPLY_TIMESTAMP, echo + 32, 16)  # and the request's number
    at[REPLY_OPERATION] = echo[OPERATION - CLIENT]
