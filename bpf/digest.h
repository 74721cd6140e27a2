/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A keyed digest of what a client has said: of request heads in the router, since what it has routed must be what the
 * backend gets, however often and however changed it is sent again; and of a connection's first data in the agent.
 *
 * Defined in contract.h. Multilinear hashing in its halved form (D. Lemire, O. Kaser, "Strongly universal
 * string hashing is fast", The Computer Journal 57, 2014), twice with keys shifted by one pair as in UMAC
 * (RFC 4418, 5.2): who does not know the keys changes a head so that its digest stays with a probability of
 * about 2^-64, however he chooses. The hash of routes is no good for that: differences in the top bits of
 * two words cancel out under any key. SipHash is, at three times the price.
 */
#pragma once

#include "kernel.h"

const volatile __u64 digest_keys[DIGEST_KEYS];

struct digest {
	__u64 low;
	__u64 high;
};

static __always_inline void digest_word(struct digest *digest, __u32 number, __u64 word)
{
	const volatile __u64 *key = &digest_keys[2 * number];
	__u32 first = word, second = word >> 32;

	digest->low += (key[0] + first) * (key[1] + second);
	digest->high += (key[2] + first) * (key[3] + second);
}

static __always_inline __u64 digest_value(const struct digest *digest)
{
	return digest->low >> 32 | (digest->high & 0xffffffff00000000ULL);
}
