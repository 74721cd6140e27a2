/* SPDX-License-Identifier: GPL-2.0-only */
/* The table of one cluster: an inner map of `clusters`. */
#pragma once

#include "contract.h"

struct maglev_table {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAGLEV_PACKED);
	__type(key, __u32);
	__type(value, struct maglev_slots);
};
