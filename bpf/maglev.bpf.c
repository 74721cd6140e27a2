// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fills Maglev tables. Nothing of it is on the packet path: the control plane runs it for each table that
 * it makes, because a table is a quarter of a million steps of a few machine instructions each, which take
 * forty milliseconds in Python and two here. rauta/maglev.py defines what comes out.
 *
 * Each run of `fill` goes some rounds further, so that even a table of 4,096 backends holds no CPU for
 * long. `deliver` then copies the table into an inner map.
 */
#include "kernel.h"
#include "maglev.h"

#define ATTEMPTS 16 /* slots that a call of try_slots looks at */
#define BACKENDS 16 /* that a call of take_turns looks at */
#define TARGETS	 64 /* MAX_TABLES in rauta/maglev.py */

struct preference {    /* of one backend, in the order in which turns are taken */
	__u32 slot;    /* the next one that it would like */
	__u32 skip;    /* from there to the one after it, 1..MAGLEV_SLOTS - 1 */
	__u32 weight;  /* above 0 */
	__u32 turns;   /* taken so far */
	__u32 backend; /* what its slots say */
};

struct filling {
	__u32 backends;		 /* how many take turns */
	__u32 heaviest;		 /* the largest weight */
	__u32 rounds;		 /* in a run */
	__u32 round;		 /* the next one */
	__u32 taken;		 /* slots */
	__u32 due[MAX_BACKENDS]; /* the round in which each one takes its next turn */
};

struct table { /* an inner map of `clusters`, in one piece */
	__u16 backend[4 * MAGLEV_PACKED];
};

struct delivery {
	__u32 target; /* index in `targets` */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_BACKENDS);
	__type(key, __u32);
	__type(value, struct preference);
} preferences SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct filling);
} fillings SEC(".maps");

struct { /* the one that is being filled */
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct table);
} tables SEC(".maps");

struct { /* inner maps to be delivered to */
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, TARGETS);
	__type(key, __u32);
	__array(values, struct maglev_table);
} targets SEC(".maps");

struct turn {
	struct table *table;
	struct preference *preference;
};

/* Where loops stand is in maps, of whose content the verifier knows nothing: it need not follow them. */
static long try_slots(__u32 number, struct turn *turn)
{
	struct preference *preference = turn->preference;
	__u32 slot = preference->slot, skip = preference->skip;

	for (__u32 i = 0; i < ATTEMPTS; i++) {
		if (slot >= MAGLEV_SLOTS)
			return 1;
		if (turn->table->backend[slot] == NO_BACKEND) {
			preference->slot = slot;
			return 1;
		}
		slot += skip;
		if (slot >= MAGLEV_SLOTS)
			slot -= MAGLEV_SLOTS;
	}
	preference->slot = slot;
	return 0;
}

/* 1: all slots are taken. Global: verified once. */
__noinline int take_turn(__u32 index)
{
	struct preference *preference = bpf_map_lookup_elem(&preferences, &index);
	__u32 zero = 0;
	struct filling *filling = bpf_map_lookup_elem(&fillings, &zero);
	struct turn turn = { .table = bpf_map_lookup_elem(&tables, &zero), .preference = preference };

	if (!preference || !preference->weight || !filling || !turn.table)
		return 1;
	if (!try_slots(0, &turn)) /* mostly enough */
		bpf_loop(MAGLEV_SLOTS / ATTEMPTS + 1, try_slots, &turn, 0);
	if (preference->slot >= MAGLEV_SLOTS)
		return 1;
	turn.table->backend[preference->slot] = preference->backend;
	preference->turns++;
	filling->due[index & (MAX_BACKENDS - 1)] =
		((__u64)preference->turns * filling->heaviest + preference->weight - 1) /
		preference->weight;
	filling->taken++;
	return filling->taken >= MAGLEV_SLOTS;
}

/* Where weights differ much, most have no turn in most rounds: that must cost little. */
static long take_turns(__u32 number, struct filling **where)
{
	struct filling *filling = *where;
	__u32 first = number * BACKENDS, *due = filling->due;

	if (first > MAX_BACKENDS - BACKENDS)
		return 1;
	due += first;
	for (__u32 i = 0; i < BACKENDS; i++) {
		if (first + i >= filling->backends)
			return 1;
		if (due[i] <= filling->round && take_turn(first + i))
			return 1;
	}
	return 0;
}

static long go_round(__u32 number, struct filling **where)
{
	struct filling *filling = *where;

	bpf_loop(filling->backends / BACKENDS + 1, take_turns, where, 0);
	filling->round++;
	return filling->taken >= MAGLEV_SLOTS;
}

/* 1: the table is full. */
SEC("syscall")
int fill(void *ctx)
{
	__u32 zero = 0;
	struct filling *filling = bpf_map_lookup_elem(&fillings, &zero);

	if (!filling)
		return 0;
	bpf_loop(filling->rounds, go_round, &filling, 0);
	return filling->taken >= MAGLEV_SLOTS;
}

struct copy {
	const struct table *table;
	void *target;
};

static long copy_slots(__u32 entry, struct copy *copy)
{
	struct maglev_slots *slots = bpf_map_lookup_elem(copy->target, &entry);

	if (!slots || entry >= MAGLEV_PACKED)
		return 1;
	__builtin_memcpy(slots, copy->table->backend + 4 * entry, sizeof(*slots));
	return 0;
}

/* 1: the target has the table. 0: there is no target. */
SEC("syscall")
int deliver(const struct delivery *delivery)
{
	__u32 zero = 0, target = delivery->target;
	struct copy copy = {
		.table = bpf_map_lookup_elem(&tables, &zero),
		.target = bpf_map_lookup_elem(&targets, &target),
	};

	if (!copy.table || !copy.target)
		return 0;
	bpf_loop(MAGLEV_PACKED, copy_slots, &copy, 0);
	return 1;
}

/* Inner maps name types that nothing else does; libbpf finds them only here. */
const volatile struct {
	struct maglev_slots maglev_slots;
} contract_types = {};

char _license[] SEC("license") = "GPL";
