/* SPDX-License-Identifier: MIT */
/*
 * An open-loop HTTP/1.1 load generator.
 *
 * Requests have slots, R a second, fixed before the first is sent. The latency of each counts from its
 * slot, also when it had to wait because no connection was free: what users feel, who do not stop coming
 * because a server hangs. (A closed loop sends the next request when the last is answered, and so hardly
 * notices: "coordinated omission".) No slot is ever skipped or put off.
 *
 * One thread, epoll, no allocation while it runs. It sleeps until the next slot or answer. Three figures
 * say whether it keeps up, or may be what was measured: "late", how late it sent although the slot had come
 * and a connection was free; "cpu", its share of a CPU; "busy", the share of the time in which it had
 * something to do and so did not sleep, on a CPU or waiting for one. The latter two from the first slot
 * that counts until the last was sent; spinning (--spin) is CPU time, but not business.
 *
 * Prints one JSON object. Times are ns. Histograms have 2048 linear buckets in every power of two, an error
 * below 0.1 %, as [value, count] pairs: "histogram" of the latencies, and "connecting" of the time from the
 * system calls that open a connection until it is established.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND	     1000000000LL
#define HEAD_BYTES   8192
#define READ_BYTES   (1 << 18)
#define EVENTS	     256
#define BATCH	     256
#define HALF_BUCKETS 2048
#define BUCKETS	     (HALF_BUCKETS * 40)

enum state { CLOSED, CONNECTING, IDLE, SENDING, READING_HEAD, READING_BODY };

struct connection {
	int fd;
	enum state state;
	int64_t slot;  /* of the request that is under way */
	int64_t began; /* when its turn came */
	int64_t freed; /* when the one before was over */
	size_t sent;   /* bytes of the request */
	int turn;      /* which of the requests it sends next */
	size_t have;   /* bytes of the answer's head */
	int64_t left;  /* bytes of its body that are still to come */
	bool closing;  /* the server said so */
	int status;
	struct connection *next; /* free ones */
	char head[HEAD_BYTES];
};

struct histogram {
	uint64_t counts[BUCKETS];
	uint64_t total;
};

static struct options {
	struct sockaddr_in to;
	const char *host, *path, *alternate;
	double rate, warmup, duration, drain, timeout, spin;
	long connections, body;
	uint64_t seed;
	bool close, poisson;
} options = { .host = "shop.test",
	      .path = "/",
	      .rate = 1000,
	      .warmup = 0,
	      .duration = 1,
	      .drain = 1,
	      .timeout = 5,
	      .connections = 32,
	      .seed = 7 };

static struct results {
	uint64_t answered, all, unanswered, connect, broken, status, timeout, malformed;
	int64_t last; /* when the last answer to a request that counts had come */
	struct histogram latency, lateness, connecting;
} results;

/* Slots, in ns since an origin: at full precision however long the machine has been up. */
struct schedule {
	int64_t origin;
	double next, end;
};

/* What the generator itself has used so far, in ns. */
struct usage {
	int64_t wall, cpu, idle;
};

static struct connection *all;
static struct connection *spare, *last_spare; /* without a request, the longest first: all take turns */
static char *requests[2]; /* the same twice, unless they alternate */
static size_t request_lengths[2];
static int epoll;
static long under_way;	     /* requests */
static int64_t measure_from; /* slots before are warm-up */
static int64_t idle;	     /* ns with nothing to do */
static char sink[READ_BYTES];

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * SECOND + time.tv_nsec;
}

static void die(const char *what)
{
	fprintf(stderr, "open_loop: %s: %s\n", what, strerror(errno));
	exit(2);
}

static struct usage usage_until_now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
	return (struct usage){ .wall = now(), .cpu = time.tv_sec * SECOND + time.tv_nsec, .idle = idle };
}

/* ---- histogram -------------------------------------------------------------------------------------- */

