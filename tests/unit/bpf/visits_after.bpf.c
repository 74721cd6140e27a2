/* SPDX-License-Identifier: GPL-2.0-only */
/* visits.bpf.c after an upgrade. */
#define AFTER
#include "visits.bpf.c"
