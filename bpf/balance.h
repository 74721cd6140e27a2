/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Maglev (Eisenbud et al., NSDI '16): the control plane fills a table of 65537 slots for each cluster, a
 * lookup is one multiplication and one read. A table is replaced whole by replacing the inner map, so no
 * packet sees a half-written one.
 */
#pragma once

#include "kernel.h"
#include "maglev.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, MAX_CLUSTERS);
	__type(key, __u32);
	__array(values, struct maglev_table);
} clusters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_BACKENDS);
	__type(key, __u32);
	__type(value, struct backend);
} backends SEC(".maps");

/* Index of the backend for a flow with this hash, or NO_BACKEND. `cluster` counts from 0. */
static __always_inline __u16 choose_backend(__u32 cluster, __u64 hash)
{
	__u32 slot = (hash >> 32) * MAGLEV_SLOTS >> 32, entry = slot >> 2;
	void *table = bpf_map_lookup_elem(&clusters, &cluster);
	const struct maglev_slots *slots;

	if (!table)
		return NO_BACKEND;
	slots = bpf_map_lookup_elem(table, &entry);
	return slots ? slots->backend[slot & 3] : NO_BACKEND;
}