static unsigned bucket_of(uint64_t value)
{
	unsigned shift = 0;

	while (value >> shift >= 2 * HALF_BUCKETS)
		shift++;
	return shift * HALF_BUCKETS + (value >> shift);
}

/* The middle of a bucket. */
static uint64_t value_of(unsigned bucket)
{
	unsigned shift = bucket < 2 * HALF_BUCKETS ? 0 : bucket / HALF_BUCKETS - 1;
	uint64_t low = (uint64_t)(bucket - shift * HALF_BUCKETS) << shift;

	return low + ((1ULL << shift) >> 1);
}

static void record(struct histogram *histogram, int64_t value)
{
	unsigned bucket = bucket_of(value < 0 ? 0 : value);

	histogram->counts[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
	histogram->total++;
}

static uint64_t quantile(const struct histogram *histogram, double share)
{
	uint64_t needed = ceil(share * histogram->total), seen = 0;

	for (unsigned bucket = 0; bucket < BUCKETS; bucket++) {
		seen += histogram->counts[bucket];
		if (seen && seen >= needed)
			return value_of(bucket);
	}
	return 0;
}

/* ---- connections ------------------------------------------------------------------------------------ */

static bool is_measured(const struct connection *connection)
{
	return connection->slot >= measure_from;
}

static void watch(struct connection *connection, uint32_t events)
{
	struct epoll_event event = { .events = events, .data.ptr = connection };

	if (epoll_ctl(epoll, EPOLL_CTL_MOD, connection->fd, &event))
		die("epoll_ctl");
}

static void make_spare(struct connection *connection)
{
	connection->next = NULL;
	if (spare)
		last_spare->next = connection;
	else
		spare = connection;
	last_spare = connection;
}

static void hang_up(struct connection *connection)
{
	if (connection->fd >= 0)
		close(connection->fd);
	connection->fd = -1;
	connection->state = CLOSED;
}

/* A request is over at that time, whatever became of it: its latency counts, so that no slot goes missing.
 */
static void end_request(struct connection *connection, uint64_t *kind, int64_t time)
{
	under_way--;
	connection->freed = time;
	make_spare(connection);
	if (!is_measured(connection))
		return;
	(*kind)++;
	record(&results.latency, time - connection->slot);
}

static void fail(struct connection *connection, uint64_t *kind)
{
	int64_t time = now();

	hang_up(connection);
	end_request(connection, kind, time);
}

static void send_request(struct connection *connection)
{
	size_t length = request_lengths[connection->turn];

	while (connection->sent < length) {
		ssize_t sent = send(connection->fd, requests[connection->turn] + connection->sent,
				    length - connection->sent, MSG_NOSIGNAL);

		if (sent < 0 && errno == EAGAIN) {
			connection->state = SENDING;
			watch(connection, EPOLLOUT); /* an early answer is read when all is sent */
			return;
		}
		if (sent < 0) {
			fail(connection, &results.broken);
			return;
		}
		connection->sent += sent;
	}
	if (connection->state == SENDING)
		watch(connection, EPOLLIN);
	connection->state = READING_HEAD;
}

static void open_connection(struct connection *connection)
{
	int one = 1;
	struct linger reset = { .l_onoff = 1, .l_linger = 0 };
	struct epoll_event event = { .events = EPOLLOUT, .data.ptr = connection };

	connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (connection->fd < 0)
		die("socket");
	setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (!options.close) /* whatever is left at the end goes with the process, and leaves no TIME_WAIT */
		setsockopt(connection->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event))
		die("epoll_ctl");
	connection->state = CONNECTING;
	if (connect(connection->fd, (struct sockaddr *)&options.to, sizeof(options.to)) &&
	    errno != EINPROGRESS)
		fail(connection, &results.connect);
}

static void start(struct connection *connection, int64_t slot)
{
	under_way++;
	connection->slot = slot;
	connection->began = now();
	connection->sent = connection->have = 0;
	connection->closing = options.close;
	if (connection->state == IDLE)
		send_request(connection);
	else
		open_connection(connection);
}

