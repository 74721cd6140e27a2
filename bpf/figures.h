/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the agent counts by route: requests, answers by their status, and how long the first byte of an answer took. It
 * knows the route from the router's word (struct label), and where an answer begins from follow.h. Nothing is decided
 * by it.
 *
 * One time is kept a connection, that of its newest request: the router lets no request through before the client has
 * acknowledged some of the answer to the one before.
 */
#pragma once

#include "kernel.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1); /* the loader sets how many routes there may be, and one more; it alone adds entries */
	__type(key, __u32);
	__type(value, struct route_figures);
} figures SEC(".maps");

/* Of the packet in hand, for the figures: the tag of its request's route, as the router says; 0: it does not. In the
 * packet's scratch words, which no other program reads meanwhile. */
#define said_route(skb) ((skb)->cb[0])

#define LABEL_LENGTH ((__u32)sizeof(struct label))

/* Nobody need believe a label: what is no route of ours is not known. */
static __always_inline struct route_figures *figures_of(const struct mapping *mapping)
{
	__u32 route = mapping->route, unknown = 0;
	struct route_figures *found = bpf_map_lookup_elem(&figures, &route);

	return found ? found : bpf_map_lookup_elem(&figures, &unknown);
}

/* A request has come that was not here before. Global, as the other one: verified once. */
__noinline int note_asked(struct mapping *mapping)
{
	struct route_figures *counted;

	if (!mapping)
		return 0;
	mapping->asked_at = bpf_ktime_get_ns();
	counted = figures_of(mapping);
	if (counted)
		counted->requests++;
	return 0;
}

static __always_inline __u32 first_byte_bucket(__u64 ns)
{
	__u64 units = ns / FIRST_BYTE_UNIT;
	__u32 bucket = 0;

#pragma unroll
	for (__u32 octave = 0; octave < FIRST_BYTE_BUCKETS - 1; octave++)
		bucket += units >> octave != 0;
	return bucket;
}

/* An answer leaves, of which the head is known, or only that it begins: the first digit of its status, or 0. An interim
 * one is not what the client waits for. */
__noinline int note_answer(struct mapping *mapping, __u32 class, int interim)
{
	struct route_figures *counted;
	__u32 bucket;
	__u64 ns;

	if (!mapping || class >= STATUS_CLASSES)
		return 0;
	counted = figures_of(mapping);
	if (!counted)
		return 0;
	counted->statuses[class]++;
	if (interim || !mapping->asked_at)
		return 0;
	ns = bpf_ktime_get_ns() - mapping->asked_at;
	mapping->asked_at = 0;
	bucket = first_byte_bucket(ns);
	if (bucket >= FIRST_BYTE_BUCKETS)
		return 0;
	counted->sum += ns;
	counted->bucket[bucket]++;
	return 0;
}
