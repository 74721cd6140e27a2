/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * "Fragmentation needed", said to a client about a packet of its own. In the VIP's name: no other address
 * of the router's is sure to be one that the client's network lets in. Never longer than what caused it.
 */
#pragma once

#include "icmp_error.h"
#include "reply.h"

#define TOLD (IP_LENGTH + TCP_LENGTH) /* of the client's packet: enough for everybody on the way */

/* `sum`: of the excerpt that follows. */
static __always_inline void write_too_big(struct icmp_error *icmp, __u16 mtu, __u64 sum)
{
	icmp->type = ICMP_UNREACHABLE;
	icmp->code = ICMP_FRAGMENTATION_NEEDED;
	icmp->check = 0;
	icmp->unused = 0;
	icmp->mtu = bpf_htons(mtu);
	icmp->check = checksum_fold(checksum_add(sum, icmp, ICMP_LENGTH / 4));
}

/* The client's packet has no room for the outer header: it is turned into the answer. */
static __noinline enum verdict answer_too_big(struct xdp_md *ctx, const struct segment *segment)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	int surplus = segment->frame - ETH_LENGTH - TOLD;
	struct ethhdr *eth = data, turned;
	struct iphdr *ip = (void *)(eth + 1);
	__u64 sum;

	if ((void *)ip + TOLD > end || !(ip->frag_off & IP_DF))
		return DROP_TOO_BIG;
	turned = turned_round(eth);
	sum = checksum_add(0, ip, TOLD / 4);
	if (bpf_xdp_adjust_tail(ctx, -surplus) || bpf_xdp_adjust_head(ctx, -(int)(IP_LENGTH + ICMP_LENGTH)))
		return DROP_NO_ROOM;
	eth = (void *)(long)ctx->data;
	ip = (void *)(eth + 1);
	if ((void *)(ip + 1) + ICMP_LENGTH > (void *)(long)ctx->data_end)
		return DROP_NO_ROOM;
	*eth = turned;
	write_ip(ip, &segment->tuple, IP_LENGTH + ICMP_LENGTH + TOLD, IPPROTO_ICMP);
	write_too_big((void *)(ip + 1), PATH_MTU - IP_LENGTH, sum);
	return TX_TOO_BIG;
}
