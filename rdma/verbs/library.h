// Shared by the files of the shim: the library's functions, and what calling them takes.
#ifndef MILLRACE_VERBS_LIBRARY_H
#define MILLRACE_VERBS_LIBRARY_H

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include <infiniband/verbs.h>

#include "shim.h"

// What is taken from the library. Posting and polling go through the context's
// own operations (verbs.h) and need no symbol.
#define SYMBOLS(X)                                                                                 \
	X(get_device_list, struct ibv_device **, (int *))                                          \
	X(free_device_list, void, (struct ibv_device **))                                          \
	X(open_device, struct ibv_context *, (struct ibv_device *))                                \
	X(close_device, int, (struct ibv_context *))                                               \
	X(query_device, int, (struct ibv_context *, struct ibv_device_attr *))                     \
	X(query_port, int, (struct ibv_context *, uint8_t, struct ibv_port_attr *))                \
	X(query_gid, int, (struct ibv_context *, uint8_t, int, union ibv_gid *))                   \
	X(alloc_pd, struct ibv_pd *, (struct ibv_context *))                                       \
	X(dealloc_pd, int, (struct ibv_pd *))                                                      \
	X(reg_mr, struct ibv_mr *, (struct ibv_pd *, void *, size_t, int))                         \
	X(dereg_mr, int, (struct ibv_mr *))                                                        \
	X(create_comp_channel, struct ibv_comp_channel *, (struct ibv_context *))                  \
	X(destroy_comp_channel, int, (struct ibv_comp_channel *))                                  \
	X(create_cq, struct ibv_cq *, (struct ibv_context *, int, void *, struct ibv_comp_channel *, int)) \
	X(resize_cq, int, (struct ibv_cq *, int))                                                  \
	X(destroy_cq, int, (struct ibv_cq *))                                                      \
	X(get_cq_event, int, (struct ibv_comp_channel *, struct ibv_cq **, void **))               \
	X(ack_cq_events, void, (struct ibv_cq *, unsigned int))                                    \
	X(create_srq, struct ibv_srq *, (struct ibv_pd *, struct ibv_srq_init_attr *))             \
	X(modify_srq, int, (struct ibv_srq *, struct ibv_srq_attr *, int))                         \
	X(destroy_srq, int, (struct ibv_srq *))                                                    \
	X(create_qp, struct ibv_qp *, (struct ibv_pd *, struct ibv_qp_init_attr *))                \
	X(modify_qp, int, (struct ibv_qp *, struct ibv_qp_attr *, int))                            \
	X(destroy_qp, int, (struct ibv_qp *))                                                      \
	X(get_async_event, int, (struct ibv_context *, struct ibv_async_event *))                  \
	X(ack_async_event, void, (struct ibv_async_event *))                                       \
	X(event_type_str, const char *, (enum ibv_event_type))                                     \
	X(fork_init, int, (void))

struct mv_library {
	void *handle;
	int fork;
#define FIELD(name, ret, args) ret(*name) args;
	SYMBOLS(FIELD)
#undef FIELD
	// Newer than the rest; NULL in an old library.
	int (*query_gid_ex)(struct ibv_context *, uint32_t, uint32_t, struct ibv_gid_entry *, uint32_t, size_t);
	enum ibv_fork_status (*is_fork_initialized)(void);
};

extern struct mv_library mv_lib;
#define lib mv_lib

#define RETRY(rc, call)           \
	do {                      \
		(rc) = (call);    \
	} while ((rc) == EINTR)

#define RETRY_PTR(p, call)                         \
	do {                                       \
		errno = 0;                         \
		(p) = (call);                      \
	} while ((p) == NULL && errno == EINTR)

// A NULL of the library without errno is a lack of memory.
static inline int error_number(void) { return errno ? errno : ENOMEM; }

// mv_make_lists makes the device's lists, to be freed with it.
int mv_make_lists(struct mv_device *d);

// mv_access is MV_REMOTE_* as the verbs have it.
static inline int
mv_access(uint32_t a)
{
	return (a & MV_REMOTE_READ ? IBV_ACCESS_REMOTE_READ : 0) | (a & MV_REMOTE_WRITE ? IBV_ACCESS_REMOTE_WRITE : 0) |
	       (a & MV_REMOTE_ATOMIC ? IBV_ACCESS_REMOTE_ATOMIC : 0);
}

// mv_nonblocking sets O_NONBLOCK.
int mv_nonblocking(int fd);

#endif
