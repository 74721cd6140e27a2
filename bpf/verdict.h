/* SPDX-License-Identifier: GPL-2.0-only */
/* The counters: for every VIP, one for every way out of a program. */
#pragma once

#include "kernel.h"

#ifndef VERDICT_ROWS
#define VERDICT_ROWS (MAX_VIPS + 1)
#endif

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICT_ROWS);
	__type(key, __u32);
	__type(value, struct verdict_counts);
} verdicts SEC(".maps");

/* No verdict yet: the next step decides. Never counted, never leaves a program. */
#define UNDECIDED ((enum verdict)VERDICT_COUNT)

/* `vip`: its id, or 0. A VIP's counters lie side by side, so that the few in use share their cache lines. */
static __always_inline void count(const __u32 *vip, enum verdict verdict)
{
	struct verdict_counts *counts = bpf_map_lookup_elem(&verdicts, vip);

	if (counts)
		counts->packets[verdict & (VERDICT_COUNT - 1)] += 1;
}
