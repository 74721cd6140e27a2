/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The router's side of asking (rauta/asking/recovery.py): programs that user space runs by BPF_PROG_TEST_RUN. They hold the
 * key, so it need not, and they take the lock of a set of the flow table, which user space cannot.
 *
 * The one that writes an entry is of type xdp, and never attached: like a packet's it runs with softirqs off, as the
 * lock wants it. A syscall program could lose its CPU while it holds the lock, and packets would meet a locked set.
 *
 * A recovered entry is a state of its own. The backend's kernel knows which byte it expects, nobody knows whether that
 * byte starts a request or lies in a body: so acknowledgements, FIN and RST pass, and data never does.
 */
#pragma once

#include "flow.h"
#include "seal.h"

static __always_inline int knows_tuple(struct flow_set *set, const struct segment *segment)
{
	__u32 tag = flow_tag(segment->hash), way;

	for (way = 0; way < FLOW_WAYS; way++)
		if (set->tag[way] == tag && same_tuple(&set->flow[way].tuple, &segment->tuple))
			return 1;
	return 0;
}

/* Makes an entry, unless there is one by now, or another CPU keeps the set locked: then the connection is asked about
 * once more. */
static __always_inline int add_flow(struct flow_set *set, const struct segment *segment, const struct flow *flow)
{
	int added = 0;

	if (lock_set(set))
		return 0;
	if (!knows_tuple(set, segment)) {
		write_flow(set, segment, flow);
		added = 1;
	}
	unlock_set(set);
	return added;
}

static __always_inline enum answer_taken recover_flow(const struct ask *answer, __u16 backend)
{
	struct segment segment = { .tuple = answer->tuple };
	struct flow flow = {
		.isn = answer->isn,
		.cookie = answer->cookie,
		.request_seq = answer->next,
		.next_request_seq = answer->next,
		.request_ack = answer->ack,
		.body_seq = answer->next,
		.backend = backend,
		.state = FLOW_RECOVERED,
	};
	struct flow_set *set;

	segment.hash = flow_hash(&segment.tuple);
	set = find_set(segment.hash);
	if (!set)
		return ANSWER_REFUSED;
	return add_flow(set, &segment, &flow) ? ANSWER_RECOVERED : ANSWER_LATE;
}

SEC("?syscall")
int rauta_seal_ask(struct ask_call *call)
{
	struct tuple between = call->between;
	struct ask ask = call->ask;
	int failed = ask_tag(&ask, &between, &ask.tag);

	call->ask.tag = ask.tag;
	return failed;
}

SEC("?xdp")
int rauta_take_answer(struct xdp_md *ctx)
{
	struct ask_call call;

	if (bpf_xdp_load_bytes(ctx, 0, &call, sizeof(call)) || !is_sealed(&call.ask, &call.between))
		return ANSWER_REFUSED;
	if (call.ask.kind == ASK_NOT_MINE)
		return ANSWER_NOT_MINE;
	return call.ask.kind == ASK_MINE ? recover_flow(&call.ask, call.backend) : ANSWER_REFUSED;
}
