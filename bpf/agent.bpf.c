// SPDX-License-Identifier: GPL-2.0-only
/*
 * The agent: tc on the backend's own interface. Ingress takes what the router encapsulated to the server's
 * socket, and creates that socket from the first request; egress gives the answers the VIP's address.
 * docs/architecture.md follows a connection through it.
 */
#define VERDICT_ROWS 1 /* a backend's host counts for itself, whichever VIP its packets are for */

#include "deliver.h"
#include "respond.h"
#include "trace_answer.h"
#include "verdict.h"

static const __u32 no_vip;

#include "carry.h"

SEC("tc")
int rauta_agent_ingress(struct __sk_buff *skb)
{
	enum verdict verdict =
		(skb->mark & MARK_MAGIC_MASK) == MARK_MAGIC ? deliver_again(skb) : receive(skb);

	count(&no_vip, verdict);
	offer_arrival(skb, verdict);
	if (verdict > AGENT_ASK_ANSWERED)
		return bpf_redirect_neigh(skb->ifindex, NULL, 0, 0);
	if (verdict >= VERDICT_AGENT_OUT)
		return bpf_redirect(skb->ifindex, 0);
	if (verdict >= VERDICT_AGENT_AGAIN)
		return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
	if (verdict >= VERDICT_AGENT_DROP)
		return TC_ACT_SHOT;
	if ((skb->mark & MARK_MAGIC_MASK) == MARK_MAGIC)
		skb->mark = 0;
	return verdict <= AGENT_PASS_SYN ? TC_ACT_UNSPEC : TC_ACT_OK;
}

SEC("tc")
int rauta_agent_egress(struct __sk_buff *skb)
{
	enum verdict verdict = respond(skb);

	count(&no_vip, verdict);
	return verdict >= AGENT_EGRESS_DROP ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

/* Types that appear in no map: this puts them into the object's BTF for the control plane. */
const volatile struct {
	enum mapping_state mapping_state;
	enum shim_kind shim_kind;
	enum shim_flags shim_flags;
	struct label label;
	struct shim shim;
	struct bond bond;
	struct trace trace;
	enum verdict verdict;
} contract_types = {};

char _license[] SEC("license") = "GPL";
