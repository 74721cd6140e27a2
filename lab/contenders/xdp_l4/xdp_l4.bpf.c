// SPDX-License-Identifier: GPL-2.0-only
/*
 * The smallest useful L4 balancer: what comes for the VIP goes to the MAC address of one of the backends,
 * chosen by a hash of the client's address and port. The backends own the VIP, too, and answer the client
 * directly.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_BACKENDS 256

const volatile __be32 vip;
const volatile __u32 backend_count;

struct mac {
	__u8 bytes[ETH_ALEN];
	__u8 padding[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_BACKENDS);
	__type(key, __u32);
	__type(value, struct mac);
} backends SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} forwarded SEC(".maps");

SEC("xdp")
int xdp_l4(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = (void *)(eth + 1);
	struct tcphdr *tcp = (void *)(ip + 1);
	__u32 zero = 0, hash;
	struct mac *mac;
	__u64 *count;

	if ((void *)(tcp + 1) > end || eth->h_proto != bpf_htons(ETH_P_IP) || ip->ihl != 5 ||
	    ip->protocol != IPPROTO_TCP || ip->daddr != vip)
		return XDP_PASS;
	hash = (ip->saddr ^ (__u32)tcp->source << 16) * 2654435761U;
	hash = (__u64)hash * backend_count >> 32;
	mac = bpf_map_lookup_elem(&backends, &hash);
	count = bpf_map_lookup_elem(&forwarded, &zero);
	if (!mac || !count)
		return XDP_ABORTED;
	__builtin_memcpy(eth->h_source, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, mac->bytes, ETH_ALEN);
	++*count;
	return XDP_TX;
}

char _license[] SEC("license") = "GPL";
