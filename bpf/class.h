/* SPDX-License-Identifier: GPL-2.0-only */
/* What became of a packet, in half a dozen words. */
#pragma once

#include "kernel.h"

static __always_inline int is_routed(enum verdict verdict)
{
	return verdict == ROUTED_FIRST || verdict == ROUTED_NEXT || verdict == ROUTED_MOVED;
}

static __always_inline enum verdict_class class_of(enum verdict verdict)
{
	if (verdict < VERDICT_DROP)
		return CLASS_PASSED;
	if (verdict < VERDICT_TX)
		return CLASS_DROPPED;
	if (verdict < VERDICT_ENCAPSULATED)
		return CLASS_ANSWERED;
	if (is_routed(verdict))
		return CLASS_ROUTED;
	return verdict < VERDICT_AGENT ? CLASS_FORWARDED : CLASS_FALLBACK;
}