static void on_connected(struct connection *connection)
{
	int error = 0;
	socklen_t length = sizeof(error);

	getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &length);
	if (error) {
		fail(connection, &results.connect);
		return;
	}
	if (is_measured(connection))
		record(&results.connecting, now() - connection->began);
	connection->state = SENDING;
	send_request(connection);
}

/* ---- answers ---------------------------------------------------------------------------------------- */

static void finish(struct connection *connection)
{
	int64_t time = now();

	results.all++;
	connection->turn ^= 1;
	if (is_measured(connection))
		results.last = time;
	if (connection->closing)
		hang_up(connection);
	else
		connection->state = IDLE;
	end_request(connection, connection->status == 200 ? &results.answered : &results.status, time);
}

/* The value of a header of a complete head, or NULL. */
static const char *header(const char *head, const char *name)
{
	size_t length = strlen(name);

	for (const char *line = strstr(head, "\r\n"); line && strncmp(line, "\r\n\r\n", 4);
	     line = strstr(line + 2, "\r\n"))
		if (!strncasecmp(line + 2, name, length) && line[2 + length] == ':')
			return line + 3 + length + strspn(line + 3 + length, " ");
	return NULL;
}

/* Reads the head's meaning: false if the answer is one that this generator does not delimit. */
static bool understood(struct connection *connection)
{
	const char *length = header(connection->head, "content-length"),
		   *end = header(connection->head, "connection");
	char *rest, minor[2];

	if (sscanf(connection->head, "HTTP/1.%1[01] %3d", minor, &connection->status) != 2 || !length ||
	    header(connection->head, "transfer-encoding"))
		return false;
	connection->left = strtoll(length, &rest, 10);
	connection->closing |= *minor == '0' || (end && !strncasecmp(end, "close", 5));
	return rest > length && *rest == '\r' && connection->left >= 0;
}

static void on_head(struct connection *connection, size_t got)
{
	char *end;
	int64_t beyond;

	connection->have += got;
	connection->head[connection->have] = 0;
	end = strstr(connection->head, "\r\n\r\n");
	if (!end) {
		if (connection->have == HEAD_BYTES - 1)
			fail(connection, &results.malformed);
		return;
	}
	beyond = connection->have - (end + 4 - connection->head);
	if (!understood(connection) || beyond > connection->left) {
		fail(connection, &results.malformed);
		return;
	}
	connection->left -= beyond;
	connection->state = READING_BODY;
	if (!connection->left)
		finish(connection);
}

static void on_readable(struct connection *connection)
{
	while (connection->state == READING_HEAD || connection->state == READING_BODY) {
		bool head = connection->state == READING_HEAD;
		size_t room = head			      ? HEAD_BYTES - 1 - connection->have
			      : connection->left < READ_BYTES ? (size_t)connection->left
							      : READ_BYTES;
		ssize_t got =
			recv(connection->fd, head ? connection->head + connection->have : sink, room, 0);

		if (got < 0 && errno == EAGAIN)
			return;
		if (got <= 0) {
			fail(connection, &results.broken);
			return;
		}
		if (head) {
			on_head(connection, got);
		} else {
			connection->left -= got;
			if (!connection->left)
				finish(connection);
		}
		if ((size_t)got < room)
			return; /* that was all: spares a call that would say EAGAIN */
	}
}

static void on_event(struct connection *connection, uint32_t events)
{
	switch (connection->state) {
	case CONNECTING: on_connected(connection); break;
	case SENDING:
		if (events & (EPOLLERR | EPOLLHUP))
			fail(connection, &results.broken);
		else if (events & EPOLLOUT)
			send_request(connection);
		break;
	case IDLE: hang_up(connection); break; /* costs nobody a request: the next one opens it again */
	case READING_HEAD:
	case READING_BODY: on_readable(connection); break;
	case CLOSED: break;
	}
}

