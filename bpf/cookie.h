/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The cookie: the sequence number of a SYN-ACK that was sent without keeping state. It proves, when it
 * comes back, that the client really received that SYN-ACK, and carries the options of the SYN. Its layout
 * is in contract.h.
 *
 * 24 bits of a keyed hash are what Linux's own SYN cookies have (net/ipv4/syncookies.c, COOKIEBITS): a
 * blind attacker needs 2^24 guesses for one connection that he then can't read from (docs/http.md).
 */
#pragma once

#include "kernel.h"
#include "siphash.h"
#include "tcp_options.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cookie_keys);
} cookie_keys SEC(".maps");

static const __u16 cookie_mss[4] = COOKIE_MSS_VALUES;

static __always_inline __u32 cookie_compute(const struct cookie_keys *keys, const struct tuple *tuple,
					    __u32 isn, __u8 options)
{
	__u64 addresses = (__u64)tuple->server << 32 | tuple->client;
	__u64 rest = (__u64)isn << 32 | (__u32)tuple->server_port << 16 | tuple->client_port;
	__u64 hash = siphash_17(keys->key[options & COOKIE_EPOCH], addresses, rest, options);

	return (__u32)hash << 8 | options;
}

static __always_inline __u8 cookie_mss_index(__u16 mss)
{
	return mss >= cookie_mss[3] ? 3 : mss >= cookie_mss[2] ? 2 : mss >= cookie_mss[1] ? 1 : 0;
}

/* The cookie for a SYN with initial sequence number `isn`; 0 and *cookie on success. */
static __always_inline int cookie_make(const struct tuple *tuple, __u32 isn, const struct option_bytes *syn,
				       __u32 *cookie)
{
	__u32 zero = 0;
	const struct cookie_keys *keys = bpf_map_lookup_elem(&cookie_keys, &zero);
	__u8 options;

	if (!keys)
		return -1;
	options = syn->wscale << COOKIE_WSCALE_SHIFT | (syn->sack ? COOKIE_SACK : 0) |
		  cookie_mss_index(syn->mss) << COOKIE_MSS_SHIFT | (keys->epoch & COOKIE_EPOCH);
	*cookie = cookie_compute(keys, tuple, isn, options);
	return 0;
}

/* Is `cookie` what this tuple's SYN with number `isn` was answered with, under a live key? Global: verified
 * once, called from several places. */
__noinline int cookie_check(const struct tuple *tuple, __u32 isn, __u32 cookie)
{
	__u32 zero = 0;
	const struct cookie_keys *keys = bpf_map_lookup_elem(&cookie_keys, &zero);

	if (!keys || !tuple)
		return 0;
	return cookie_compute(keys, tuple, isn, cookie & COOKIE_OPTIONS) == cookie;
}
