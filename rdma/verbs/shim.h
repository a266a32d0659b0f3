// One RDMA device of libibverbs. The library is loaded at run time, so nothing
// here links against it. All memory named here is C memory; Go fills the lists of
// struct mv_device and reads its completions between two calls, on the device's
// one goroutine, so neither side needs atomics.
//
// Functions that return int return 0 or an errno, unless they say otherwise. None
// of them returns EINTR: Go's runtime interrupts system calls with SIGURG.
#ifndef MILLRACE_VERBS_SHIM_H
#define MILLRACE_VERBS_SHIM_H

#include <stdint.h>

struct ibv_mr;
struct ibv_pd;
struct ibv_srq;

// Completions taken from a queue by one call at most.
#define MV_POLL 64
// Requests posted by one call at most.
#define MV_LIST 128

struct mv_send {
	uint64_t id;
	uint64_t addr;
	uint32_t len;
	uint32_t lkey;
	uint32_t imm; // host order
	uint16_t op;  // MV_SEND, …
	uint16_t flags;
	uint64_t remote; // of one-sided operations
	uint64_t compare;
	uint64_t swap_add;
	uint32_t rkey;
};

// In the order of rdma.Opcode.
enum { MV_SEND, MV_SEND_IMM, MV_WRITE, MV_WRITE_IMM, MV_READ, MV_COMPARE_SWAP, MV_FETCH_ADD };
enum { MV_SIGNALED = 1, MV_INLINE = 2 };
enum { MV_REMOTE_READ = 1, MV_REMOTE_WRITE = 2, MV_REMOTE_ATOMIC = 4 };

struct mv_recv {
	uint64_t id;
	uint64_t addr;
	uint32_t len;
	uint32_t lkey;
};

// In the order of rdma.WCOpcode.
enum { MV_WC_SEND, MV_WC_RECV, MV_WC_WRITE, MV_WC_READ, MV_WC_COMPARE_SWAP, MV_WC_FETCH_ADD, MV_WC_RECV_WRITE_IMM };

struct mv_wc {
	uint64_t id;
	uint32_t status; // enum ibv_wc_status
	uint32_t bytes;
	uint32_t imm; // host order
	uint16_t has_imm;
	uint16_t op; // valid if status is 0
	uint32_t qpn;
};

struct mv_event {
	const char *text;
	uint64_t srq; // MV_EVENT_SRQ_LIMIT: the tag of mv_srq_create
	uint32_t num; // queue pair number or port
	uint32_t kind;
};

enum {
	MV_EVENT_OTHER,
	MV_EVENT_QP_FATAL,
	MV_EVENT_COMM_EST,
	MV_EVENT_LAST_WQE,
	MV_EVENT_SRQ_LIMIT,
	MV_EVENT_PORT_UP,
	MV_EVENT_PORT_DOWN,
	MV_EVENT_DEVICE_FATAL, // or a completion queue, or a shared receive queue
};

struct mv_attr {
	uint32_t active; // the port is ACTIVE
	uint32_t mtu;    // bytes
	uint32_t max_msg, max_qp_wr, max_cqe;
	uint32_t max_srq_wr; // 0: no shared receive queues
	uint32_t max_rd_atomic, max_dest_rd_atomic;
	uint32_t atomics;    // compare and swap, fetch and add
	uint32_t max_inline; // of a queue pair, as far as it was asked for
	uint32_t gid_type;   // 0 IB, 1 RoCEv1, 2 RoCEv2, 3 unknown
	uint8_t gid[16];
};

struct mv_device {
	struct ibv_context *ctx;
	int async_fd;
	uint8_t port;
	uint8_t gid_index;
	struct mv_attr attr;

	// Arguments of the data path: one of a struct mv_cq, a struct mv_qp or a struct
	// ibv_srq; how many.
	void *queue;
	uint32_t n;
	uint32_t taken; // out: of the last post
	void *lists;    // the verbs' form of send and recv
	struct mv_send send[MV_LIST]; // what the next post of sends posts
	struct mv_recv recv[MV_LIST]; // what the next post of receives posts
	struct mv_wc wc[MV_POLL];
};

