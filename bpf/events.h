/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Events: what became of single packets, told to whoever reads the ring buffer. Off unless the loader asks for them.
 *
 * They must not slow the packet path, whatever is sent: of each class, one packet in `event_one_in` has its turn, and
 * of these only as many become events as the rate allows each CPU. Time goes by the kernel's ticks, which are read
 * in a nanosecond: what is too much costs little more than being counted. Classes do not share a rate: nobody can
 * hide requests behind a flood of packets to be dropped. Without a reader the ring buffer fills, and what finds no
 * room is counted, too.
 *
 * One client at a time can be followed: every packet of his becomes an event, whatever its class and the rate, and
 * also those that are ordinary. Only the ring buffer bounds that. While nobody is followed, that costs each packet one
 * look into an array of one entry.
 */
#pragma once

#include "class.h"
#include "observer.h"
#include "rate.h"
#include "scratch.h"

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

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct follow);
} follow SEC(".maps");

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

/* Whether the packet is told to everybody. */
static __always_inline int is_sampled(struct event_state *state, enum verdict verdict, __u32 class)
{
	if (is_ordinary(verdict) || !event_one_in[class] || !has_turn(state, event_one_in[class]))
		return 0;
	if (within_rate(state, event_interval, event_tick, event_burst))
		return 1;
	state->limited++;
	return 0;
}

/* The request that has found a route has just been read. */
static __always_inline __u8 method_in(const struct outcome *outcome)
{
	const struct scratch *scratch = get_scratch();

	return scratch && outcome->route != NO_ROUTE_NUMBER ? scratch->request.method : METHOD_ANY;
}

static __always_inline void fill_event(struct event *event, const struct outcome *outcome, enum verdict verdict,
				       __u32 reasons)
{
	event->time = bpf_ktime_get_ns();
	event->tuple = outcome->tuple;
	event->route = outcome->route;
	event->backend = outcome->backend;
	event->verdict = verdict;
	event->vip = outcome->vip;
	event->cpu = bpf_get_smp_processor_id();
	event->seq = outcome->seq;
	event->length = outcome->length;
	event->flags = outcome->flags;
	event->method = method_in(outcome);
	event->reasons = reasons;
	event->reserved = 0;
}

/* `followed`: its entry, if the packet's client is followed. */
static __noinline void tell(const struct outcome *outcome, enum verdict verdict, __u32 class, struct follow *followed)
{
	struct event_state *state = bpf_map_lookup_elem(&event_states, &class);
	__u32 reasons = followed ? EVENT_FOLLOWED : 0;
	struct event *event;

	if (!state || class >= CLASS_COUNT)
		return;
	if (is_sampled(state, verdict, class))
		reasons |= EVENT_SAMPLED;
	if (!reasons)
		return;
	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (event) {
		fill_event(event, outcome, verdict, reasons);
		bpf_ringbuf_submit(event, 0);
	} else if (followed) {
		__sync_fetch_and_add(&followed->lost, 1);
	}
	if (!(reasons & EVENT_SAMPLED))
		return;
	if (event)
		state->told++;
	else
		state->lost++;
}

/* The entry of the client that is followed, if the packet is his. `zero`: a key that is 0. */
static __always_inline struct follow *find_follower(const struct tuple *tuple, const __u32 *zero)
{
	struct follow *found = bpf_map_lookup_elem(&follow, zero);

	if (likely(!found || !found->enabled) || found->client != tuple->client)
		return NULL;
	return !found->port || found->port == tuple->client_port ? found : NULL;
}

/* What is passed is none of our business, and has no tuple. */
static __always_inline void offer_event(const struct observer *observer, enum verdict verdict)
{
	const struct outcome *outcome = &observer->outcome;
	struct follow *followed;

	if (!event_interval || verdict < VERDICT_DROP)
		return;
	followed = find_follower(&outcome->tuple, &observer->zero);
	if (followed || !is_ordinary(verdict))
		tell(outcome, verdict, class_of(verdict), followed);
}
