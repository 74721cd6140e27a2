/* SPDX-License-Identifier: MIT */
/*
 * Cables that take time: delay_line DELAY_US REORDER A B [A B ...] joins each pair of interfaces, in both
 * directions, and holds every frame for DELAY_US microseconds. With a probability of REORDER a frame is not
 * held, and so overtakes others.
 *
 * Frames are read and written through packet sockets (packet(7)); their time counts from the kernel's time
 * stamp, not from when this program got to see them, and it does not sleep the last SPIN_NS, since a timer
 * may come that late. They stay in order, apart from those that shall not. When LINE_FRAMES are held,
 * further ones are dropped, as by any queue.
 *
 * Says "joined" when it is ready, and on SIGTERM what it did: {"carried": N, "dropped": N, "reordered": N}.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <arpa/inet.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND	    1000000000LL
#define SPIN_NS	    60000
#define LINE_FRAMES 8192 /* a power of two */
#define FRAME_BYTES 2048
#define MAX_LINES   64
#define BUFFER	    (8 << 20)

struct held {
	int64_t due;
	uint32_t length;
	uint8_t bytes[FRAME_BYTES];
};

/* One direction. */
struct line {
	int from, to;
	uint32_t head, tail; /* frames head..tail are held */
	struct held *frames;
};

static struct line lines[MAX_LINES];
static int line_count;
static int64_t delay;
static uint32_t reorder; /* probability, in 2^-32 */
static uint64_t carried, dropped, reordered;
static volatile sig_atomic_t ended;

static void die(const char *what)
{
	fprintf(stderr, "delay_line: %s: %s\n", what, strerror(errno));
	exit(2);
}

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_REALTIME, &time); /* the clock of the kernel's time stamps */
	return time.tv_sec * SECOND + time.tv_nsec;
}

static uint32_t random_bits(void) /* xorshift64*, Vigna 2016 */
{
	static uint64_t state = 88172645463325252ULL;

	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 2685821657736338717ULL >> 32;
}

static int open_socket(const char *interface)
{
	struct sockaddr_ll address = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL) };
	int fd = socket(AF_PACKET, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1, size = BUFFER;

	address.sll_ifindex = if_nametoindex(interface);
	if (fd < 0 || !address.sll_ifindex)
		die(interface);
	/* Not its own frames, which would go round for ever. */
	if (setsockopt(fd, SOL_PACKET, PACKET_IGNORE_OUTGOING, &one, sizeof(one)) ||
	    setsockopt(fd, SOL_SOCKET, SO_TIMESTAMPNS, &one, sizeof(one)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size)) ||
	    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size)) ||
	    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one)) ||
	    bind(fd, (struct sockaddr *)&address, sizeof(address)))
		die(interface);
	return fd;
}

static void send_now(const struct line *line, const uint8_t *bytes, uint32_t length)
{
	if (send(line->to, bytes, length, 0) == (ssize_t)length)
		carried++;
	else
		dropped++;
}

static int64_t stamp_of(struct msghdr *message)
{
	struct timespec time;

	for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part))
		if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SO_TIMESTAMPNS) {
			memcpy(&time, CMSG_DATA(part), sizeof(time));
			return time.tv_sec * SECOND + time.tv_nsec;
		}
	return now();
}

/* Takes in whatever has arrived. */
static void take_in(struct line *line)
{
	for (;;) {
		static uint8_t spill[FRAME_BYTES];
		bool full = line->tail - line->head == LINE_FRAMES;
		struct held *held = &line->frames[line->tail % LINE_FRAMES];
		char control[64];
		struct iovec part = { full ? spill : held->bytes, FRAME_BYTES };
		struct msghdr message = { .msg_iov = &part,
					  .msg_iovlen = 1,
					  .msg_control = control,
					  .msg_controllen = sizeof(control) };
		ssize_t length = recvmsg(line->from, &message, 0);

		if (length < 0)
			return;
		if (full || message.msg_flags & MSG_TRUNC) {
			dropped++;
		} else if (reorder && random_bits() < reorder) {
			reordered++;
			send_now(line, held->bytes, length);
		} else {
			held->length = length;
			held->due = stamp_of(&message) + delay;
			line->tail++;
		}
	}
}

/* Sends what is due. Returns when the next frame will be, or INT64_MAX. */
static int64_t let_out(struct line *line)
{
	while (line->head != line->tail) {
		struct held *held = &line->frames[line->head % LINE_FRAMES];

		if (held->due > now())
			return held->due;
		send_now(line, held->bytes, held->length);
		line->head++;
	}
	return INT64_MAX;
}

static void add_line(int epoll, int from, int to)
{
	struct line *line = &lines[line_count++];
	struct epoll_event event = { .events = EPOLLIN, .data.ptr = line };

	line->from = from;
	line->to = to;
	line->frames = calloc(LINE_FRAMES, sizeof(*line->frames));
	if (!line->frames || epoll_ctl(epoll, EPOLL_CTL_ADD, from, &event))
		die("epoll_ctl");
}

static void on_signal(int number)
{
	ended = number;
}

static void run(int epoll)
{
	while (!ended) {
		struct epoll_event events[MAX_LINES];
		struct timespec timeout = { 1, 0 };
		int64_t next = INT64_MAX, left;
		int count;

		for (int index = 0; index < line_count; index++) {
			int64_t due = let_out(&lines[index]);

			next = due < next ? due : next;
		}
		if (next != INT64_MAX) {
			left = next - now() - SPIN_NS;
			left = left < 0 ? 0 : left;
			timeout = (struct timespec){ left / SECOND, left % SECOND };
		}
		count = epoll_pwait2(epoll, events, MAX_LINES, &timeout, NULL);
		for (int index = 0; index < count; index++)
			take_in(events[index].data.ptr);
	}
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = on_signal };
	int epoll = epoll_create1(EPOLL_CLOEXEC);

	if (argc < 5 || argc % 2 == 0 || argc - 3 > MAX_LINES) {
		fprintf(stderr, "usage: delay_line DELAY_US REORDER A B [A B ...]\n");
		return 2;
	}
	delay = atof(argv[1]) * 1000;
	reorder = atof(argv[2]) * UINT32_MAX;
	for (int index = 3; index < argc; index += 2) {
		int first = open_socket(argv[index]), second = open_socket(argv[index + 1]);

		add_line(epoll, first, second);
		add_line(epoll, second, first);
	}
	if (prctl(PR_SET_TIMERSLACK, 1) || sigaction(SIGTERM, &action, NULL))
		die("preparing");
	puts("joined");
	fflush(stdout);
	run(epoll);
	printf("{\"carried\": %" PRIu64 ", \"dropped\": %" PRIu64 ", \"reordered\": %" PRIu64 "}\n",
	       carried, dropped, reordered);
	return 0;
}
