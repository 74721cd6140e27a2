/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * VLAN tags (IEEE 802.1Q), one or two, as they stand in the frame where no device has taken them out: they
 * are taken off in front of everything else and put back behind it, so that nothing in between knows of
 * them, and frames without tags pay for one comparison. What leaves through another interface has none.
 */
#pragma once

#include "kernel.h"

#define TAG_LENGTH 4u
#define MAX_TAGS   2

struct tags {
	__u32 length; /* bytes in `tag` that are used */
	__u32 tag[MAX_TAGS];
};

static __always_inline int is_tag(__be16 type)
{
	return type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD);
}

static __always_inline int has_tag(const struct xdp_md *ctx)
{
	const struct ethhdr *eth = (void *)(long)ctx->data;

	return (const void *)(eth + 1) <= (void *)(long)ctx->data_end && is_tag(eth->h_proto);
}

/* Takes the outermost tags off; a third, or one that is cut off, stays. 0, or negative: the frame is as it
 * was. */
static __noinline long take_tags(struct xdp_md *ctx, struct tags *tags)
{
	struct {
		__u8 addresses[2 * ETH_ALEN];
		__u32 tag[MAX_TAGS];
	} start = {};
	__u32 length = TAG_LENGTH;

	if (!tags || bpf_xdp_load_bytes(ctx, 0, &start, 2 * ETH_ALEN + TAG_LENGTH))
		return -1;
	if (!bpf_xdp_load_bytes(ctx, 2 * ETH_ALEN + TAG_LENGTH, &start.tag[1], TAG_LENGTH) &&
	    is_tag((__be16)start.tag[1]))
		length = 2 * TAG_LENGTH;
	if (bpf_xdp_adjust_head(ctx, (int)length))
		return -1;
	tags->tag[0] = start.tag[0];
	tags->tag[1] = start.tag[1];
	tags->length = length;
	return bpf_xdp_store_bytes(ctx, 0, start.addresses, 2 * ETH_ALEN);
}

/* Puts them back behind the addresses that the frame has now. 0, or negative: it can't be sent. */
static __noinline long put_tags(struct xdp_md *ctx, const struct tags *tags)
{
	__u8 addresses[2 * ETH_ALEN];
	__u32 length;

	if (!tags)
		return -1;
	length = bounded_length(tags->length, sizeof(tags->tag));
	if (bpf_xdp_load_bytes(ctx, 0, addresses, sizeof(addresses)) || bpf_xdp_adjust_head(ctx, -(int)length))
		return -1;
	if (bpf_xdp_store_bytes(ctx, 0, addresses, sizeof(addresses)))
		return -1;
	return bpf_xdp_store_bytes(ctx, sizeof(addresses), (void *)tags->tag, length);
}
