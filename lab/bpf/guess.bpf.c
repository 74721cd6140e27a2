// SPDX-License-Identifier: GPL-2.0-only
/*
 * Somebody who sees nothing guesses cookies, millions of them: the router's own check (bpf/cookie.h) in a
 * loop, without the packets around it. The keys are put into `cookie_keys` as into the router's.
 */
#include "cookie.h"

struct guessing {
	struct tuple tuple; /* of the connection that is guessed for */
	__u32 isn;
	__u32 count;  /* guesses in a run */
	__u32 random; /* 0: cookies one after the other, from `first`, `step` apart. 1: each guess is of
		       * another client, port, number and cookie, drawn from `state` */
	__u32 first;  /* advances */
	__u32 step;
	__u64 state;	/* advances */
	__u64 accepted; /* so far */
	__u32 cookie;	/* of the guess that was accepted last, and what it was for */
	struct tuple for_tuple;
	__u32 for_isn;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct guessing);
} guessings SEC(".maps");

/* splitmix64 (Steele, Lea and Flood, OOPSLA '14): each state gives another number. */
static __always_inline __u64 draw(struct guessing *guessing)
{
	__u64 z = guessing->state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

static long guess(__u32 number, struct guessing **where)
{
	struct guessing *guessing = *where;
	struct tuple tuple = guessing->tuple;
	__u32 isn = guessing->isn, cookie;

	if (guessing->random) {
		__u64 numbers = draw(guessing), client = draw(guessing);

		tuple.client = client;
		tuple.client_port = client >> 32;
		isn = numbers >> 32;
		cookie = numbers;
	} else {
		cookie = guessing->first;
		guessing->first += guessing->step;
	}
	if (!cookie_check(&tuple, isn, cookie))
		return 0;
	guessing->accepted++;
	guessing->cookie = cookie;
	guessing->for_tuple = tuple;
	guessing->for_isn = isn;
	return 0;
}

SEC("syscall")
int guess_cookies(void *ctx)
{
	__u32 zero = 0;
	struct guessing *guessing = bpf_map_lookup_elem(&guessings, &zero);

	if (guessing)
		bpf_loop(guessing->count, guess, &guessing, 0);
	return 0;
}

char _license[] SEC("license") = "GPL";
