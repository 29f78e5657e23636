from shardserver.memory.arena_python import *  # noqa
