"""Routes by the bytes that name a partition: looked up with the bytes of a frame, without an object made of them.

No twin: a dict from bytes to routes, and its tests compare it with one.
"""

from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from shardserver.memory.prefetch cimport prefetch_bytes

cdef extern from "xxhash.h" nogil:
    uint64_t XXH3_64bits(const void *data, size_t length)

cdef extern from "stdlib.h" nogil:
    void* aligned_alloc(size_t alignment, size_t size)

cdef enum:
    CACHE_LINE = 64
    ROUTE_BYTES = 128  # of a route's object, its reference count first

assert sizeof(Known) == CACHE_LINE


cdef inline uint8_t* key_of(Known* place) noexcept nogil:
    if place.length <= NEAR:
        return place.key.near
    return place.key.far


cdef Known* free_places(uint64_t room) except NULL:
    cdef Known* made = <Known*>aligned_alloc(CACHE_LINE, room * sizeof(Known))
    if made == NULL:
        raise MemoryError
    memset(made, 0, room * sizeof(Known))
    return made


cdef class RouteTable:
    """Open addressing, at most half full. count: routes in it."""

    def __cinit__(self):
        self.grow()

    def __dealloc__(self):
        self.drop()

    def __len__(self):
        return self.count

    def __setitem__(self, bytes key not None, route not None):
        self.add(key, len(key), route)

    def get(self, bytes key not None):
        """None: it is not in here."""
        return self.find(key, len(key))

    def clear(self):
        """Forget all."""
        self.drop()
        self.grow()

    cdef Known* place_of(self, const uint8_t* key, size_t length) noexcept:
        """Where it is, or would be."""
        cdef uint64_t hash = XXH3_64bits(key, length), number = hash
        cdef Known* place
        while True:
            place = self._places + (number & (self._room - 1))
            if place.route == NULL:
                place.hash = hash
                return place
            if place.hash == hash and place.length == length:
                prefetch_bytes(place.route, ROUTE_BYTES)
                if memcmp(key_of(place), key, length) == 0:
                    return place
            number += 1

    cdef void expect(self, const uint8_t* key, size_t length) noexcept:
        """It will be looked for soon."""
        prefetch_bytes(self._places + (XXH3_64bits(key, length) & (self._room - 1)), sizeof(Known))

    cdef object find(self, const uint8_t* key, size_t length):
        cdef Known* place = self.place_of(key, length)
        return None if place.route == NULL else <object>place.route

    cdef int add(self, const uint8_t* key, size_t length, route) except -1:
        cdef Known* place
        if 2 * (self.count + 1) > self._room:
            self.grow()
        place = self.place_of(key, length)
        Py_INCREF(route)
        if place.route != NULL:
            former = <object>place.route
            place.route = <PyObject*>route
            Py_DECREF(former)
            return 0
        if length > NEAR:
            place.key.far = <uint8_t*>malloc(length)
            if place.key.far == NULL:
                Py_DECREF(route)
                raise MemoryError
        place.length, place.route = length, <PyObject*>route
        memcpy(key_of(place), key, length)
        self.count += 1
        return 0

    cdef int grow(self) except -1:
        cdef Known* former = self._places
        cdef uint64_t number, room = self._room
        cdef Known* grown = free_places(max(2 * room, <uint64_t>64))
        self._places, self._room = grown, max(2 * room, <uint64_t>64)
        for number in range(room):
            if former[number].route != NULL:
                self.place_of(key_of(former + number), former[number].length)[0] = former[number]
        free(former)
        return 0

    cdef int drop(self) except -1:
        cdef Known* places = self._places
        cdef uint64_t number, room = self._room
        self._places, self._room, self.count = NULL, 0, 0
        for number in range(room):
            if places[number].route != NULL:
                if places[number].length > NEAR:
                    free(places[number].key.far)
                Py_DECREF(<object>places[number].route)
        free(places)
        return 0
