/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What an upgrade needs when struct mapping is another one than before (docs/upgrades.md): what every socket carries goes
 * over from the earlier agent's map to this one's, and so do `mappings`, faster than user space could. For the last of
 * it, some milliseconds, programs that drop what is of connections stand in for both agents.
 *
 * User space reads both layouts, and says for each byte of the new struct which byte of the old one it is.
 */
#pragma once

#include "ask.h"
#include "socket.h"
#include "translate.h"

#define MAX_MAPPING 256 /* bytes, of either version */

const volatile __u16 carried_from[MAX_MAPPING]; /* by byte of struct mapping: 1 + offset in the old one; 0: it is new */

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_sk_storage_map {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	struct sock *sk;
	void *value;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_map_elem {
	struct bpf_iter_meta *meta;
	struct bpf_map *map;
	void *key;
	void *value;
} __attribute__((preserve_access_index));

static __always_inline void convert(struct mapping *mapping, const __u8 *old)
{
	for (__u32 at = 0; at < sizeof(*mapping); at++)
		((__u8 *)mapping)[at] = carried_from[at] ? old[carried_from[at] - 1] : 0;
}

/* To user space: '.' where one went over, '!' where there was no memory. */
static __always_inline int say_carried(struct bpf_iter_meta *meta, int carried)
{
	char said = carried ? '.' : '!';

	bpf_seq_write(meta->seq, &said, sizeof(said));
	return 0;
}

/* For each socket with storage in the earlier map `connections`. */
SEC("?iter/bpf_sk_storage_map")
int rauta_carry(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct mapping blank = {}, *kept;
	const void *old = ctx->value;
	struct sock *sk = ctx->sk;

	if (!sk || !old)
		return 0;
	kept = bpf_sk_storage_get(&connections, sk, &blank, BPF_SK_STORAGE_GET_F_CREATE);
	if (kept)
		convert(kept, old);
	return say_carried(ctx->meta, kept != NULL);
}

/* For each entry of the earlier map `mappings`. */
SEC("?iter/bpf_map_elem")
int rauta_carry_map(struct bpf_iter__bpf_map_elem *ctx)
{
	const struct tuple *key = ctx->key;
	const void *old = ctx->value;
	struct mapping mapping;
	struct tuple local;

	if (!key || !old)
		return 0;
	local = *key;
	convert(&mapping, old);
	return say_carried(ctx->meta, !bpf_map_update_elem(&mappings, &local, &mapping, BPF_ANY));
}

struct endpoint { /* of this host */
	__be32 address;
	__be16 port;
	__u16 serves; /* a VIP leads there */
};

static long compare_service(void *services_map, const void *vip, const struct service *service, struct endpoint *end)
{
	if (service->address != end->address || service->port != end->port)
		return 0;
	end->serves = 1;
	return 1;
}

static __always_inline int serves(__be32 address, __be16 port)
{
	struct endpoint end = { .address = address, .port = port };

	bpf_for_each_map_elem(&services, compare_service, &end, 0);
	return end.serves;
}

/* What only routers and agents send. */
static __always_inline int is_from_routers(struct __sk_buff *skb)
{
	struct {
		struct iphdr ip;
		struct udphdr udp;
	} start;

	if (bpf_skb_load_bytes(skb, ETH_LENGTH, &start, sizeof(start)))
		return 0;
	return start.ip.protocol == SHIM_PROTOCOL || start.ip.protocol == IPPROTO_IPIP || is_ask(&start.ip, &start + 1);
}

/* What the agent would take, or change something for: also direct connections to its servers. */
static __always_inline int concerns_agent(struct __sk_buff *skb, int ingress)
{
	struct headers headers;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return 0;
	if (!find_headers(skb, &headers))
		return ingress && is_from_routers(skb);
	return ingress ? serves(headers.ip->daddr, headers.tcp->dest) : serves(headers.ip->saddr, headers.tcp->source);
}

SEC("?tc")
int rauta_pause_in(struct __sk_buff *skb)
{
	enum verdict verdict = concerns_agent(skb, 1) ? AGENT_DROP_PAUSED : AGENT_PASS;

	count(&no_vip, verdict);
	return verdict == AGENT_PASS ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

SEC("?tc")
int rauta_pause_out(struct __sk_buff *skb)
{
	enum verdict verdict = concerns_agent(skb, 0) ? AGENT_EGRESS_PAUSED : AGENT_EGRESS_PASS;

	count(&no_vip, verdict);
	return verdict == AGENT_EGRESS_PASS ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}
