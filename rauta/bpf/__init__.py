"""BPF from Python: the system's libbpf.so.1 through ctypes, typed by the BTF of the objects.

Why ctypes, and not bcc or bpftool: the router and the agent are compiled ahead of time, the daemon has to stay small,
and libbpf 1.1 is what Debian 12 has. No header or compiler is needed at run time.

    layout    C types as Python values          maps      maps as typed tables
    btf       layouts from BTF                  programs  information, test runs, live frames
    objects   open, set up, load                xdp, tc   programs on interfaces
    ring      what programs put into ring buffers
    grace     waiting for programs that run
"""

from rauta.bpf._lib import possible_cpus
from rauta.bpf.btf import Btf
from rauta.bpf.grace import GracePeriod
from rauta.bpf.layout import Layout, Value, describe_difference, same_layout
from rauta.bpf.maps import BPF_ANY, BPF_EXIST, BPF_NOEXIST, Map, MapType
from rauta.bpf.objects import BpfObject, Rodata
from rauta.bpf.programs import (
    Program,
    ProgramInfo,
    TestRun,
    program_name,
    run_time_stats,
    skb_context,
    skb_fields,
    smallest_xdp,
    xdp_context,
)
from rauta.bpf.ring import RingBuffer
from rauta.bpf.tc import Direction, TcAttachment, attach_tc, attached_tc_id, has_clsact
from rauta.bpf.xdp import XdpAttachment, XdpMode, attach_xdp, attached_xdp_id
from rauta.errors import AttachError, BpfError, LoadError

__all__ = [
    "BPF_ANY",
    "BPF_EXIST",
    "BPF_NOEXIST",
    "AttachError",
    "BpfError",
    "BpfObject",
    "Btf",
    "Direction",
    "GracePeriod",
    "Layout",
    "LoadError",
    "Map",
    "MapType",
    "Program",
    "ProgramInfo",
    "RingBuffer",
    "Rodata",
    "TcAttachment",
    "TestRun",
    "Value",
    "XdpAttachment",
    "XdpMode",
    "attach_tc",
    "attach_xdp",
    "attached_tc_id",
    "attached_xdp_id",
    "describe_difference",
    "has_clsact",
    "possible_cpus",
    "program_name",
    "run_time_stats",
    "same_layout",
    "skb_context",
    "skb_fields",
    "smallest_xdp",
    "xdp_context",
]
