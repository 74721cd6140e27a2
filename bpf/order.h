/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The router's side of moving a connection (docs/handover.md): the request goes to the old backend's agent, with the
 * order to hand the connection over to the new one; and the agent's word that it has done so.
 *
 * Until that comes, everything of the connection goes by the old backend, who hands it on. The request itself does so
 * as long as it may have to be sent again: only the old backend knows whether it has been handed over.
 */
#pragma once

#include "age.h"
#include "encap.h"
#include "flow.h"
#include "shim.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_CLUSTERS * MEMBER_WORDS);
	__type(key, __u32);
	__type(value, __u64);
} members SEC(".maps");

/* Is the backend in the cluster, with a weight? A connection stays with such a one, however the weights change. */
static __always_inline int is_member(__u32 cluster, __u32 backend)
{
	__u32 index = cluster * MEMBER_WORDS + backend / 64;
	const __u64 *word = bpf_map_lookup_elem(&members, &index);

	return word && *word >> (backend & 63) & 1;
}

static __always_inline int is_configured(__u32 index)
{
	const struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	return backend && backend->address;
}

static __always_inline int is_down(__u32 index)
{
	const struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	return backend && backend->down;
}

static __always_inline int is_given_up(__u32 index)
{
	const struct backend *backend = bpf_map_lookup_elem(&backends, &index);

	return backend && backend->down >= BACKEND_GIVEN_UP;
}

/* Whoever has the same address is the same host: its agent has one server for the VIP. */
static __always_inline int is_same_host(__u32 one, __u32 other)
{
	const struct backend *a = bpf_map_lookup_elem(&backends, &one);
	const struct backend *b = bpf_map_lookup_elem(&backends, &other);

	return a && b && a->address == b->address;
}

/* Where the flow's next request goes, which is routed to `cluster`: a backend's index, or NO_BACKEND. */
static __always_inline __u16 next_backend(const struct flow *flow, __u32 cluster, __u64 hash)
{
	__u16 chosen;

	if (is_member(cluster, flow->backend))
		return flow->backend;
	chosen = choose_backend(cluster, hash);
	if (chosen == NO_BACKEND) /* a cluster without weights keeps what it has */
		return cluster == route_cluster(flow->cluster) && !is_down(flow->backend) ? flow->backend : NO_BACKEND;
	return is_same_host(chosen, flow->backend) ? flow->backend : chosen;
}

/* What the client has last heard of the old socket's clock; 0: nothing, or not where every system writes it. */
static __always_inline __u32 heard_clock(const struct shimmed *packet, const void *end)
{
	const __be32 *option = (const void *)(packet + 1);

	if (packet->tcp.doff < 8 || (const void *)(option + 3) > end || option[0] != ALIGNED_TIMESTAMPS)
		return 0;
	return bpf_ntohl(option[2]);
}

/* What scratch.order says, in front of the packet that stands behind it; 0, or -1. */
static __noinline int write_order(struct xdp_md *ctx)
{
	struct shimmed *packet = (void *)(long)ctx->data + ETH_LENGTH;
	const struct scratch *scratch = get_scratch();
	struct shim shim = { .version = SHIM_VERSION, .kind = SHIM_MOVE };
	struct bond bond = {};
	const struct backend *backend;

	if (!scratch || (void *)(packet + 1) > (void *)(long)ctx->data_end)
		return -1;
	backend = bpf_map_lookup_elem(&backends, &scratch->order.target);
	if (!backend)
		return -1;
	shim.flags = shim_epoch() | (scratch->order.is_head ? SHIM_HEAD : 0) | scratch->order.brief << SHIM_BRIEF_SHIFT;
	shim.time = shim_clock();
	shim.first = backend->address;
	shim.second = scratch->order.cookie;
	if (scratch->order.adopts) {
		shim.kind = SHIM_ADOPT;
		shim.options = scratch->order.options;
		shim.first = heard_clock(packet, (void *)(long)ctx->data_end);
	}
	bond.tuple.client = packet->ip.saddr;
	bond.tuple.server = packet->ip.daddr;
	bond.tuple.client_port = packet->tcp.source;
	bond.tuple.server_port = packet->tcp.dest;
	bond.seq = bpf_ntohl(packet->tcp.seq);
	bond.ack = bpf_ntohl(packet->tcp.ack_seq);
	bond.from = packet->outer.saddr;
	bond.to = packet->outer.daddr;
	if (seal_shim(&shim, &bond))
		return -1;
	packet->shim = shim;
	return 0;
}

