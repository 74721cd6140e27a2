/* SPDX-License-Identifier: GPL-2.0-only */
/* The step of the keyed hashes that only have to spread what nobody may aim (defined in contract.h). */
#pragma once

#include "kernel.h"

static __always_inline __u64 hash_mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 29;
}
