/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The flow table: which backend a connection has, and where in its byte stream the next request must start.
 *
 * A set-associative cache in an array map: the keyed flow_hash chooses a set of eight entries; a client cannot
 * aim at somebody else's set without the key. The kernel's LRU hash costs 52 ns for a look-up and 145 ns for
 * an insertion here (docs/performance.md), this one a fraction of that, and its memory is as fixed.
 *
 * A full set loses the entry that was not used for the longest time. Time is counted in what the set takes in:
 * its clock ticks before and after each new entry, and a packet writes down what it says once for each tick,
 * not more. (One bit for each way, with a clock's hand, says too little: ordinary connections use their
 * entries, too, and where all bits are set the hand takes whoever it points at, however busy.)
 *
 * Readers take no lock: they copy the entry, and look at its tuple before and after. An entry's place is
 * given to another flow with no tuple in it meanwhile, so a copy is all one flow's. Writers take the lock,
 * and change an entry only if it is still the connection's that was copied. What a reader decides may then
 * be about a flow that is just being evicted: its packet goes where it would have gone a moment ago.
 */
#pragma once

#include <stddef.h>

#include "hash.h"
#include "label.h"
#include "packet.h"
#include "scratch.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16384); /* the configuration's `flows` / FLOW_WAYS */
	__type(key, __u32);
	__type(value, struct flow_set);
} flows SEC(".maps");

const volatile __u32 flow_sets = 16384; /* the same number */

#define EMPTY_AGE 0x1000 /* more than any */
#define LOCK_ATTEMPTS 64 /* about 1 us */

struct entry {
	struct flow_set *set;
	struct flow *kept; /* in the table; NULL: it has none for the tuple */
	struct flow flow;  /* what it said, if there is one */
};

static __always_inline __u32 flow_tag(__u64 hash)
{
	return (__u32)(hash >> 24) | 1;
}

static __always_inline int same_tuple(const struct tuple *a, const struct tuple *b)
{
	return a->client == b->client && a->server == b->server && a->client_port == b->client_port &&
	       a->server_port == b->server_port;
}

/* The flow of the segment's tuple, if its way has one: copied, and `kept`. */
static __always_inline void read_flow(struct entry *entry, struct flow *flow, const struct segment *segment)
{
	if (!same_tuple(&flow->tuple, &segment->tuple))
		return;
	barrier();
	__builtin_memcpy(&entry->flow, flow, sizeof(*flow));
	barrier();
	if (same_tuple(&flow->tuple, &segment->tuple))
		entry->kept = flow;
}

static __always_inline struct flow_set *find_set(__u64 hash)
{
	__u32 index = (hash & 0xffffffff) * flow_sets >> 32;

	return bpf_map_lookup_elem(&flows, &index);
}

/* entry->set is NULL if there is no table. */
static __always_inline void find_flow(struct entry *entry, const struct segment *segment)
{
	__u32 tag = flow_tag(segment->hash), found = FLOW_WAYS;
	struct flow_set *set = find_set(segment->hash);

	entry->set = set;
	entry->kept = NULL;
	if (!set)
		return;
#pragma unroll
	for (__u32 way = 0; way < FLOW_WAYS; way++)
		if (set->tag[way] == tag)
			found = way;
	found = forget(set, found);
	if (found >= FLOW_WAYS)
		return;
	read_flow(entry, &set->flow[found], segment);
	if (entry->kept && set->used[found] != set->clock)
		set->used[found] = set->clock;
}

/* The way to write a new entry with this tag to: the one that has it, an empty one, or else the one that was
 * not used for the longest time. Of several that were used last at the same time, a different one each time.
 * The lock is held. */
static __always_inline __u32 choose_way(struct flow_set *set, __u32 tag)
{
	__u32 oldest = 0, chosen = 0;
	__u8 clock = set->clock;

	for (__u32 i = 0; i < FLOW_WAYS; i++) {
		__u32 way = (clock / 2 + i) & (FLOW_WAYS - 1);
		__u32 age = set->tag[way] ? 1 + (__u8)(clock - set->used[way]) : EMPTY_AGE;

		if (set->tag[way] == tag)
			return way;
		if (age > oldest) {
			oldest = age;
			chosen = way;
		}
	}
	set->used[chosen] = clock + 1;
	set->clock = clock + 2;
	return chosen;
}

