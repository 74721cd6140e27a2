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
 * Counts the frames of at least `counted_length` bytes and takes them off the wire: what arrived. Attached
 * where a load ends, behind whatever brought it there.
 */
const volatile __u32 counted_length = 60;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} arrived SEC(".maps");

SEC("xdp")
int xdp_count(struct xdp_md *ctx)
{
	__u32 zero = 0;
	__u64 *count = bpf_map_lookup_elem(&arrived, &zero);

	if (ctx->data_end - ctx->data < counted_length)
		return XDP_PASS;
	if (count)
		++*count;
	return XDP_DROP;
}

/*
 * The replayer. Live frames (BPF_F_TEST_XDP_LIVE_FRAMES) come round again as the program under test has
 * left them, encapsulated or answered: measuring with them as they are would measure something else. So
 * this program runs first, writes the frame anew, and calls the program under test.
 *
 * Frames come from `flows` connections in turn: REPLAY_PORTS client ports of as many client addresses as it
 * takes. What a connection says depends on the mode; all numbers fit, and so do the checksums. Only a flood
 * says anything: its numbers are drawn, the same for the same salt, and none of them was ever agreed with
 * anybody.
 */
#define REPLAY_FIRST_PORT 2048
#define REPLAY_PORTS	  61440
#define REPLAY_CAPACITY	  512

enum replay_mode {
	REPLAY_FIRST_REQUEST = 0, /* a new connection: its first packet after the handshake */
	REPLAY_NEXT_REQUEST = 1,  /* a further request on the connection of the cycle before */
	REPLAY_SYN = 2,
	REPLAY_LATER = 3, /* a packet without payload on a connection that has had its first request */
	REPLAY_FLOOD = 4, /* the frame from anybody: address, port and numbers are drawn anew for each */
};

struct replay {
	__u32 mode;	/* enum replay_mode */
	__u32 length;	/* of the frame */
	__u32 payload;	/* bytes of the request in it */
	__u32 options;	/* the low byte of cookies */
	__u32 salt;	/* of the connections' numbers, so that they are not those of an earlier sample */
	__u32 flows;	/* how many connections take turns; of a flood, how many client addresses there are */
	__u32 ports;	/* of a flood: how many ports each has; 0: only the frame's own */
	__u64 position; /* how many frames were made */
	__u64 failed;	/* how many could not be */
	__u64 period;	/* of a flood: ns from one frame to the next; 0: as fast as they can be made */
	__u64 due;	/* when the next one is */
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

/* What differs from frame to frame, in the order of the wire but for the address. */
struct numbers {
	__be32 client;
	__be16 source, dest;
	__be32 seq, ack;
};

/* The connection whose turn it is, and what it says next: it has got answers as long as what it has said. */
static __always_inline int next_numbers(const struct replay *replay, const struct iphdr *ip,
					const struct tcphdr *tcp, struct numbers *numbers)
{
	__u32 flow = replay->position % replay->flows, cycle = replay->position / replay->flows, zero = 0;
	const struct cookie_keys *keys = bpf_map_lookup_elem(&cookie_keys, &zero);
	__u32 isn = replay->salt + flow * 2654435761U, said = 0;
	struct tuple tuple;

	if (!keys)
		return -1;
	if (replay->mode == REPLAY_NEXT_REQUEST)
		said = (cycle + 1) * replay->payload;
	else if (replay->mode == REPLAY_LATER)
		said = replay->payload;
	else
		isn += cycle * 1000003;
	tuple.client = bpf_htonl(bpf_ntohl(ip->saddr) + flow / REPLAY_PORTS);
	tuple.server = ip->daddr;
	tuple.client_port = bpf_htons(REPLAY_FIRST_PORT + flow % REPLAY_PORTS);
	tuple.server_port = tcp->dest;
	numbers->client = tuple.client;
	numbers->source = tuple.client_port;
	numbers->dest = tcp->dest;
	numbers->seq = bpf_htonl(replay->mode == REPLAY_SYN ? isn : isn + 1 + said);
	numbers->ack = 0;
	if (replay->mode != REPLAY_SYN)
		numbers->ack = bpf_htonl(cookie_compute(keys, &tuple, isn, replay->options) + 1 + said);
	return 0;
}

#define CATCH_UP_NS 500000 /* what could not be sent in time longer ago than that is not made up for */

/* Has the next frame's time come? Until then the kernel asks again and again: there is nothing to wait with in
 * a program, and a flood is to be steady. */
static __always_inline int is_due(struct replay *replay)
{
	__u64 now;

	if (replay->mode != REPLAY_FLOOD || !replay->period)
		return 1;
	now = bpf_ktime_get_ns();
	if (now < replay->due)
		return 0;
	if (now - replay->due > CATCH_UP_NS)
		replay->due = now - CATCH_UP_NS;
	replay->due += replay->period;
	return 1;
}

/* splitmix64 (Vigna 2015), of the frame's place in the sequence: a test knows what it gets. */
static __always_inline __u64 drawn(const struct replay *replay, __u64 which)
{
	__u64 bits = ((__u64)replay->salt << 32) + (2 * replay->position + which) * 0x9e3779b97f4a7c15ULL;

	bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9ULL;
	bits = (bits ^ bits >> 27) * 0x94d049bb133111ebULL;
	return bits ^ bits >> 31;
}

/* Of a frame without acknowledgement (a SYN) it stays 0. */
static __always_inline void drawn_numbers(const struct replay *replay, const struct numbers *frame,
					  struct numbers *numbers)
{
	__u64 who = drawn(replay, 0), says = drawn(replay, 1);

