/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A segment in mid-connection, and no entry: evicted, another router's, or lost with a program that was replaced.
 * Or it belongs to nobody. The backends know; user space asks them (rauta/asking/recovery.py), and the client sends again.
 * docs/recovery.md says what this costs, and what it may open.
 *
 * Whoever makes packets up must not make work: one bucket for all CPUs limits how many segments are asked about. It
 * is a single number, the time at which the bucket will be full again (the generic cell rate algorithm, ITU-T I.371,
 * annex A): no lock, and nothing is written for what is refused.
 */
#pragma once

#include "packet.h"

const volatile __u32 lost_rate; /* segments a second; 0: nobody is there to ask */
const volatile __u32 lost_burst;

#define NANOSECONDS  1000000000U /* in a second */
#define LOST_BYTES   65536	 /* two seconds at the default rate */
#define LOST_BUCKETS 1

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, LOST_BYTES);
} lost SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, LOST_BUCKETS);
	__type(key, __u32);
	__type(value, __u64);
} lost_bucket SEC(".maps");

/* Takes one out of the bucket. Where two CPUs reach for the same, one gets nothing: its client sends again. */
static __always_inline int take_from_bucket(void)
{
	__u32 zero = 0, interval = NANOSECONDS / lost_rate;
	__u64 *bucket = bpf_map_lookup_elem(&lost_bucket, &zero), now = bpf_ktime_get_ns(), full;

	if (!bucket)
		return 0;
	full = *bucket;
	if (full > now + (__u64)interval * (lost_burst - 1))
		return 0;
	return __sync_val_compare_and_swap(bucket, full, (full > now ? full : now) + interval) == full;
}

static __always_inline enum verdict drop_lost(const struct segment *segment)
{
	struct lost_segment event = { .tuple = segment->tuple, .seq = segment->seq, .ack = segment->ack };

	if (!lost_rate || !take_from_bucket() || bpf_ringbuf_output(&lost, &event, sizeof(event), 0))
		return DROP_NO_FLOW;
	return DROP_ASKED;
}