/* a is behind b in the stream (RFC 9293, 3.4: numbers wrap). */
static __always_inline int seq_before(__u32 a, __u32 b)
{
	return (__s32)(a - b) < 0;
}

static __always_inline __u32 segment_end(const struct segment *segment)
{
	return segment->seq + segment->length;
}

/* What acknowledges the whole segment. */
static __always_inline __u32 data_end(const struct segment *segment)
{
	return segment_end(segment) + (segment->flags & TCP_FIN ? 1 : 0);
}

/* A blank entry for the connection that the segment, its first data, opens; in the scratch map, of this CPU
 * until the program ends. put_flow writes the tuple. */
static __always_inline struct flow *new_flow(const struct segment *segment)
{
	struct scratch *scratch = get_scratch();
	struct flow *flow;

	if (!scratch)
		return NULL;
	flow = &scratch->flow;
	__builtin_memset(flow, 0, sizeof(*flow));
	flow->isn = segment->seq - 1;
	flow->cookie = segment->ack - 1;
	flow->first = FIRST_OPENS;
	flow->options = flow->cookie & COOKIE_OPTIONS;
	return flow;
}

/*
 * A lock of our own: bpf_spin_lock is two calls that also disable interrupts, 40 ns a pair. Nobody but other
 * CPUs can come between here, as XDP runs with softirqs off, and they are done within some ten instructions; if
 * one is not, because its hypervisor has stopped it, the packet is not worth waiting for. 0: it is ours.
 */
static __always_inline int lock_set(struct flow_set *set)
{
	for (__u32 i = 0; i < LOCK_ATTEMPTS; i++)
		if (!__sync_lock_test_and_set(&set->lock, 1))
			return 0;
	return -1;
}

static __always_inline void unlock_set(struct flow_set *set)
{
	__sync_lock_test_and_set(&set->lock, 0);
}

/* Makes or replaces the tuple's entry; the lock is held. `flow` has no tuple yet: see the top for why it is
 * written last. */
static __always_inline void write_flow(struct flow_set *set, const struct segment *segment,
				       const struct flow *flow)
{
	__u32 tag = flow_tag(segment->hash), way;
	struct flow *kept;

	way = forget(set, choose_way(set, tag)) & (FLOW_WAYS - 1);
	kept = &set->flow[way];
	set->tag[way] = tag;
	kept->tuple = flow->tuple;
	barrier();
	*kept = *flow;
	barrier();
	kept->tuple = segment->tuple;
}

/* Makes or replaces the tuple's entry. 0, or -1: the set stayed locked. */
static __always_inline int put_flow(struct flow_set *set, const struct segment *segment,
				    const struct flow *flow)
{
	if (lock_set(set))
		return -1;
	write_flow(set, segment, flow);
	unlock_set(set);
	return 0;
}

/* The first data of the very connection that the entry is about, or a retransmission of it. What else
 * starts a request with a valid cookie is of a new one, also if its numbers are those of the old: a client
 * may choose the same again, and other options make another cookie. */
static __always_inline int is_flows_own(const struct flow *flow, const struct segment *segment)
{
	return segment->seq - 1 == flow->isn && segment->ack - 1 == flow->cookie;
}

/* Whose answers the client gets just now: while the flow moves, still the old backend's. */
static __always_inline __u16 answering_backend(const struct flow *flow)
{
	return flow->state == FLOW_MOVING ? flow->mover : flow->backend;
}

static __always_inline int same_flow(const struct flow *a, const struct flow *b)
{
	return same_tuple(&a->tuple, &b->tuple) && a->isn == b->isn && a->cookie == b->cookie;
}

/* Runs `change` on the flow in the table, unless another one has got its place meanwhile. 0, or -1: the set
 * stayed locked. */
#define CHANGE_FLOW(entry, change)                                                                         \
	({                                                                                                 \
		struct flow *flow = (entry)->kept;                                                         \
		int failed = lock_set((entry)->set);                                                       \
                                                                                                           \
		if (!failed) {                                                                             \
			if (same_flow(flow, &(entry)->flow)) {                                             \
				change;                                                                    \
			}                                                                                  \
			unlock_set((entry)->set);                                                          \
		}                                                                                          \
		failed;                                                                                    \
	})

