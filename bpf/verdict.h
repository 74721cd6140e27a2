/* SPDX-License-Identifier: GPL-2.0-only */
/* The counters: one for every way out of a program. */
#pragma once

#include "kernel.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICT_COUNT);
	__type(key, enum verdict);
	__type(value, __u64);
} verdicts SEC(".maps");

/* No verdict yet: the next step decides. Never counted, never leaves a program. */
#define UNDECIDED ((enum verdict)VERDICT_COUNT)

static __always_inline void count(enum verdict verdict)
{
	__u64 *counter = bpf_map_lookup_elem(&verdicts, &verdict);

	if (counter)
		*counter += 1;
}
