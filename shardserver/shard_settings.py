"""What the parts of a shard are given of the configuration."""

from __future__ import annotations

from shardserver.amounts import size_bytes, time_us
from shardserver.config import Config
from shardserver.net.listener import NetLimits
from shardserver.protocol.options import TopicDefaults
from shardserver.storage.settings import LogSettings, RetentionSettings


def log_settings(config: Config) -> LogSettings:
    return LogSettings(
        journal_file_bytes=config.journal.file_bytes,
        journal_files=config.journal.files,
        max_write_bytes=config.journal.max_write_bytes,
        direct_bytes=config.journal.direct_bytes,
        tail_bytes=config.storage.tail_bytes,
        read_bytes=config.storage.read_bytes,
        read_ahead_bytes=config.storage.read_ahead_bytes,
        open_segments=config.storage.open_segments,
        skip_damaged=config.storage.damaged == "skip",
        retention=retention_settings(config),
    )


def retention_settings(config: Config) -> RetentionSettings:
    wait = config.retention.wait_for_consumers
    return RetentionSettings(time_us(config.retention.roll_after), None if wait == "off" else time_us(wait))


def topic_defaults(config: Config) -> TopicDefaults:
    return TopicDefaults(time_us(config.retention.message_expiry), size_bytes(config.retention.max_topic_size))


def net_limits(config: Config) -> NetLimits:
    net = config.net
    return NetLimits(
        net.max_frame_bytes,
        net.in_flight_bytes_per_connection,
        net.in_flight_bytes_per_shard,
        net.max_connections,
        net.first_frame_timeout_s,
        net.handover_requests,
    )