	*numbers = *frame;
	numbers->client = bpf_htonl(bpf_ntohl(frame->client) + (__u32)who % replay->flows);
	if (replay->ports)
		numbers->source = bpf_htons(REPLAY_FIRST_PORT + (__u32)(who >> 32) % replay->ports);
	numbers->seq = (__be32)says;
	if (frame->ack)
		numbers->ack = (__be32)(says >> 32);
}

static __always_inline __sum16 fold(__s64 sum)
{
	__u32 folded = (sum & 0xffff) + (sum >> 16 & 0xffff);

	return ~((folded & 0xffff) + (folded >> 16));
}

static __always_inline int write_numbers(struct xdp_md *ctx, const struct replay *replay)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + ETH_LENGTH;
	struct tcphdr *tcp = (void *)(ip + 1);
	struct numbers before, after;

	if ((void *)(tcp + 1) > end)
		return -1;
	before = (struct numbers){ ip->saddr, tcp->source, tcp->dest, tcp->seq, tcp->ack_seq };
	if (replay->mode == REPLAY_FLOOD)
		drawn_numbers(replay, &before, &after);
	else if (next_numbers(replay, ip, tcp, &after))
		return -1;
	ip->check = fold(bpf_csum_diff(&before.client, 4, &after.client, 4, ~ip->check & 0xffff));
	tcp->check = fold(bpf_csum_diff((void *)&before, sizeof(before), (void *)&after, sizeof(after),
					~tcp->check & 0xffff));
	ip->saddr = after.client;
	tcp->source = after.source;
	tcp->seq = after.seq;
	tcp->ack_seq = after.ack;
	return 0;
}

SEC("xdp")
int replay(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct replay *replay = bpf_map_lookup_elem(&replays, &zero);

	if (!replay || !replay->flows)
		return XDP_ABORTED;
	if (!is_due(replay))
		return XDP_DROP;
	if (!bpf_xdp_store_bytes(ctx, 0, replay->frame, bounded_length(replay->length, REPLAY_CAPACITY)) &&
	    !write_numbers(ctx, replay)) {
		replay->position++;
		bpf_tail_call(ctx, &under_test, 0);
	}
	replay->failed++;
	return XDP_ABORTED;
}

char _license[] SEC("license") = "GPL";
