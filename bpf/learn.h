/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * "Fragmentation needed" about what the server sent: the network has sent it to the VIP, and the router on
 * to here. Translated like everything else, inside as well, it tells the server's kernel to send smaller
 * packets. The kernel believes it only if the number inside is of a segment that is on its way.
 */
#pragma once

#include "icmp_error.h"
#include "socket.h"
#include "translate.h"

struct report { /* all that has to be there, behind the Ethernet header */
	struct iphdr ip;
	struct icmp_error icmp;
	struct excerpt excerpt;
};

static __always_inline int carries_icmp(const struct __sk_buff *skb)
{
	__u8 protocol = 0;

	bpf_skb_load_bytes(skb, ETH_LENGTH + offsetof(struct iphdr, protocol), &protocol, sizeof(protocol));
	return protocol == IPPROTO_ICMP;
}

/* What is there in one piece; NULL if the packet is too short. */
static __always_inline struct report *find_report(struct __sk_buff *skb)
{
	struct report *report = (void *)(long)skb->data + ETH_LENGTH;

	if ((void *)(report + 1) > (void *)(long)skb->data_end) {
		if (bpf_skb_pull_data(skb, ETH_LENGTH + sizeof(*report)))
			return NULL;
		report = (void *)(long)skb->data + ETH_LENGTH;
		if ((void *)(report + 1) > (void *)(long)skb->data_end)
			return NULL;
	}
	return report;
}

static __always_inline int is_consistent(const struct __sk_buff *skb, const struct report *report)
{
	__u32 length = bpf_ntohs(report->ip.tot_len);

	return report->ip.version == 4 && report->ip.ihl == 5 && report->ip.protocol == IPPROTO_ICMP &&
	       !(report->ip.frag_off & IP_FRAGMENT) && length >= sizeof(*report) &&
	       ETH_LENGTH + length <= skb->len && is_fragmentation_needed(&report->icmp) &&
	       is_excerpt(&report->excerpt) && report->excerpt.ip.saddr == report->ip.daddr;
}

/* Has the VIP's connection that the router means a socket on the tuple? */
static __always_inline int has_connection(struct __sk_buff *skb, const struct tuple *local,
					  const struct vip_key *vip, __u16 id)
{
	struct bpf_sock *sk = find_socket(skb, local);
	const struct mapping *known = NULL;
	struct tcp_sock *tcp;
	int meant;

	if (!sk)
		return 0;
	tcp = sk->state == BPF_TCP_LISTEN ? NULL : (void *)bpf_skc_to_tcp_sock(sk);
	if (tcp) {
		known = bpf_sk_storage_get(&connections, tcp, NULL, 0);
		if (!known)
			known = bpf_map_lookup_elem(&mappings, local);
	}
	meant = known && known->vip == vip->address && known->vip_port == vip->port &&
		outer_id(known->cookie) == (id & OUTER_ID_CONNECTION);
	bpf_sk_release(sk);
	return meant;
}

/* Each change is made up for by a checksum that covers it, so that a sum which a device has made of the
 * packet stays right. That of the excerpt's IP header makes up for the address in it. */
static __always_inline void translate_report(struct report *report, const struct service *service)
{
	struct iphdr *ip = &report->ip, *about = &report->excerpt.ip;

	report->icmp.check = checksum_replace(report->icmp.check, report->excerpt.source, service->port);
	report->excerpt.source = service->port;
	about->check = checksum_replace(about->check, about->saddr, service->address);
	about->saddr = service->address;
	ip->check = checksum_replace(ip->check, ip->daddr, service->address);
	ip->daddr = service->address;
}

/* Decapsulated, and no TCP. */
static __always_inline enum verdict learn(struct __sk_buff *skb, __be32 outer_destination, __u16 id)
{
	struct report *report = find_report(skb);
	const struct service *service;
	struct vip_key vip = {};
	struct tuple local;

	if (!report || !is_consistent(skb, report))
		return AGENT_DROP_ICMP;
	vip.address = report->ip.daddr;
	vip.port = report->excerpt.source;
	service = bpf_map_lookup_elem(&services, &vip);
	if (!service || service->address != outer_destination)
		return AGENT_DROP_NOT_SERVED;
	local.client = report->excerpt.ip.daddr;
	local.client_port = report->excerpt.destination;
	local.server = service->address;
	local.server_port = service->port;
	if (!has_connection(skb, &local, &vip, id))
		return AGENT_DROP_ICMP;
	translate_report(report, service);
	return AGENT_DELIVERED_ICMP;
}
