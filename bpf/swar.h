/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Eight bytes at a time. A mask has the high bit of each byte that matches; only its lowest bit is exact (a
 * borrow may mark bytes above a true match), which is all that is asked of it: where is the first one?
 * Source: Warren, "Hacker's Delight", 2nd ed., 6-1.
 */
#pragma once

#include "kernel.h"

#define SWAR_ONES 0x0101010101010101ULL
#define SWAR_HIGH 0x8080808080808080ULL

/* Bytes smaller than `limit` (1..128). */
static __always_inline __u64 swar_below(__u64 word, __u8 limit)
{
	return (word - SWAR_ONES * limit) & ~word & SWAR_HIGH;
}

static __always_inline __u64 swar_equal(__u64 word, __u8 byte)
{
	return swar_below(word ^ SWAR_ONES * byte, 1);
}

/* All bits of the bytes before the first match. The mask is not 0. */
static __always_inline __u64 swar_before(__u64 mask)
{
	return ((mask & -mask) >> 7) - 1;
}

/* Index (0..7) of the first match: one set bit in each byte up to it, added up by a multiplication,
 * minus 1. */
static __always_inline __u32 swar_index(__u64 mask)
{
	return ((((mask & -mask) - 1) & SWAR_ONES) * SWAR_ONES >> 56) - 1;
}

/* ASCII letters to lower case, other bytes unchanged. */
static __always_inline __u64 swar_lower(__u64 word)
{
	__u64 low = word & ~SWAR_HIGH;
	__u64 from_a = low + SWAR_ONES * (0x80 - 'A');
	__u64 past_z = low + SWAR_ONES * (0x7f - 'Z');

	return word | ((from_a ^ past_z) & ~word & SWAR_HIGH) >> 2;
}

/* Bytes from `limit` (1..127) on; of bytes without their high bit. Unlike the masks above, every high bit
 * is exact, and what the others are does not matter. */
static __always_inline __u64 swar_from(__u64 low, __u8 limit)
{
	return low + SWAR_ONES * (0x80 - limit);
}

/* Bytes that are no part of a host name: anything but letters, digits, '-', '.' and '_'. A byte is inside
 * one of the ranges if it has passed an odd number of their ends. */
static __always_inline __u64 swar_not_host(__u64 word)
{
	__u64 low = word & ~SWAR_HIGH;
	__u64 signs = swar_from(low, '-') ^ swar_from(low, '.' + 1) ^ swar_from(low, '_') ^
		      swar_from(low, '_' + 1);
	__u64 digits = swar_from(low, '0') ^ swar_from(low, '9' + 1);
	__u64 letters = swar_from(low, 'A') ^ swar_from(low, 'Z' + 1) ^ swar_from(low, 'a') ^
			swar_from(low, 'z' + 1);

	return ~((signs ^ digits ^ letters) & ~word) & SWAR_HIGH;
}

/* The first `length` (0..8) bytes of a word, the others zero. */
static __always_inline __u64 swar_first(__u64 word, __u32 length)
{
	return length >= 8 ? word : word & ((1ULL << 8 * length) - 1);
}

#define CHARS4(a, b, c, d)	       ((__u64)(a) | (__u64)(b) << 8 | (__u64)(c) << 16 | (__u64)(d) << 24)
#define CHARS8(a, b, c, d, e, f, g, h) (CHARS4(a, b, c, d) | CHARS4(e, f, g, h) << 32)