static void give_up_on_slow_ones(int64_t time)
{
	for (long index = 0; index < options.connections; index++) {
		struct connection *one = &all[index];

		if (one->state != IDLE && one->state != CLOSED &&
		    time - one->began > options.timeout * SECOND)
			fail(one, &results.timeout);
	}
}

/* ---- the loop --------------------------------------------------------------------------------------- */

static uint64_t random_bits(void) /* splitmix64, Vigna 2015: any seed will do */
{
	uint64_t bits = options.seed += 0x9e3779b97f4a7c15;

	bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9;
	bits = (bits ^ (bits >> 27)) * 0x94d049bb133111eb;
	return bits ^ (bits >> 31);
}

static double interval(void)
{
	double mean = SECOND / options.rate;

	return options.poisson ? -mean * log1p(-(double)(random_bits() >> 11) / (1ULL << 53)) : mean;
}

static bool is_left(const struct schedule *schedule)
{
	return schedule->next < schedule->end;
}

static int64_t next_slot(const struct schedule *schedule)
{
	return schedule->origin + (int64_t)schedule->next;
}

static int poll_events(struct epoll_event *events, int64_t ns)
{
	struct timespec timeout = { .tv_sec = ns / SECOND, .tv_nsec = ns % SECOND };
	int count = epoll_pwait2(epoll, events, EVENTS, &timeout, NULL);

	if (count < 0 && errno != EINTR)
		die("epoll_pwait2");
	return count > 0 ? count : 0;
}

/* Looks before it sleeps, because only then is it known that it had nothing to do. */
static void wait_for_events(int64_t until)
{
	struct epoll_event events[EVENTS];
	int64_t began = now(), left;
	int count = poll_events(events, 0);

	if (!count && began < until) {
		left = until - began - (int64_t)(options.spin * SECOND);
		if (left > 0)
			count = poll_events(events, left);
		idle += now() - began;
	}
	for (int index = 0; index < count; index++)
		on_event(events[index].data.ptr, events[index].events);
}

/* Sends what is due, as far as connections are free; not everything at once, since answers want to be read,
 * too. */
static void send_due(struct schedule *schedule)
{
	int64_t time = now();

	for (int sent = 0; sent < BATCH && spare && is_left(schedule) && next_slot(schedule) <= time;
	     sent++) {
		struct connection *connection = spare;
		int64_t slot = next_slot(schedule);

		spare = connection->next;
		if (slot >= measure_from)
			record(&results.lateness,
			       time - (connection->freed > slot ? connection->freed : slot));
		start(connection, slot);
		schedule->next += interval();
		time = now();
	}
}

/* What nobody answered, or never could be sent, waited until now. */
static void count_unanswered(struct schedule *schedule)
{
	int64_t time = now();

	for (long index = 0; index < options.connections; index++)
		if (all[index].state != IDLE && all[index].state != CLOSED && is_measured(&all[index])) {
			results.unanswered++;
			record(&results.latency, time - all[index].slot);
		}
	for (; is_left(schedule); schedule->next += interval())
		if (next_slot(schedule) >= measure_from) {
			results.unanswered++;
			record(&results.latency, time - next_slot(schedule));
		}
}

/* Returns what it used between the first slot that counts and the last that it sent. */
static struct usage run(void)
{
	struct schedule schedule = { .origin = now() + SECOND / 100,
				     .end = (options.warmup + options.duration) * SECOND };
	int64_t patience = schedule.origin + (int64_t)(schedule.end + options.drain * SECOND);
	int64_t look = 0, time;
	struct usage before = { 0 }, after = { 0 };

	measure_from = schedule.origin + (int64_t)(options.warmup * SECOND);
	while ((is_left(&schedule) || under_way) && (time = now()) < patience) {
		if (!before.wall && time >= measure_from)
			before = usage_until_now();
		send_due(&schedule);
		if (!after.wall && !is_left(&schedule))
			after = usage_until_now();
		if (time > look) {
			give_up_on_slow_ones(time);
			look = time + SECOND / 10;
		}
		wait_for_events(is_left(&schedule) && spare ? next_slot(&schedule) : time + SECOND / 100);
	}
	if (!after.wall)
		after = usage_until_now();
	if (!before.wall)
		before = after;
	count_unanswered(&schedule);
	return (struct usage){ after.wall - before.wall, after.cpu - before.cpu, after.idle - before.idle };
}

