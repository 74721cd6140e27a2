/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What makes a router's question, and an agent's answer, worth believing: a tag over all of it and over who asks
 * whom. Both are the same struct in contract.h; the kind tells them apart, and is under the tag, too.
 */
#pragma once

#include <stddef.h>

#include "kernel.h"
#include "siphash.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ask_keys);
} ask_keys SEC(".maps");

#define SEALED_BYTES 64

/* 0 and *tag, or -1 if there are no keys. */
static __noinline int ask_tag(const struct ask *ask, const struct tuple *between, __u64 *tag)
{
	__u32 zero = 0;
	const struct ask_keys *keys = bpf_map_lookup_elem(&ask_keys, &zero);
	__u64 sealed[SEALED_BYTES / 8] = {};

	if (!keys)
		return -1;
	__builtin_memcpy(sealed, ask, offsetof(struct ask, tag));
	__builtin_memcpy(sealed + offsetof(struct ask, tag) / 8, between, sizeof(*between));
	*tag = siphash_64(keys->key[ask->epoch & COOKIE_EPOCH], sealed);
	return 0;
}

static __always_inline int is_sealed(const struct ask *ask, const struct tuple *between)
{
	__u64 tag;

	return ask->version == ASK_VERSION && !ask_tag(ask, between, &tag) && tag == ask->tag;
}
