/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The request head, copied out of the packet. Inside a map value any position is reachable with a mask
 * instead of a bounds check against data_end, and the verifier follows neither pointers nor values: loops
 * over it stay cheap to check. The copy is one memcpy.
 */
#pragma once

#include "kernel.h"
#include "swar.h"

#define HEAD_CAPACITY 2048 /* power of two, more than PATH_MTU */
#define PREFIXES      32   /* power of two, more than MAX_PREFIX_DEPTH */

struct request {
	__u64 path_hash;
	__u64 host_hash;
	__u64 digest; /* of the whole head */
	__u32 content_length;
	__u16 path; /* offset in head */
	__u16 path_length;
	__u16 host;
	__u16 host_length;
	__u16 host_text; /* bytes of the Host's whole value, with dot and port */
	__u16 authority; /* offset of the target's, if it is in absolute form */
	__u16 authority_length;
	__u16 head_length; /* including the empty line */
	__u8 method;	   /* enum method */
	__u8 version_1_0;
	__u8 depth;	/* segments of the path, at most MAX_PREFIX_DEPTH */
	__u8 hosts;	/* how many Host lines, saturating at 2 */
	__u8 lengths;	/* how many Content-Length lines, saturating at 2 */
	__u8 encoded;	/* there is a Transfer-Encoding */
	__u8 upgrade;	/* there is an Upgrade */
	__u8 oversized; /* Content-Length is beyond what can be followed */
};

struct prefix { /* the path's first d segments */
	__u64 hash;
	__u32 length;
	__u32 reserved;
};

struct path_reader { /* where reading the path stands */
	__u64 hash;
	__u64 bad;     /* not 0: the path holds something that is refused */
	__u64 special; /* not 0: it holds a '%' or a ';' */
	__u32 start;   /* of the path */
	__u32 segment; /* start of the present segment, behind its '/' */
	__u32 at;
	__u32 depth; /* segments that have ended */
	__u32 done;
	__u32 strict; /* the VIP's, see http.h */
};

struct line_reader { /* where reading the header lines stands */
	__u32 at;
	__u32 length;  /* of the head's packet */
	__u32 verdict; /* 0: the empty line was found */
};

struct order { /* to a backend's agent, once it is encapsulated; see order.h */
	__u32 target; /* index of the new backend */
	__u32 cookie;
	__u8 is_head;
	__u8 options;
	__u8 adopts; /* the old backend is down: the order is the new one's */
	__u8 brief;  /* of the request's route, what the outer identification has no room for */
};

struct scratch {
	__u8 head[HEAD_CAPACITY +
		  16]; /* 16: a word may be read at the last position, and zeroes follow the text */
	struct request request;
	struct prefix prefix[PREFIXES];
	struct path_reader path;
	struct line_reader lines;
	struct order order;
	struct flow flow; /* the entry to be, where the 512 bytes of stack have no room for it */
	__u32 zero;	  /* always 0, which the verifier does not know: see forget() */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratch SEC(".maps");

static __always_inline struct scratch *get_scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratch, &zero);
}

static __always_inline __u64 word_at(const struct scratch *scratch, __u32 at)
{
	return *(const __u64 *)(scratch->head + (at & (HEAD_CAPACITY - 1)));
}

static __always_inline __u8 byte_at(const struct scratch *scratch, __u32 at)
{
	return scratch->head[at & (HEAD_CAPACITY - 1)];
}

static __always_inline __u16 pair_at(const struct scratch *scratch, __u32 at)
{
	return *(const __u16 *)(scratch->head + (at & (HEAD_CAPACITY - 1)));
}

/* The last words of a payload of `length` bytes at `data`, which may end in the middle of one. */
static __always_inline void copy_end(struct scratch *scratch, const void *data, const void *end, __u32 at,
				     __u32 length)
{
#pragma unroll
	for (__u32 i = 0; i < 7; i++) {
		if (at + i >= length || data + i + 1 > end)
			return;
		scratch->head[(at + i) & (HEAD_CAPACITY - 1)] = *(const __u8 *)(data + i);
	}
}

/*
 * Copies `length` bytes from `offset` of the frame to scratch.head, and eight zero bytes behind them: every
 * scanner stops there. By words, and not by bpf_xdp_load_bytes: that one's `rep movsb` alone takes longer on
 * some CPUs than reading the head. Global: verified once.
 */
__noinline int load_head(struct xdp_md *ctx, __u32 offset, __u32 length)
{
	const void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct scratch *scratch = get_scratch();
	__u32 at;

	if (!scratch || length == 0 || length > HEAD_CAPACITY - 1 || offset > MAX_HEADERS)
		return -1;
	data += offset;
	for (at = 0; at < HEAD_CAPACITY; at += 8) {
		if (at + 8 > length || data + 8 > end)
			break;
		*(__u64 *)(scratch->head + (at & (HEAD_CAPACITY - 1))) = *(const __u64 *)data;
		data += 8;
	}
	copy_end(scratch, data, end, at, length);
	*(__u64 *)(scratch->head + (length & (HEAD_CAPACITY - 1))) = 0;
	return 0;
}
