/* SPDX-License-Identifier: GPL-2.0-only */
/* One of everything that rauta.bpf speaks: types, constants, maps of every kind, and programs small enough to predict. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "GPL";

/* ---- types -------------------------------------------------------------------------------------- */

enum colour { RED, GREEN = 5, BLUE };
enum temperature { COLD = -40, WARM = 20 };
enum huge { TINY = 1, ENORMOUS = 0x123456789abcdef0ULL };
enum deep { ABYSS = -0x123456789abcdef0LL };

typedef const volatile __u16 quiet_u16;

struct pair {
	__u32 left;
	__u32 right;
};

union either {
	__u32 whole;
	__u8 bytes[4];
};

struct everything {
	__u8 small;
	/* three bytes of padding */
	__s32 below;
	__u64 large;
	bool truth;
	char text[7];
	quiet_u16 port;
	__u16 slots[3];
	enum colour colour;
	struct pair pairs[2];
	union either either;
	union {
		__u32 number;
		struct pair *pointer;
	};
};

struct with_bitfield {
	__u32 ordinary;
	__u32 narrow : 3;
};

struct with_float {
	double ratio;
};

/* ---- constants and variables ----------------------------------------------------------------------- */

const volatile __u32 answer = 42;
const volatile struct pair constants = { 1, 2 };
const volatile char greeting[8] = "hello";
const volatile enum colour paint = GREEN;

__u64 seen;	/* .bss */
__u32 tally = 7; /* .data */

/* Used as a type somewhere, or clang leaves them out of the BTF. */
const volatile enum temperature temperature = COLD;
const volatile enum huge huge = TINY;
const volatile enum deep deep = ABYSS;
const volatile struct with_bitfield *with_bitfield = 0;
const volatile struct with_float *with_float = 0;

/* ---- maps ------------------------------------------------------------------------------------------ */

#define TABLE(map, kind, entries, key_type, value_type)	\
	struct {					\
		__uint(type, kind);			\
		__uint(max_entries, entries);		\
		__type(key, key_type);			\
		__type(value, value_type);		\
	} map SEC(".maps")

TABLE(numbers, BPF_MAP_TYPE_ARRAY, 65536, __u32, __u64);
TABLE(records, BPF_MAP_TYPE_HASH, 65536, struct pair, struct everything);
TABLE(likewise, BPF_MAP_TYPE_HASH, 16, struct pair, union either);
TABLE(recent, BPF_MAP_TYPE_LRU_HASH, 1024, struct pair, __u32);
TABLE(counters, BPF_MAP_TYPE_PERCPU_ARRAY, 4, __u32, __u64);
TABLE(odd_counters, BPF_MAP_TYPE_PERCPU_HASH, 64, __u32, struct pair);
TABLE(recent_counters, BPF_MAP_TYPE_LRU_PERCPU_HASH, 64, __u32, __u32);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__uint(key_size, 6);
	__uint(value_size, 3);
} untyped SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 16);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct pair);
	__type(value, __u32);
} prefixes SEC(".maps");

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, struct pair);
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 4);
	__type(key, __u32);
	__array(values, struct inner);
} tables SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} events SEC(".maps");

/* ---- programs -------------------------------------------------------------------------------------- */

static void count(__u32 counter)
{
	__u64 *value = bpf_map_lookup_elem(&counters, &counter);

	if (value)
		(*value)++;
}

/* Returns the constants' sum, and keeps it in .bss. */
SEC("xdp")
int read_constants(struct xdp_md *ctx)
{
	seen = answer + constants.right + greeting[0] + paint;
	return seen;
}

/* Grows the packet by eight bytes in front, all 0xee. */
SEC("xdp")
int grow(struct xdp_md *ctx)
{
	__u64 *start;

	if (bpf_xdp_adjust_head(ctx, -8))
		return XDP_ABORTED;
	start = (void *)(long)ctx->data;
	if ((void *)(start + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	*start = 0xeeeeeeeeeeeeeeeeULL;
	return XDP_TX;
}

/* The right number of table 1's first entry. */
SEC("xdp")
int read_table(struct xdp_md *ctx)
{
	__u32 table = 1, first = 0;
	void *inner = bpf_map_lookup_elem(&tables, &table);
	struct pair *pair = inner ? bpf_map_lookup_elem(inner, &first) : 0;

	return pair ? pair->right : 0;
}

SEC("xdp")
int arrived_on(struct xdp_md *ctx)
{
	return ctx->ingress_ifindex << 8 | ctx->rx_queue_index;
}

SEC("xdp")
int count_and_drop(struct xdp_md *ctx)
{
	count(0);
	return XDP_DROP;
}

SEC("xdp")
int count_and_bounce(struct xdp_md *ctx)
{
	count(1);
	return XDP_TX;
}

SEC("xdp")
int pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/* Adds one to the mark, writes a byte and cuts the packet to 20 bytes. */
SEC("tc")
int remark(struct __sk_buff *skb)
{
	__u8 first = 0xaa;

	skb->mark++;
	bpf_skb_store_bytes(skb, 0, &first, sizeof(first), 0);
	return bpf_skb_change_tail(skb, 20, 0) ? TC_ACT_SHOT : TC_ACT_OK;
}

SEC("tc")
int accept(struct __sk_buff *skb)
{
	return TC_ACT_OK;
}

SEC("tc")
int count_and_accept(struct __sk_buff *skb)
{
	count(2);
	return TC_ACT_OK;
}

/* What no packet runs. */
SEC("syscall")
int add(const struct pair *pair)
{
	return pair->left + pair->right;
}

SEC("syscall")
int without_argument(void *ctx)
{
	return 7;
}

/* Puts the first four bytes of the packet into the ring buffer; 1 if there was no room. */
SEC("xdp")
int tell(struct xdp_md *ctx)
{
	__u32 *start = (void *)(long)ctx->data, word;

	if ((void *)(start + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	word = *start;
	return bpf_ringbuf_output(&events, &word, sizeof(word), 0) ? 1 : 0;
}

/* Swaps a pair and returns their sum. */
SEC("syscall")
int swap(struct pair *pair)
{
	__u32 left = pair->left;

	pair->left = pair->right;
	pair->right = left;
	return left + pair->left;
}