/* ---- in and out ------------------------------------------------------------------------------------- */

static double share(int64_t part, int64_t whole)
{
	return part > 0 && whole > 0 ? (double)part / whole : 0;
}

/* Until the last answer, if that came after the end: else a server that is overrun would seem to keep up.
 */
static double seconds(void)
{
	double until_last = (double)(results.last - measure_from) / SECOND;

	return until_last > options.duration ? until_last : options.duration;
}

static void print_histogram(const char *name, const struct histogram *histogram)
{
	const char *separator = "";

	printf("\"%s\": [", name);
	for (unsigned bucket = 0; bucket < BUCKETS; bucket++)
		if (histogram->counts[bucket]) {
			printf("%s[%" PRIu64 ", %" PRIu64 "]", separator, value_of(bucket),
			       histogram->counts[bucket]);
			separator = ", ";
		}
	printf("]");
}

static void report(struct usage used)
{
	const struct results *r = &results;

	printf("{\"intended\": %" PRIu64 ", \"sent\": %" PRIu64 ", \"answered\": %" PRIu64
	       ", \"requests\": %" PRIu64 ", \"seconds\": %.6f, ",
	       r->latency.total, r->lateness.total, r->answered, r->all, seconds());
	printf("\"errors\": {\"connect\": %" PRIu64 ", \"broken\": %" PRIu64 ", \"status\": %" PRIu64
	       ", \"timeout\": %" PRIu64 ", \"malformed\": %" PRIu64 ", \"unanswered\": %" PRIu64 "}, ",
	       r->connect, r->broken, r->status, r->timeout, r->malformed, r->unanswered);
	printf("\"late\": {\"p50\": %" PRIu64 ", \"p99\": %" PRIu64 ", \"max\": %" PRIu64 "}, ",
	       quantile(&r->lateness, 0.5), quantile(&r->lateness, 0.99), quantile(&r->lateness, 1));
	printf("\"cpu\": %.4f, \"busy\": %.4f, ", share(used.cpu, used.wall),
	       share(used.wall - used.idle, used.wall));
	print_histogram("histogram", &r->latency);
	printf(", ");
	print_histogram("connecting", &r->connecting);
	printf("}\n");
}

static void make_request(int turn, const char *path)
{
	char *request = malloc(4096 + options.body);
	size_t length;

	if (!request)
		die("memory");
	length = sprintf(request, "%s %s HTTP/1.1\r\nHost: %s\r\n", options.body ? "POST" : "GET", path,
			 options.host);
	if (options.close)
		length += sprintf(request + length, "Connection: close\r\n");
	if (options.body)
		length += sprintf(request + length, "Content-Length: %ld\r\n", options.body);
	length += sprintf(request + length, "\r\n");
	memset(request + length, 'x', options.body);
	requests[turn] = request;
	request_lengths[turn] = length + options.body;
}

static void make_connections(void)
{
	all = calloc(options.connections, sizeof(*all));
	if (!all)
		die("memory");
	for (long index = 0; index < options.connections; index++) {
		all[index].fd = -1;
		make_spare(&all[index]);
	}
}

static const char usage[] = "open_loop [options] ADDRESS PORT\n"
			    "  --rate R          requests a second (1000)\n"
			    "  --arrivals KIND   constant or poisson (constant)\n"
			    "  --seed N          of random arrivals (7)\n"
			    "  --connections N   at most so many requests under way (32)\n"
			    "  --close           a new connection for each request\n"
			    "  --warmup S        seconds before anything counts (0)\n"
			    "  --duration S      seconds (1)\n"
			    "  --drain S         seconds for what is under way at the end (1)\n"
			    "  --timeout S       seconds until a request is given up (5)\n"
			    "  --spin S          do not sleep the last so many seconds before a slot (0)\n"
			    "  --host NAME       Host header (shop.test)\n"
			    "  --path PATH       target (/)\n"
			    "  --alternate PATH  of each second request on a connection (--path)\n"
			    "  --body BYTES      POST so many (0: GET)\n"
			    "  --help            say this\n";

