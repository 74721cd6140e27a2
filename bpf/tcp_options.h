/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * TCP options (RFC 9293 3.1, RFC 7323, RFC 2018), read as Linux reads them (net/ipv4/tcp_input.c,
 * tcp_parse_options): a malformed length ends the parsing, and what was read before counts.
 *
 * The caller copies the options into `option_bytes`; the parser is a global function that works on that
 * per-CPU map, so that the verifier checks it once and need not follow every combination of options through
 * the rest of the program.
 */
#pragma once

#include "kernel.h"

#define TCP_MAX_OPTIONS 40

struct option_bytes {
	__u8 bytes[64]; /* the options, at most TCP_MAX_OPTIONS */
	__be32 tsval;	/* valid if timestamps */
	__be32 tsecr;
	__u16 mss;   /* 0: absent */
	__u8 wscale; /* COOKIE_NO_WSCALE: absent */
	__u8 sack;
	__u8 timestamps;
	__u8 tsecr_at; /* where it is, if timestamps */
	__u32 zero; /* always 0, see forget() */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct option_bytes);
} option_bytes SEC(".maps");

static __always_inline struct option_bytes *option_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&option_bytes, &zero);
}

#define BYTE(options, at) ((options)->bytes[(at) & 63])
#define BE16(options, at) ((__u16)(BYTE(options, at) << 8 | BYTE(options, (at) + 1)))
#define RAW32(options, at)                                                                                 \
	((__u32)BYTE(options, at) | (__u32)BYTE(options, (at) + 1) << 8 |                                  \
	 (__u32)BYTE(options, (at) + 2) << 16 | (__u32)BYTE(options, (at) + 3) << 24)

static __always_inline void read_option(struct option_bytes *options, __u32 at, __u8 kind, __u8 length)
{
	if (kind == 2 && length == 4) {
		if (BE16(options, at + 2))
			options->mss = BE16(options, at + 2);
	} else if (kind == 3 && length == 3) {
		__u8 shift = BYTE(options, at + 2);

		options->wscale = shift > 14 ? 14 : shift;
	} else if (kind == 4 && length == 2) {
		options->sack = 1;
	} else if (kind == 8 && length == 10) {
		options->timestamps = 1;
		options->tsval = RAW32(options, at + 2);
		options->tsecr = RAW32(options, at + 6);
		options->tsecr_at = at + 6;
	}
}

/* Parses `length` bytes of option_bytes.bytes into the map's other fields. Returns 0, or -1 when there is
 * no map. */
__noinline int parse_tcp_options(__u32 length)
{
	struct option_bytes *options = option_scratch();
	__u32 at = 0;

	if (!options)
		return -1;
	options->mss = 0;
	options->wscale = COOKIE_NO_WSCALE;
	options->sack = 0;
	options->timestamps = 0;
	for (__u32 i = 0; i < TCP_MAX_OPTIONS; i++) {
		__u8 kind, size;

		if (at >= length || at >= TCP_MAX_OPTIONS)
			break;
		kind = BYTE(options, at);
		if (kind == 0)
			break;
		if (kind == 1) {
			at = forget(options, at + 1);
			continue;
		}
		size = BYTE(options, at + 1);
		if (at + 1 >= length || size < 2 || at + size > length)
			break;
		read_option(options, at, kind, size);
		at = forget(options, at + size);
	}
	return 0;
}
