/* SPDX-License-Identifier: GPL-2.0-only */
/* The router's side of traces: a request that has a backend. */
#pragma once

#include "class.h"
#include "observer.h"
#include "scratch.h"
#include "trace.h"

/* The head is where it was read: the packet may be another one by now. By words, as load_head() does. */
static __always_inline void copy_head(struct traced *traced, const struct scratch *scratch, __u32 length)
{
	for (__u32 at = 0; at < TRACE_HEAD && at < length; at += 8)
		*(__u64 *)(traced->head + at) = *(const __u64 *)(scratch->head + at);
}

static __noinline void trace_route(const struct outcome *outcome, enum verdict verdict)
{
	struct trace_scratch *place = get_trace_scratch();
	const struct scratch *scratch = get_scratch();
	struct trace *trace;

	if (!place || !scratch || !is_traced(&outcome->tuple, outcome->seq) || !may_trace())
		return;
	trace = &place->traced.trace;
	trace->time = bpf_ktime_get_ns();
	trace->tuple = outcome->tuple;
	trace->seq = outcome->seq;
	trace->route = outcome->route;
	trace->backend = outcome->backend;
	trace->head_length = scratch->request.head_length;
	trace->verdict = verdict;
	copy_head(&place->traced, scratch, trace->head_length);
	tell_trace(&place->traced);
}

/* Once the packet is sure to leave. */
static __always_inline void offer_trace(const struct outcome *outcome, enum verdict verdict)
{
	if (trace_below && is_routed(verdict))
		trace_route(outcome, verdict);
}
