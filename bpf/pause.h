/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * In the router's place for some milliseconds, while the flow table goes over to another one (docs/upgrades.md): what
 * is about connections is dropped, and comes again; everything else is passed, as the router passes it. So no program
 * reads or writes either table meanwhile.
 */
#pragma once

#include "encap.h"
#include "observe.h"
#include "packet.h"

/* What the router would take, though it is not TCP: an agent's notice, or ICMP about its packets or a client's. */
static __always_inline int concerns_flows(const struct iphdr *ip)
{
	struct vip_key key = { .address = ip->daddr };

	if (ip->protocol == SHIM_PROTOCOL)
		return 1;
	return ip->protocol == IPPROTO_ICMP && (bpf_map_lookup_elem(&vips, &key) ||
						(ip->daddr & encapsulation_mask) == encapsulation_prefix);
}

static __noinline enum verdict pause_packet(struct xdp_md *ctx, struct outcome *outcome)
{
	struct segment segment = {};
	enum verdict verdict = parse_packet(ctx, &segment);
	const struct iphdr *ip = (void *)(long)ctx->data + ETH_LENGTH;

	*outcome = nothing_known;
	note_outcome(outcome, &segment);
	if (verdict == UNDECIDED)
		return DROP_PAUSED;
	if (verdict != PASS_NOT_TCP || (void *)(ip + 1) > (void *)(long)ctx->data_end || !concerns_flows(ip))
		return verdict;
	return DROP_PAUSED;
}

SEC("?xdp")
int rauta_pause(struct xdp_md *ctx)
{
	struct observer *observer = get_observer();
	int tagged = has_tag(ctx);
	enum verdict verdict = DROP_NO_ROOM;

	if (!observer)
		return XDP_ABORTED;
	observer->outcome = nothing_known;
	if (!tagged || !take_tags(ctx, &observer->tags))
		verdict = pause_packet(ctx, &observer->outcome);
	if (tagged && verdict < VERDICT_DROP && put_tags(ctx, &observer->tags))
		verdict = DROP_NO_ROOM;
	observe(observer, verdict, 0);
	return verdict < VERDICT_DROP ? XDP_PASS : XDP_DROP;
}
