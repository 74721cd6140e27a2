/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Events: what became of single packets, told to whoever reads the ring buffer. Off unless the loader asks for them.
 *
 * They must not slow the packet path, whatever is sent: of each class, one packet in `event_one_in` has its turn, and
 * of these only as many become events as the rate allows each CPU. Time goes by the kernel's ticks, which are read
 * in a nanosecond: what is too much costs little more than being counted. Classes do not share a rate: nobody can
 * hide requests behind a flood of packets to be dropped. Without a reader the ring buffer fills, and what finds no
 * room is counted, too.
 */
#pragma once

#include "class.h"
#include "observer.h"
#include "rate.h"

const volatile __u64 event_interval; /* ns between two events of a class and CPU in the long run; 0: no events */
const volatile __u64 event_tick;     /* ns in a tick (jiffy) of the kernel's */
const volatile __u64 event_burst;    /* ns by which such a series may be ahead of that */
const volatile __u32 event_one_in[CLASS_COUNT]; /* 0: none of the class */

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* bytes; the loader sets more where there are events */
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, CLASS_COUNT);
	__type(key, __u32);
	__type(value, struct event_state);
} event_states SEC(".maps");

/* What every connection has, and what only follows a packet that was told: the counters say enough. */
static __always_inline int is_ordinary(enum verdict verdict)
{
	switch (verdict) {
	case DROP_HANDSHAKE_ACK:
	case TX_SYN_ACK:
	case TX_KEEPALIVE:
	case TX_CLOSE:
	case FALLBACK_AGAIN:
	case FALLBACK_FORWARDED:
	case FALLBACK_CLOSE: return 1;
	default: return 0;
	}
}

static __always_inline int has_turn(struct event_state *state, __u32 one_in)
{
	if (state->left > 1) {
		state->left--;
		return 0;
	}
	state->left = draw_gap(one_in);
	return 1;
}

static __always_inline void fill_event(struct event *event, const struct outcome *outcome, enum verdict verdict)
{
	event->time = bpf_ktime_get_ns();
	event->tuple = outcome->tuple;
	event->route = outcome->route;
	event->backend = outcome->backend;
	event->verdict = verdict;
	event->vip = outcome->vip;
	event->cpu = bpf_get_smp_processor_id();
}

static __noinline void tell(const struct outcome *outcome, enum verdict verdict, __u32 class)
{
	struct event_state *state = bpf_map_lookup_elem(&event_states, &class);
	struct event *event;

	if (!state || class >= CLASS_COUNT || !event_one_in[class] || !has_turn(state, event_one_in[class]))
		return;
	if (!within_rate(state, event_interval, event_tick, event_burst)) {
		state->limited++;
		return;
	}
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event) {
		state->lost++;
		return;
	}
	fill_event(event, outcome, verdict);
	bpf_ringbuf_submit(event, 0);
	state->told++;
}

/* What is passed is none of our business, and has no tuple. */
static __always_inline void offer_event(const struct outcome *outcome, enum verdict verdict)
{
	if (event_interval && verdict >= VERDICT_DROP && !is_ordinary(verdict))
		tell(outcome, verdict, class_of(verdict));
}
