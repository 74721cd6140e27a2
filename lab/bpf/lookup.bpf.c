// SPDX-License-Identifier: GPL-2.0-only
/*
 * The Maglev look-up by itself, so often that its time can be told from that of the loop around it: the
 * router's own code (bpf/balance.h) on a table as the router has it. `without` is the same loop with the
 * same hashes, but no look-up.
 */
#include "balance.h"

const volatile __u32 lookups; /* in a run */
const volatile __u32 hot;     /* the same slot each time */

/* Where a loop is. In a map, of whose content the verifier knows nothing: so it need not follow the loop.
 */
struct walk {
	__u64 hash, sum;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct walk);
} walks SEC(".maps");

struct loop {
	struct walk *walk;
};

/* Steps through all slots in an order without pattern (a linear congruential generator, Knuth's MMIX). */
static __always_inline __u64 next_hash(struct walk *walk)
{
	if (!hot)
		walk->hash = walk->hash * 6364136223846793005ULL + 1442695040888963407ULL;
	return walk->hash;
}

static long look_up(__u32 index, struct loop *loop)
{
	__u16 backend = choose_backend(0, next_hash(loop->walk));

	loop->walk->sum += backend;
	loop->walk->hash += backend; /* the next one cannot begin before this one has ended */
	return 0;
}

static long do_not(__u32 index, struct loop *loop)
{
	__u64 bit = next_hash(loop->walk) >> 63;

	loop->walk->sum += bit;
	loop->walk->hash += bit;
	return 0;
}

SEC("xdp")
int with_lookup(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct loop loop = { .walk = bpf_map_lookup_elem(&walks, &zero) };

	if (loop.walk)
		bpf_loop(lookups, look_up, &loop, 0);
	return XDP_PASS;
}

SEC("xdp")
int without(struct xdp_md *ctx)
{
	__u32 zero = 0;
	struct loop loop = { .walk = bpf_map_lookup_elem(&walks, &zero) };

	if (loop.walk)
		bpf_loop(lookups, do_not, &loop, 0);
	return XDP_PASS;
}

/* Inner maps name types that nothing else does; libbpf finds them only here. */
const volatile struct {
	struct maglev_slots maglev_slots;
} contract_types = {};

char _license[] SEC("license") = "GPL";
