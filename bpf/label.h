/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The route of a request, told to the backend's agent, which counts by route (figures.h): eight bytes between the outer
 * IPv4 header and the packet. An order says less of it, where nothing else stands: the request in it may be as long as
 * ROUTER_MSS allows, and has no room for more than the shim.
 *
 * It is for figures alone, and decides nothing: so it has no tag, and what has no room for it goes without.
 */
#pragma once

#include "packet.h"

const volatile __u32 labels; /* not 0: requests carry labels */

#define LABEL_LENGTH ((__u32)sizeof(struct label))

struct { /* by the route's number */
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* the loader sets how many routes there may be, if the router labels */
	__type(key, __u32);
	__type(value, struct told_route);
} told_routes SEC(".maps");

/* What the flow's entry keeps of the newest request's route, for its retransmissions. */
static __always_inline __u32 kept_route(const struct segment *segment)
{
	return labels ? segment->route : route_cluster(segment->route);
}

/* Bytes of the label of what leaves for a backend; 0: it has none. What the fallback gets has found no route. */
static __always_inline __u32 label_length(const struct segment *segment)
{
	return labels && segment->route >> ROUTE_CLUSTER_BITS &&
			       segment->ip_length + IP_LENGTH + LABEL_LENGTH <= PATH_MTU
		       ? LABEL_LENGTH
		       : 0;
}

static __always_inline void write_label(struct label *label, const struct segment *segment)
{
	__u32 number = route_number(segment->route);
	const struct told_route *told = bpf_map_lookup_elem(&told_routes, &number);

	label->version = SHIM_VERSION;
	label->kind = SHIM_LABEL;
	label->high = told ? told->high : 0;
	label->low = told ? told->low : 0;
}

/* What an order says instead, of the route that the flow's entry keeps. */
static __always_inline __u32 route_brief(__u32 kept)
{
	__u32 number = route_number(kept);
	const struct told_route *told = labels ? bpf_map_lookup_elem(&told_routes, &number) : NULL;

	return told && told->brief ? told->low & ((1 << ROUTE_BRIEF_BITS) - 1) : 0;
}

/* Does a label follow the outer header? For a router that writes none the question is not there. */
static __always_inline int is_labelled(const struct iphdr *outer, const void *end)
{
	const struct label *label = (const void *)(outer + 1);

	return labels && outer->protocol == SHIM_PROTOCOL && (const void *)(label + 1) <= end &&
	       label->version == SHIM_VERSION && label->kind == SHIM_LABEL;
}
