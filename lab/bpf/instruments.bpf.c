// SPDX-License-Identifier: GPL-2.0-only
/*
 * The lab's own XDP programs: bare decisions (what a frame costs before anybody looks at it, and what a
 * veth's peer needs so that frames sent back with XDP_TX arrive), and the replayer, which makes a frame
 * anew before each run of the program under test.
 */
#include "cookie.h"

SEC("xdp")
int xdp_pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

SEC("xdp")
int xdp_tx(struct xdp_md *ctx)
{
	return XDP_TX;
}

SEC("xdp")
int xdp_drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

/*
 * The replayer. Live frames (BPF_F_TEST_XDP_LIVE_FRAMES) come round again as the program under test has
 * left them, encapsulated or answered: measuring with them as they are would measure something else. So
 * this program runs first, writes the request anew, and calls the program under test.
 *
 * Requests come from `ports` client ports in turn. In each cycle a port either opens a new connection,
 * with the cookie that the router would have given it, or says the next request on the connection that it
 * has.
 */
#define REPLAY_FIRST_PORT 2048
#define REPLAY_CAPACITY	  256

enum replay_mode { REPLAY_FIRST_REQUEST = 0, REPLAY_NEXT_REQUEST = 1 };

struct replay {
	__u32 mode;    /* enum replay_mode */
	__u32 length;  /* of the frame */
	__u32 payload; /* bytes of the request in it */
	__u32 options; /* the low byte of cookies */
	__u32 salt;    /* of the connections' numbers, so that they are not those of an earlier sample */
	__u32 ports;	 /* how many client ports take turns */
	__u64 position;		     /* how many frames were made */
	__u64 failed;		     /* how many were not */
	__u8 frame[REPLAY_CAPACITY]; /* Ethernet, IPv4 and TCP with any ports and numbers, and the request
				      */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct replay);
} replays SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} under_test SEC(".maps");

static __always_inline int write_numbers(struct xdp_md *ctx, const struct replay *replay)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 port = replay->position % replay->ports, cycle = replay->position / replay->ports, zero = 0;
	const struct cookie_keys *keys = bpf_map_lookup_elem(&cookie_keys, &zero);
	struct iphdr *ip = data + ETH_LENGTH;
	struct tcphdr *tcp = (void *)(ip + 1);
	__u32 isn = replay->salt + port * 2654435761U, later = 0;
	struct tuple tuple;

	if ((void *)(tcp + 1) > end || !keys)
		return -1;
	if (replay->mode == REPLAY_FIRST_REQUEST)
		isn += cycle * 1000003;
	else
		later = (cycle + 1) * replay->payload;
	tcp->source = bpf_htons(REPLAY_FIRST_PORT + port);
	tuple.client = ip->saddr;
	tuple.server = ip->daddr;
	tuple.client_port = tcp->source;
	tuple.server_port = tcp->dest;
	tcp->seq = bpf_htonl(isn + 1 + later);
	tcp->ack_seq = bpf_htonl(cookie_compute(keys, &tuple, isn, replay->options) + 1);
	return 0;
}

SEC("xdp")
int replay(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct replay *replay = bpf_map_lookup_elem(&replays, &zero);

	if (!replay)
		return XDP_ABORTED;
	if (!bpf_xdp_store_bytes(ctx, 0, replay->frame, bounded_length(replay->length, REPLAY_CAPACITY)) &&
	    !write_numbers(ctx, replay)) {
		replay->position++;
		bpf_tail_call(ctx, &under_test, 0);
	}
	replay->failed++;
	return XDP_ABORTED;
}

char _license[] SEC("license") = "GPL";