struct mv_cq {
	struct ibv_cq *cq;
	struct ibv_comp_channel *channel;
	int fd; // of the channel
	uint32_t depth;
	uint32_t armed; // and its event not yet taken
	uint32_t told;  // out: whether the last mv_cq_arm took an event
	uint32_t unacked; // events taken and not yet acknowledged
};

struct mv_qp {
	struct ibv_qp *qp;
	uint32_t num;
};

// mv_load loads the library, and makes forks safe before anything else is called.
// NULL, or why it cannot. It may be called again.
const char *mv_load(void);

// mv_fork is what it found: 0 forks are not safe, 1 made so by MADV_DONTFORK, 2
// safe by themselves.
int mv_fork(void);

// mv_open opens a device; ENODEV if the library does not list it. On failure *step
// says what failed.
int mv_open(const char *name, uint8_t port, uint8_t gid_index, struct mv_device **out, const char **step);
int mv_close(struct mv_device *d);

int mv_pd_alloc(struct mv_device *d, struct ibv_pd **out);
int mv_pd_dealloc(struct ibv_pd *pd);

// mv_reg's access is what peers may do, MV_REMOTE_*; this end may always write.
int mv_reg(struct ibv_pd *pd, uint64_t addr, uint64_t bytes, uint32_t access, struct ibv_mr **mr, uint32_t *lkey,
           uint32_t *rkey);
int mv_dereg(struct ibv_mr *mr);

int mv_cq_create(struct mv_device *d, uint32_t depth, struct mv_cq **out);
int mv_cq_destroy(struct mv_cq *c);
// mv_cq_resize makes it hold depth completions; ENOSYS or EOPNOTSUPP if the device
// cannot.
int mv_cq_resize(struct mv_cq *c, uint32_t depth);

// mv_srq_create makes a shared receive queue; its events carry tag.
int mv_srq_create(struct ibv_pd *pd, uint32_t depth, uint64_t tag, struct ibv_srq **out);
int mv_srq_limit(struct ibv_srq *s, uint32_t limit);
int mv_srq_destroy(struct ibv_srq *s);

struct mv_qp_config {
	struct ibv_pd *pd;
	struct mv_cq *send_cq, *recv_cq;
	struct ibv_srq *srq; // or NULL, with recvs
	uint32_t sends, recvs, max_inline;
	uint32_t access; // MV_REMOTE_*
};

// mv_qp_create makes a queue pair and takes it to INIT.
int mv_qp_create(struct mv_device *d, const struct mv_qp_config *cfg, struct mv_qp **out, const char **step);
int mv_qp_destroy(struct mv_qp *q);

struct mv_remote {
	uint8_t gid[16];
	uint32_t qpn, psn;
	uint32_t mtu; // bytes
	uint8_t max_dest_rd_atomic;
	// of this end:
	uint8_t max_rd_atomic, min_rnr_timer, timeout, retry_cnt, rnr_retry;
	uint32_t sq_psn;
};

int mv_qp_connect(struct mv_device *d, struct mv_qp *q, const struct mv_remote *r, const char **step);
int mv_qp_error(struct mv_qp *q);

// The data path, of the form that internal/ccall calls. None of it waits: the
// completion channel does not block, and posts end in the adapter's memory or, with
// rdma_rxe, in a system call that sends.

// mv_cq_poll fills wc with at most n completions of a struct mv_cq; how many, or -errno.
int mv_cq_poll(struct mv_device *d);

// mv_cq_arm takes the event of a struct mv_cq's last arming and asks for the next, unless
// that one is still to come.
int mv_cq_arm(struct mv_device *d);

// mv_post_send, mv_post_recv (to a struct mv_qp) and mv_post_srq (to a struct ibv_srq)
// post the first n of the list, 1 to MV_LIST; taken says how many were.
int mv_post_send(struct mv_device *d);
int mv_post_recv(struct mv_device *d);
int mv_post_srq(struct mv_device *d);

// mv_event takes one asynchronous event: 1, 0 if there is none, or -errno.
int mv_event(struct mv_device *d, struct mv_event *e);

#endif
