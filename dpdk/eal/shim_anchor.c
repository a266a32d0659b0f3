//go:build dpdk && cgo

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <rte_alarm.h>
#include <rte_dev.h>

#include "shim.h"

int
mr_memif_anchor(const char *name, const char *args)
{
	return rte_eal_hotplug_add("vdev", name, args);
}

// listens_at says whether fd is a socket that listens at path.
static int
listens_at(int fd, const char *path)
{
	struct sockaddr_un a;
	socklen_t alen = sizeof(a), olen = sizeof(int);
	int listening = 0;

	memset(&a, 0, sizeof(a));
	return getsockname(fd, (struct sockaddr *)&a, &alen) == 0 && a.sun_family == AF_UNIX &&
	       strncmp(a.sun_path, path, sizeof(a.sun_path)) == 0 &&
	       getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &olen) == 0 && listening;
}

struct deafen {
	const char *path;
	sem_t done;
	int ret;
};

// deafen_listener puts an event that never comes in the place of the listening
// socket: its interrupt source stays registered for ever, with a pointer to what
// net_memif frees together with the last interface of the socket
// (memif_socket_remove_device). This runs on the interrupt thread, so the source's
// handler is not running.
static void
deafen_listener(void *arg)
{
	struct deafen *d = arg;
	struct dirent *e;
	DIR *dir = opendir("/proc/self/fd");
	int fd, never;

	d->ret = -ENOENT;
	while (dir != NULL && d->ret == -ENOENT && (e = readdir(dir)) != NULL) {
		fd = atoi(e->d_name);
		if (fd <= 2 || !listens_at(fd, d->path))
			continue;
		never = eventfd(0, EFD_CLOEXEC);
		if (never < 0 || dup3(never, fd, O_CLOEXEC) < 0)
			d->ret = -errno;
		else
			d->ret = 0;
		if (never >= 0)
			close(never);
	}
	if (dir != NULL)
		closedir(dir);
	sem_post(&d->done);
}

int
mr_memif_unanchor(const char *name, const char *path)
{
	struct deafen d = {.path = path};
	int ret;

	sem_init(&d.done, 0, 0);
	ret = rte_eal_alarm_set(1, deafen_listener, &d);
	if (ret == 0) {
		while (sem_wait(&d.done) != 0 && errno == EINTR)
			;
		ret = d.ret;
	}
	sem_destroy(&d.done);
	if (ret != 0)
		return ret; // then the anchor must stay
	return rte_eal_hotplug_remove("vdev", name);
}
