/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The route of a request, told to the backend's agent, which counts by route (figures.h): eight bytes between the outer
 * IPv4 header and the packet. An order says it in the outer identification, where nothing else stands: the request in it
 * may be as long as ROUTER_MSS allows, and has no room for more than the shim.
 *
 * What is said is no number of this router's, which its history gives it, but a tag that follows from the configuration
 * alone (rauta.ids.route_tags): agents know it without having been there from the beginning.
 *
 * It is for figures alone, and decides nothing: so it has no tag, and what has no room for it goes without.
 */
#pragma once

#include "packet.h"

const volatile __u32 labels; /* not 0: requests carry labels */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* the loader sets how many routes there are */
	__type(key, __u32);
	__type(value, __u32);
} route_tags SEC(".maps"); /* by the route's number: its tag, from 1; 0: it has none */

#define LABEL_LENGTH ((__u32)sizeof(struct label))

/* What the flow's entry keeps of the newest request's route, for its retransmissions. */
static __always_inline __u32 kept_route(const struct segment *segment)
{
	return labels ? segment->route : route_cluster(segment->route);
}

/* Of a route's word in struct path; 0: of none that is known. */
static __always_inline __u32 route_tag(__u32 route)
{
	__u32 number = route_number(route), *tag = bpf_map_lookup_elem(&route_tags, &number);

	return tag ? *tag : 0;
}

/* What the label of what leaves for a backend says; 0: it has none. What the fallback gets has found no route. */
static __always_inline __u32 label_tag(const struct segment *segment)
{
	return labels && segment->route >> ROUTE_CLUSTER_BITS &&
			       segment->ip_length + IP_LENGTH + LABEL_LENGTH <= PATH_MTU
		       ? route_tag(segment->route)
		       : 0;
}

static __always_inline void write_label(struct label *label, __u32 tag)
{
	label->version = SHIM_VERSION;
	label->kind = SHIM_LABEL;
	label->reserved = 0;
	label->tag = tag;
}

/* What an order says instead, from what the flow's entry keeps. */
static __always_inline __u16 order_id(__u32 kept)
{
	__u32 tag = labels && kept >> ROUTE_CLUSTER_BITS ? route_tag(kept) : 0;

	return tag <= 0xffff ? tag : 0;
}

/* Does a label follow the outer header? For a router that writes none the question is not there. */
static __always_inline int is_labelled(const struct iphdr *outer, const void *end)
{
	const struct label *label = (const void *)(outer + 1);

	return labels && outer->protocol == SHIM_PROTOCOL && (const void *)(label + 1) <= end &&
	       label->version == SHIM_VERSION && label->kind == SHIM_LABEL;
}