static void wrong_usage(const char *what)
{
	fprintf(stderr, "open_loop: %s\n%s", what, usage);
	exit(2);
}

/* A number of at least so much, and nothing behind it. */
static double number(const char *text, double least)
{
	char *rest;
	double value = strtod(text, &rest);

	if (rest == text || *rest || !isfinite(value) || value < least)
		wrong_usage(text);
	return value;
}

static bool is_poisson(const char *text)
{
	if (strcmp(text, "poisson") && strcmp(text, "constant"))
		wrong_usage(text);
	return *text == 'p';
}

static void parse_target(const char *address, const char *port)
{
	double value = number(port, 1);

	options.to.sin_family = AF_INET;
	options.to.sin_port = htons(value);
	if (inet_pton(AF_INET, address, &options.to.sin_addr) != 1)
		wrong_usage(address);
	if (value > UINT16_MAX)
		wrong_usage(port);
}

static void parse(int argc, char **argv)
{
	static const struct option known[] = {
		{ "rate", 1, 0, 'r' },	      { "arrivals", 1, 0, 'a' }, { "seed", 1, 0, 's' },
		{ "connections", 1, 0, 'c' }, { "close", 0, 0, 'x' },	 { "warmup", 1, 0, 'w' },
		{ "duration", 1, 0, 'd' },    { "drain", 1, 0, 'D' },	 { "timeout", 1, 0, 't' },
		{ "spin", 1, 0, 'S' },	      { "host", 1, 0, 'h' },	 { "path", 1, 0, 'p' },
		{ "body", 1, 0, 'b' },	      { "help", 0, 0, 'H' },	 { "alternate", 1, 0, 'A' },
		{ 0 },
	};
	int option;

	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) {
		switch (option) {
		case 'r': options.rate = number(optarg, 1e-3); break;
		case 'a': options.poisson = is_poisson(optarg); break;
		case 's': options.seed = number(optarg, 0); break;
		case 'c': options.connections = number(optarg, 1); break;
		case 'x': options.close = true; break;
		case 'w': options.warmup = number(optarg, 0); break;
		case 'd': options.duration = number(optarg, 1e-3); break;
		case 'D': options.drain = number(optarg, 0); break;
		case 'S': options.spin = number(optarg, 0); break;
		case 't': options.timeout = number(optarg, 1e-3); break;
		case 'h': options.host = optarg; break;
		case 'p': options.path = optarg; break;
		case 'A': options.alternate = optarg; break;
		case 'b': options.body = number(optarg, 0); break;
		case 'H': fputs(usage, stdout); exit(0);
		default: wrong_usage("unknown option, or one without its value");
		}
	}
	if (argc - optind != 2)
		wrong_usage("ADDRESS and PORT, please");
	if (!options.alternate)
		options.alternate = options.path;
	if (strlen(options.host) + strlen(options.path) > 3000 ||
	    strlen(options.host) + strlen(options.alternate) > 3000)
		wrong_usage("host and path are too long");
	parse_target(argv[optind], argv[optind + 1]);
}

/* As many connections as the machine allows. */
static void raise_open_files_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		die("getrlimit");
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		die("setrlimit");
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	if (prctl(PR_SET_TIMERSLACK, 1)) /* ns; by default the kernel wakes it up to 50 us late */
		die("prctl");
	raise_open_files_limit();
	make_request(0, options.path);
	make_request(1, options.alternate);
	make_connections();
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		die("epoll_create1");
	report(run());
	return 0;
}
