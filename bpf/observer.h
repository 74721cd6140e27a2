/* SPDX-License-Identifier: GPL-2.0-only */
/* What each CPU keeps about its packets around their handling: in a map, because the stack has no room for it. */
#pragma once

#include "kernel.h"
#include "vlan.h"

struct outcome { /* what is known of a packet besides its verdict, once it has one */
	__u32 vip;	    /* id, or 0 */
	__u32 route;	    /* number of the route that a request in it has found, or NO_ROUTE_NUMBER */
	__u32 leaves;	    /* index of the interface to leave through, 0: as it came */
	struct tuple tuple; /* the ports of a fragment are 0 */
	__u32 backend;	    /* index of the one that it was to go to, or NO_BACKEND */
	__u32 seq;	    /* this and what follows is 0 of what is no well-formed TCP */
	__u16 length;	    /* of the payload, bytes */
	__u8 flags;
	__u8 reserved;
};

struct observer {
	struct outcome outcome; /* of this packet; first, which spares the program a register */
	struct tags tags;	/* of this packet, if it has any */
	__u32 until_timed; /* packets until the next one is timed, that one included; 0 before the first packet */
	__u32 zero;	   /* always 0, which the verifier does not know */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct observer);
} observers SEC(".maps");

static __always_inline struct observer *get_observer(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&observers, &zero);
}

/* A random distance of 1 to 2 * mean - 1. */
static __always_inline __u32 draw_gap(__u32 mean)
{
	if (mean == 1) /* the random number would cost as much as all the rest */
		return 1;
	return 1 + bpf_get_prandom_u32() % (2 * mean - 1);
}
