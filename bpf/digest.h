/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A keyed digest of a request head: what the router has routed must be what the backend gets, however often
 * and however changed the client sends it again.
 *
 * Defined in contract.h. Multilinear hashing in its halved form (D. Lemire, O. Kaser, "Strongly universal
 * string hashing is fast", The Computer Journal 57, 2014), twice with keys shifted by one pair as in UMAC
 * (RFC 4418, 5.2): who does not know the keys changes a head so that its digest stays with a probability of
 * about 2^-64, however he chooses. The hash of routes is no good for that: differences in the top bits of
 * two words cancel out under any key. SipHash is, at three times the price.
 */
#pragma once

#include "fields.h"
#include "scratch.h"

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

/* Of the first `length` bytes of scratch.head. */
static __always_inline __u64 head_digest(const struct scratch *scratch, __u32 length)
{
	struct digest digest = {};
	__u32 words = length / 8 & (MAX_WORDS - 1), i;

	for (i = 0; i < words; i++)
		digest_word(&digest, i & (MAX_WORDS - 1), word_at(scratch, 8 * i));
	if (length % 8)
		digest_word(&digest, words, swar_first(word_at(scratch, 8 * words), length % 8));
	return digest.low >> 32 | (digest.high & 0xffffffff00000000ULL);
}
