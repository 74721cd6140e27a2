/* SPDX-License-Identifier: GPL-2.0-only */
/* How many records user space is told, at most: a rate that costs nothing to keep. */
#pragma once

#include "kernel.h"

/*
 * The generic cell rate algorithm (ITU-T I.371): a token bucket in one number, without a division. `interval`: ns between
 * two records in the long run; `tick`: ns in a tick (jiffy) of the kernel's, by which time goes; `burst`: ns by which a
 * series may be ahead.
 */
static __always_inline int within_rate(struct event_state *state, __u64 interval, __u64 tick, __u64 burst)
{
	__u64 now = bpf_jiffies64() * tick, due = state->due < now ? now : state->due;

	if (due - now > burst)
		return 0;
	state->due = due + interval;
	return 1;
}
