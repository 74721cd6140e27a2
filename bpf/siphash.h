/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * SipHash-2-4 (Aumasson, Bernstein: "SipHash: a fast short-input PRF", 2012) of messages of a fixed length:
 * 17 bytes are what a cookie covers, 20 what a connection's fingerprint does, 48 what the tag of an order does, 64 that of an ask.
 */
#pragma once

#include "kernel.h"

#define ROTATE_LEFT(x, bits) (((x) << (bits)) | ((x) >> (64 - (bits))))

#define SIP_ROUND(v0, v1, v2, v3)                                                                          \
	do {                                                                                               \
		v0 += v1;                                                                                  \
		v1 = ROTATE_LEFT(v1, 13) ^ v0;                                                             \
		v0 = ROTATE_LEFT(v0, 32);                                                                  \
		v2 += v3;                                                                                  \
		v3 = ROTATE_LEFT(v3, 16) ^ v2;                                                             \
		v0 += v3;                                                                                  \
		v3 = ROTATE_LEFT(v3, 21) ^ v0;                                                             \
		v2 += v1;                                                                                  \
		v1 = ROTATE_LEFT(v1, 17) ^ v2;                                                             \
		v2 = ROTATE_LEFT(v2, 32);                                                                  \
	} while (0)

#define SIP_COMPRESS(word)                                                                                 \
	do {                                                                                               \
		v3 ^= (word);                                                                              \
		SIP_ROUND(v0, v1, v2, v3);                                                                 \
		SIP_ROUND(v0, v1, v2, v3);                                                                 \
		v0 ^= (word);                                                                              \
	} while (0)

/* Of `words` words, a constant at every call, so that the loop unrolls, and of the bytes behind them: `last`, a
 * little-endian integer. `length`: of all, bytes. */
static __always_inline __u64 siphash(const __u64 key[2], const __u64 *word, __u32 words, __u64 last,
				     __u32 length)
{
	__u64 v0 = key[0] ^ 0x736f6d6570736575ULL;
	__u64 v1 = key[1] ^ 0x646f72616e646f6dULL;
	__u64 v2 = key[0] ^ 0x6c7967656e657261ULL;
	__u64 v3 = key[1] ^ 0x7465646279746573ULL;

#pragma unroll
	for (__u32 i = 0; i < words; i++)
		SIP_COMPRESS(word[i]);
	SIP_COMPRESS(((__u64)length << 56) | last);
	v2 ^= 0xff;
	SIP_ROUND(v0, v1, v2, v3);
	SIP_ROUND(v0, v1, v2, v3);
	SIP_ROUND(v0, v1, v2, v3);
	SIP_ROUND(v0, v1, v2, v3);
	return v0 ^ v1 ^ v2 ^ v3;
}

static __always_inline __u64 siphash_17(const __u64 key[2], __u64 word0, __u64 word1, __u8 last)
{
	const __u64 word[] = { word0, word1 };

	return siphash(key, word, 2, last, 17);
}

static __always_inline __u64 siphash_20(const __u64 key[2], __u64 word0, __u64 word1, __u32 last)
{
	const __u64 word[] = { word0, word1 };

	return siphash(key, word, 2, last, 20);
}

static __always_inline __u64 siphash_48(const __u64 key[2], const __u64 word[6])
{
	return siphash(key, word, 6, 0, 48);
}

static __always_inline __u64 siphash_64(const __u64 key[2], const __u64 word[8])
{
	return siphash(key, word, 8, 0, 64);
}
