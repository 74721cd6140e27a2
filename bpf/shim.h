/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What makes an order to hand a connection over worth obeying: a tag over all of it, over the packet that it comes
 * with, and over who sends it to whom. docs/handover.md has the protocol.
 *
 * The time bounds how long an order that somebody has recorded is good for. Hosts need no common clock but to within
 * a minute; TAI does not jump at leap seconds.
 */
#pragma once

#include "seal.h"

#define SHIM_LENGTH ((__u32)sizeof(struct shim))
#define SHIM_SEALED ((__u32)offsetof(struct shim, tag))

struct shimmed { /* all that has to be there, behind the Ethernet header */
	struct iphdr outer;
	struct shim shim;
	struct iphdr ip;
	struct tcphdr tcp;
};

static __always_inline __u16 shim_clock(void)
{
	return bpf_ktime_get_tai_ns() / 1000000000U;
}

/* 0 and *tag, or -1 if there are no keys. */
static __noinline int shim_tag(const struct shim *shim, const struct bond *bond, __u64 *tag)
{
	__u32 zero = 0;
	const struct ask_keys *keys = bpf_map_lookup_elem(&ask_keys, &zero);
	__u64 sealed[(SHIM_SEALED + sizeof(*bond)) / 8];

	if (!keys)
		return -1;
	__builtin_memcpy(sealed, shim, SHIM_SEALED);
	__builtin_memcpy(sealed + SHIM_SEALED / 8, bond, sizeof(*bond));
	*tag = siphash_48(keys->key[shim->flags & SHIM_EPOCH], sealed);
	return 0;
}

static __always_inline int seal_shim(struct shim *shim, const struct bond *bond)
{
	__u64 tag;

	if (shim_tag(shim, bond, &tag))
		return -1;
	shim->tag = tag;
	return 0;
}

static __always_inline int is_sealed_shim(const struct shim *shim, const struct bond *bond)
{
	__u64 tag;

	return shim->version == SHIM_VERSION && !shim_tag(shim, bond, &tag) && tag == shim->tag &&
	       (__u16)(shim_clock() - shim->time + SHIM_LIFETIME) <= 2 * SHIM_LIFETIME;
}

static __always_inline __u8 shim_epoch(void)
{
	__u32 zero = 0;
	const struct cookie_keys *keys = bpf_map_lookup_elem(&cookie_keys, &zero);

	return keys && keys->epoch ? SHIM_EPOCH : 0;
}
