/* SPDX-License-Identifier: GPL-2.0-only */
/* Internet checksum (RFC 1071) over what the programs write themselves. Sums are of 32-bit words as they
 * stand in memory. */
#pragma once

#include "kernel.h"

static __always_inline __u16 checksum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* `words` is a constant at every call, so the loop unrolls. */
static __always_inline __u64 checksum_add(__u64 sum, const void *data, __u32 words)
{
	const __u32 *word = data;

#pragma unroll
	for (__u32 i = 0; i < words; i++)
		sum += word[i];
	return sum;
}

/* The sum without those words. */
static __always_inline __u64 checksum_subtract(__u64 sum, const void *data, __u32 words)
{
	const __u32 *word = data;

#pragma unroll
	for (__u32 i = 0; i < words; i++)
		sum += (__u32)~word[i];
	return sum;
}

/* The checksum once a 32-bit word that it covers is replaced (RFC 1624, equation 3). */
static __always_inline __u16 checksum_replace(__u16 check, __u32 old, __u32 word)
{
	return checksum_fold((__u64)(__u16)~check + (__u32)~old + word);
}

/* Sum of the TCP pseudo-header (RFC 9293, 3.1); `length`: TCP header and payload, bytes. */
static __always_inline __u64 checksum_pseudo(__be32 source, __be32 destination, __u16 length)
{
	return (__u64)source + destination + bpf_htons(IPPROTO_TCP) + bpf_htons(length);
}