/* The client's FIN or RST exactly where the stream stands: nothing is decided by it, a spoofed one would
 * have to guess. */
static __always_inline int note_closing(const struct entry *entry, const struct segment *segment)
{
	if (segment_end(segment) != entry->flow.next_request_seq || entry->flow.state != FLOW_OPEN)
		return 0;
	return CHANGE_FLOW(entry, flow->state = FLOW_CLOSING);
}

/* A SYN on the tuple: the bare acknowledgement that follows must not go to the old connection's backend. A late duplicate
 * of the connection's own says nothing, also once it has moved. */
static __always_inline int note_syn(const struct entry *entry, const struct segment *segment)
{
	if (entry->flow.syn_seen == SYN_MOVED && entry->flow.syn_isn == segment->seq)
		return 0;
	return CHANGE_FLOW(entry, flow->syn_isn = segment->seq; flow->syn_seen = SYN_NEWEST);
}

/* The segment starts a request; the one before it, if there was one, stays known by its body alone. */
static __always_inline void set_request(struct flow *flow, const struct segment *segment,
					const struct request *request)
{
	__u32 head = request->head_length;

	flow->body_seq = flow->head_length ? flow->request_seq + flow->head_length : segment->seq;
	flow->request_seq = segment->seq;
	flow->next_request_seq = segment->seq + head + request->content_length;
	flow->request_ack = segment->ack;
	flow->head_length = head;
	flow->digest = request->digest;
	flow->is_head = request->method == METHOD_HEAD;
	if (segment->flags & TCP_FIN && segment_end(segment) == flow->next_request_seq)
		flow->state = FLOW_CLOSING;
}

static __always_inline void set_answered(struct flow *flow, const struct segment *segment, __u32 ack,
					 enum verdict answer)
{
	flow->request_seq = segment->seq;
	flow->next_request_seq = ack;
	flow->state = FLOW_ANSWERED;
	flow->answer = answer;
}

static __always_inline int note_request(const struct entry *entry, const struct segment *segment,
					const struct request *request)
{
	return CHANGE_FLOW(entry, set_request(flow, segment, request); flow->first = FIRST_NOT;
			   flow->cluster = kept_route(segment));
}

/* The request moves the flow; entry->flow says from whom to whom. */
static __always_inline int note_order(const struct entry *entry, const struct segment *segment,
				      const struct request *request)
{
	return CHANGE_FLOW(entry, set_request(flow, segment, request); flow->first = FIRST_MOVED;
			   flow->state = FLOW_MOVING; flow->answer = 0; flow->cluster = kept_route(segment);
			   flow->mover = (entry)->flow.mover; flow->backend = (entry)->flow.backend);
}

/* The flow moves, and its identity with it. That of its handshake stays known, unless a newer SYN was seen: its first
 * request may come again. */
static __always_inline void keep_origin(struct flow *flow)
{
	if (flow->syn_seen == SYN_MOVED || (flow->syn_seen == SYN_NEWEST && flow->syn_isn != flow->isn))
		return;
	flow->syn_isn = flow->isn;
	flow->syn_seen = SYN_MOVED;
}

/* The request with these numbers goes to another backend without the old one, which is down. */
static __always_inline int note_adoption(const struct entry *entry, const struct segment *segment,
					 const struct request *request)
{
	return CHANGE_FLOW(entry, set_request(flow, segment, request); flow->first = FIRST_MOVED;
			   keep_origin(flow); flow->isn = segment->seq - 1; flow->cookie = segment->ack - 1;
			   flow->cluster = kept_route(segment);
			   flow->mover = (entry)->flow.mover; flow->backend = (entry)->flow.backend);
}

static __always_inline int note_order_again(const struct entry *entry)
{
	return CHANGE_FLOW(entry, flow->answer++);
}

/* The request with these numbers has moved the flow. */
static __always_inline int note_moved(const struct entry *entry, __u32 seq, __u32 ack)
{
	return CHANGE_FLOW(entry, keep_origin(flow); flow->state = FLOW_OPEN; flow->isn = seq - 1; flow->cookie = ack - 1;
			   flow->request_ack = ack);
}
