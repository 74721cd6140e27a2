/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which connections have had their socket. Another first request of one of them is a replay, however valid
 * its cookie: a duplicate that the network delivers late, or what somebody has recorded. Once the socket is
 * gone it would open a ghost, and the server would execute it again.
 *
 * Keyed 64-bit fingerprints in an array map, seven to a set, and a set to a cache line: first in, first
 * out. So memory is fixed, and what is lost is the oldest of its set; whoever knows no key can aim at none.
 * No locks: two CPUs that write to one set get two places from its hand, and a fingerprint is one word.
 */
#pragma once

#include "kernel.h"
#include "siphash.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE); /* begins on a page, and so each set on a cache line */
	__uint(max_entries, CONSUMED_SETS);
	__type(key, __u32);
	__type(value, struct consumed_set);
} consumed SEC(".maps");

const volatile __u32 consumed_sets = CONSUMED_SETS; /* the same number */
const volatile __u64 consumed_key[2];

static __always_inline __u64 fingerprint_of(const struct tuple *local, __u32 isn, __u32 cookie)
{
	const __u64 key[2] = { consumed_key[0], consumed_key[1] };
	__u64 addresses = (__u64)local->server << 32 | local->client;
	__u64 rest = (__u64)isn << 32 | (__u32)local->server_port << 16 | local->client_port;

	return siphash_20(key, addresses, rest, cookie) ?: 1;
}

static __always_inline struct consumed_set *consumed_set_of(__u64 fingerprint)
{
	__u32 index = (fingerprint >> 32) * consumed_sets >> 32;

	return bpf_map_lookup_elem(&consumed, &index);
}

static __always_inline int has_fingerprint(const struct consumed_set *set, __u64 fingerprint)
{
	int found = 0;

#pragma unroll
	for (__u32 way = 0; way < CONSUMED_WAYS; way++)
		found |= set->fingerprint[way] == fingerprint;
	return found;
}

/* Has the connection had its socket, as far as is remembered? */
static __noinline int is_consumed(const struct tuple *local, const struct mapping *mapping)
{
	__u64 fingerprint = fingerprint_of(local, mapping->isn, mapping->cookie);
	const struct consumed_set *set = consumed_set_of(fingerprint);

	return set && has_fingerprint(set, fingerprint);
}

/* From now on it has. Nothing is written twice: what a server sends again must not push others out. */
static __noinline int consume(const struct tuple *local, const struct mapping *mapping)
{
	__u64 fingerprint = fingerprint_of(local, mapping->isn, mapping->cookie);
	struct consumed_set *set = consumed_set_of(fingerprint);
	__u32 place;

	if (!set || has_fingerprint(set, fingerprint))
		return 0;
	place = __sync_fetch_and_add(&set->hand, 1) % CONSUMED_WAYS;
	asm volatile("" : "+r"(place)); /* the verifier does not know how large a remainder can be */
	if (place < CONSUMED_WAYS)
		set->fingerprint[place] = fingerprint;
	return 0;
}
