//go:build dpdk && cgo

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_log.h>

#include "shim.h"

// The newest LOG_BYTES of libdpdk's output. It is written by any thread of
// libdpdk's and read by Go.
#define LOG_BYTES 16384
static struct {
	pthread_mutex_t mu;
	uint64_t end, taken; // bytes ever written, bytes handed out
	char text[LOG_BYTES];
} logbuf = {.mu = PTHREAD_MUTEX_INITIALIZER};

static ssize_t
log_write(void *cookie, const char *buf, size_t n)
{
	int level = (int)rte_log_cur_msg_loglevel(); // 0 before the first message
	size_t i;

	(void)cookie;
	pthread_mutex_lock(&logbuf.mu);
	for (i = 0; i < n; i++)
		logbuf.text[logbuf.end++ % LOG_BYTES] = buf[i];
	pthread_mutex_unlock(&logbuf.mu);
	// rte_panic() logs at this level and aborts: nobody will read the buffer.
	// Not to stderr, which may be this very stream (mr_eal_init).
	if (level > 0 && level <= (int)RTE_LOG_CRIT && write(STDERR_FILENO, buf, n) < 0)
		return (ssize_t)n; // nobody is left to be told
	return (ssize_t)n;
}

uint32_t
mr_log(char *to, uint32_t room)
{
	uint64_t from;
	uint32_t n = 0;

	pthread_mutex_lock(&logbuf.mu);
	if (room > LOG_BYTES)
		room = LOG_BYTES;
	from = logbuf.taken;
	if (logbuf.end - from > room)
		from = logbuf.end - room;
	while (from < logbuf.end)
		to[n++] = logbuf.text[from++ % LOG_BYTES];
	logbuf.taken = logbuf.end;
	pthread_mutex_unlock(&logbuf.mu);
	return n;
}

int
mr_eal_init(int argc, char **argv, const char *runtime_dir)
{
	static cookie_io_functions_t io = {.write = log_write};
	FILE *out = stdout, *err = stderr, *log;
	char *was = getenv("RUNTIME_DIRECTORY"); // of systemd; libdpdk prefers it
	sigset_t all, old;
	int ret;

	if (was != NULL && (was = strdup(was)) == NULL)
		return -ENOMEM;
	log = fopencookie(NULL, "w", io);
	if (log == NULL) {
		free(was);
		return -ENOMEM;
	}
	setvbuf(log, NULL, _IOLBF, 512);
	rte_openlog_stream(log);

	// The threads made in here inherit the mask.
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	// A wrong argument makes rte_eal_init print its whole usage text.
	fflush(out);
	stdout = log;
	stderr = log;
	if (runtime_dir != NULL)
		setenv("RUNTIME_DIRECTORY", runtime_dir, 1);
	rte_errno = 0;
	ret = rte_eal_init(argc, argv);
	if (runtime_dir != NULL && was != NULL)
		setenv("RUNTIME_DIRECTORY", was, 1);
	else if (runtime_dir != NULL)
		unsetenv("RUNTIME_DIRECTORY");
	free(was);
	fflush(log);
	stdout = out;
	stderr = err;
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (ret < 0)
		return rte_errno ? -rte_errno : -1;
	return 0;
}

const char *
mr_strerror(int err)
{
	return rte_strerror(err);
}
