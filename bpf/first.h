/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a connection's first data said, as a keyed digest: a client whose router has lost the flow's entry can
 * send other data in the same place, with the cookie that is still right. The router would route that and take what
 * follows for its body, while the socket here has had something else. So the agent keeps the digest with the mapping,
 * and ends the connection if a router that knows of no earlier first data sends any that differs (open.h).
 */
#pragma once

#include "digest.h"

#define FIRST_CAPACITY 2048 /* bytes: power of two; more than a packet, and so than a head that is routed */

struct first_data {
	__u8 bytes[FIRST_CAPACITY + 8];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct first_data);
} first_data SEC(".maps");

/* Of `length` bytes of payload at `offset`, or as many as fit. 0: they could not be read. */
static __noinline __u64 first_digest(struct __sk_buff *skb, __u32 offset, __u32 length)
{
	struct digest digest = {};
	struct first_data *data;
	__u32 zero = 0, i;

	data = bpf_map_lookup_elem(&first_data, &zero);
	if (!data || !length)
		return 0;
	length = bounded_length(length, FIRST_CAPACITY);
	if (bpf_skb_load_bytes(skb, offset, data->bytes, length))
		return 0;
	__builtin_memset(data->bytes + length, 0, 8);
	for (i = 0; i < FIRST_CAPACITY / 8 && 8 * i < length; i++)
		digest_word(&digest, i, *(const __u64 *)(data->bytes + 8 * i));
	return digest_value(&digest);
}
