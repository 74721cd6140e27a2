/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How long ago the router answered a connection's SYN: what its clock says now, less what the client echoes of
 * the SYN-ACK. To the backend's kernel, which has seen no handshake, that is the round trip (open.h).
 *
 * Reading the clock takes 31 ns, an eighth of the program. So each CPU uses a reading for as long as the kernel's
 * tick lasts, whose number costs nothing, and adds a tick: an age is never taken for less than it is. Only where a
 * tick would be much of it, for clients that are near, the clock is read anew.
 *
 * The client can make it any number; it is its own connection's timers that it spoils with it.
 */
#pragma once

#include "handshake.h"

#define ALIGNED_TIMESTAMPS bpf_htonl(0x0101080a) /* as every system lays the option out (RFC 7323, appendix A) */
#define MANY_TICKS	   8

const volatile __u32 tick_ms = 10; /* the longest that there is; the loader knows the kernel's */

struct reading { /* of the clock, on a CPU */
	__u64 tick;
	__u32 ms;
	__u32 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct reading);
} readings SEC(".maps");

/* Late by less than a tick. */
static __always_inline __u32 recent_ms(void)
{
	__u32 zero = 0;
	struct reading *reading = bpf_map_lookup_elem(&readings, &zero);
	__u64 tick = bpf_jiffies64();

	if (!reading)
		return bpf_ntohl(clock_ms());
	if (reading->tick != tick) {
		reading->tick = tick;
		reading->ms = bpf_ntohl(clock_ms());
	}
	return reading->ms;
}

/* In ms, rounded up: 1..AGE_LONG, or 0 if the segment does not say. Global: verified once. */
__noinline __u32 handshake_age(struct xdp_md *ctx, __u32 header_length)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__be32 *option = data + ETH_LENGTH + IP_LENGTH + TCP_LENGTH;
	__u32 age;

	if (header_length < TCP_LENGTH + 12 || (void *)(option + 3) > end || option[0] != ALIGNED_TIMESTAMPS)
		return 0;
	age = recent_ms() + tick_ms + 1 - bpf_ntohl(option[2]);
	if (age <= MANY_TICKS * tick_ms)
		age = bpf_ntohl(clock_ms()) + 1 - bpf_ntohl(option[2]);
	return age - 1 < AGE_LONG ? age : AGE_LONG;
}

/* `hints`: OUTER_ID_NEW, OUTER_ID_FIRST_HEAD, or neither. */
static __always_inline __u16 opening_id(struct xdp_md *ctx, const struct segment *segment, __u16 hints)
{
	return hints | outer_id_opening(handshake_age(ctx, segment->header_length));
}
