/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The router's side of asking (rauta/recovery.py): programs that user space calls. They hold the key, so it need not,
 * and they take the lock of a set of the flow table, which user space cannot.
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

/* Makes an entry, unless there is one by now, or packets keep the set locked: then the client is asked about once
 * more. */
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

SEC("?syscall")
int rauta_take_answer(struct ask_call *call)
{
	struct tuple between = call->between;
	struct ask answer = call->ask;

	if (!is_sealed(&answer, &between))
		return ANSWER_REFUSED;
	if (answer.kind == ASK_NOT_MINE)
		return ANSWER_NOT_MINE;
	return answer.kind == ASK_MINE ? recover_flow(&answer, call->backend) : ANSWER_REFUSED;
}