/* Like encapsulate(): to the backend `index`, with room for a shim. */
static __always_inline enum verdict encapsulate_shimmed(struct xdp_md *ctx, struct segment *segment, __u32 index,
							__u16 id)
{
	const struct backend *backend = bpf_map_lookup_elem(&backends, &index);
	int padding = segment->frame - ETH_LENGTH - segment->ip_length;
	struct ethhdr *eth, *inner;

	if (!backend || !backend->address || backend->interface == BACKEND_LOCAL)
		return DROP_NO_BACKEND;
	if (segment->ip_length + IP_LENGTH + SHIM_LENGTH > PATH_MTU)
		return DROP_TOO_BIG;
	if ((padding && bpf_xdp_adjust_tail(ctx, -padding)) ||
	    bpf_xdp_adjust_head(ctx, -(int)(IP_LENGTH + SHIM_LENGTH)))
		return DROP_NO_ROOM;
	eth = (void *)(long)ctx->data;
	inner = (void *)eth + IP_LENGTH + SHIM_LENGTH;
	if ((void *)(inner + 1) > (void *)(long)ctx->data_end)
		return DROP_NO_ROOM;
	write_ethernet(ctx, eth, inner, segment, backend);
	write_outer((void *)(eth + 1), segment, backend->address, id, SHIM_LENGTH);
	return UNDECIDED;
}

/* To `flow->mover`: the connection goes to `flow->backend`; or to that one itself, if the mover is down. Returns
 * `verdict`, or what became of it. The order itself is written later, where the stack has room: finish(). */
static __noinline enum verdict give_order(struct xdp_md *ctx, struct segment *segment, const struct flow *flow,
					  enum verdict verdict)
{
	struct scratch *scratch = get_scratch();
	int adopts = is_down(flow->mover);
	__u32 brief = route_brief(flow->cluster);
	enum verdict failed;

	if (!is_configured(flow->backend))
		return DROP_NO_BACKEND;
	failed = encapsulate_shimmed(ctx, segment, adopts ? flow->backend : flow->mover, brief);
	if (!scratch || failed != UNDECIDED)
		return failed == UNDECIDED ? DROP_NO_ROOM : failed;
	segment->backend = flow->backend;
	scratch->order.target = flow->backend;
	scratch->order.cookie = flow->cookie;
	scratch->order.is_head = flow->is_head;
	scratch->order.brief = brief >> 16;
	scratch->order.options = flow->options;
	scratch->order.adopts = adopts;
	return verdict;
}

/* What an agent says is done. Its segment is the request that moved: what the entry expects it to say. */
static __noinline enum verdict take_notice(struct xdp_md *ctx)
{
	const struct shimmed *packet = (void *)(long)ctx->data + ETH_LENGTH;
	struct segment segment = {};
	struct entry entry;
	struct bond bond = {};
	struct shim shim;

	if ((void *)(packet + 1) > (void *)(long)ctx->data_end || packet->outer.protocol != SHIM_PROTOCOL ||
	    packet->outer.version != 4 || packet->outer.ihl != 5 ||
	    (packet->outer.daddr & encapsulation_mask) != encapsulation_prefix)
		return PASS_NOT_TCP;
	shim = packet->shim;
	segment.tuple.client = packet->ip.saddr;
	segment.tuple.server = packet->ip.daddr;
	segment.tuple.client_port = packet->tcp.source;
	segment.tuple.server_port = packet->tcp.dest;
	bond.tuple = segment.tuple;
	bond.seq = shim.first;
	bond.ack = shim.second;
	bond.from = packet->outer.saddr;
	bond.to = packet->outer.daddr;
	if (shim.kind != SHIM_MOVED || !is_sealed_shim(&shim, &bond))
		return DROP_NOTICE_FORGED;
	segment.hash = flow_hash(&segment.tuple);
	find_flow(&entry, &segment);
	if (entry.kept && entry.flow.state == FLOW_MOVING && entry.flow.request_seq == shim.first &&
	    note_moved(&entry, shim.first, shim.second))
		return DROP_NO_ROOM;
	return DROP_NOTICE;
}
