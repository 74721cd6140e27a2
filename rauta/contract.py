"""The numbers of bpf/contract.h that are needed before any object is loaded.

Checking a configuration must work without root and without a compiled program, so these few cannot come from BTF.
tests/unit/test_tables.py compares each one with the header. The layouts of keys and values are not here: they do come
from BTF.
"""

from enum import IntEnum

ROUTER_MSS = 1416  # bytes of data in a client's largest segment; 12 of them are timestamps, if it has these
MAX_HOST = 256  # bytes of a host name, without the port
MAX_PATH = 256  # bytes of a path, without the query
MAX_PREFIX_DEPTH = 30  # segments of a prefix route
MAX_WILDCARD_LABELS = 30  # of a wildcard host, behind "*."
SHAPE_EXACT = 1 << 31  # of a host's shapes: it has exact paths
FLOW_WAYS = 8  # entries of a set in the flow table
MAX_BACKENDS = 4096
MAX_CLUSTERS = 1024
MEMBER_WORDS = 64  # of a cluster in the map members
FALLBACK_BACKEND = 4095  # the index of the fallback among the backends
MAX_ROUTES = 4194303  # of all VIPs
ROUTE_BRIEF_BITS = 22  # of a route's fingerprint, in orders
ROUTE_CLUSTER_BITS = 10  # of an entry of `struct path`: the cluster's index, below the route's number + 1
MAX_VIPS = 64
VERDICT_AGENT_DROP = 144  # below, an agent's verdict passes the packet to the kernel; from here on, it is dropped
VERDICT_AGENT_AGAIN = 176  # goes round once more
VERDICT_AGENT_OUT = 184  # is sent out again
VERDICT_AGENT_EGRESS = 192  # leaves the host
MAGLEV_SLOTS = 65537
MAGLEV_PACKED = 16385  # map entries of SLOTS_PER_ENTRY slots each
SLOTS_PER_ENTRY = 4
LATENCY_FIRST_OCTAVE = 4  # of the latency histogram's buckets, four an octave: from 16 ns
LATENCY_OCTAVES = 20
LATENCY_BUCKETS = 80
FIRST_BYTE_UNIT = 64000  # ns: the first bound of the times to an answer's first byte, which double
FIRST_BYTE_BUCKETS = 21
DIGEST_KEYS = 514  # of the digests of request heads
TRACES_UNDER_WAY = 2048  # requests that an agent waits for the answers of

ROUTER_WINDOW = 29200  # bytes that a SYN-ACK lets the client send
PATH_MTU = 1500  # bytes; no encapsulated packet is longer
SHIM_LIFETIME = 60  # seconds that an order to hand a connection over is good for
ASK_VERSION = 1  # of what routers ask agents
NO_BACKEND = 0xFFFF  # the slot of an empty cluster
BACKEND_LOCAL = 0xFFFFFFFF  # the interface of the fallback: this very host


class Method(IntEnum):
    """`enum method`: the index into `struct path`'s clusters."""

    ANY = 0
    GET = 1
    HEAD = 2
    POST = 3
    PUT = 4
    DELETE = 5
    CONNECT = 6
    OPTIONS = 7
    TRACE = 8
    PATCH = 9


class HostKind(IntEnum):
    """`enum host_kind`."""

    EXACT = 0
    WILDCARD = 1


class PathKind(IntEnum):
    """`enum path_kind`."""

    EXACT = 0
    PREFIX = 1


class NoRouteAnswer(IntEnum):
    """`enum no_route_answer`: what a request gets that no route names."""

    NOT_FOUND = 0
    RESET = 1
    FALLBACK = 2
