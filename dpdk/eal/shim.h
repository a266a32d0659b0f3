// One receive and one transmit queue of a device of libdpdk, and the fused burst
// that serves them. All memory named here is C memory: Go reads and writes
// the arrays of struct mr_port between two calls of mr_burst, on the port's one
// owner thread of the moment, so neither side needs atomics.
#ifndef MILLRACE_EAL_SHIM_H
#define MILLRACE_EAL_SHIM_H

#include <stdint.h>

// Frames moved by one crossing at most, in each direction.
#define MR_BURST 64

struct mr_slot {
	uint64_t mbuf; // struct rte_mbuf *
	uint8_t *data; // start of the frame
	uint32_t len;  // used bytes
	uint32_t room; // bytes from data to the end of the mbuf
};

struct mr_port {
	uint32_t n_alloc; // alloc[0..n_alloc): empty mbufs, taken from the end
	uint32_t n_tx;    // in: tx[0..n_tx) to send; out: how many were sent
	uint32_t n_rx;    // out: rx[0..n_rx) received
	uint32_t n_free;  // in: free[0..n_free) to give back; out: 0
	uint32_t down;    // out: 1 once a link that was up has gone down
	uint16_t port_id;
	uint16_t queue;
	// Counters, which any thread may read while the owner counts.
	uint64_t rx_frames;
	uint64_t tx_frames;
	uint64_t chained; // received frames dropped because they had several segments
	uint64_t no_mbuf; // refills that found the pool empty

	struct mr_slot alloc[MR_BURST];
	struct mr_slot tx[MR_BURST];
	struct mr_slot rx[MR_BURST];
	uint64_t free[MR_BURST];

	void *pool;           // struct rte_mempool *
	void *guard;          // rte_spinlock_t of net_memif's disconnect, or NULL
	volatile uint32_t *guard_flags;
	void **dev_data;      // struct rte_eth_dev_data of a guarded port
	char name[64];
	char driver[64];
	uint32_t mtu;         // IP bytes per frame; 0: what the frames have room for
	uint16_t rx_ring, tx_ring; // descriptors
	uint32_t mbufs;       // that the pool has
	uint8_t mac[6];
	uint8_t was_up;
};

// mr_eal_init runs rte_eal_init with all signals blocked, so that the threads it
// makes take none, and with libdpdk's output sent to the log below. runtime_dir,
// if not NULL, is where libdpdk makes its run-time directory. 0, or -rte_errno.
int mr_eal_init(int argc, char **argv, const char *runtime_dir);

// mr_log copies the newest bytes of libdpdk's log that fit and forgets them.
uint32_t mr_log(char *to, uint32_t room);

struct mr_config {
	const char *name; // of the virtual device, or of a device probed by rte_eal_init
	const char *args; // its arguments; NULL if the device exists already
	uint32_t frame_bytes;
	uint32_t frames;
	uint32_t ring;
	uint32_t mtu; // 0: the device's own
	// net_memif only: what identifies the driver's private structure.
	const char *memif_socket, *memif_secret;
	uint32_t memif_id, memif_role;
};

// Memory for the frames of a device, which the caller made and frees after
// mr_port_close.
struct mr_memory {
	uint8_t *base;       // NULL: libdpdk's own is used
	uint64_t bytes;      // whole pages
	uint64_t page;
	uint64_t queue_bytes; // of each queue, one after the other
	int refused;         // out: why libdpdk could not use it, -errno; then it has its own
	void *device;        // struct rte_device that it is mapped for
	int registered, mapped;
};

// mr_port_attach attaches the device if need be and configures n queues, which are
// ports[0..n); mbufs and rings of each say how many frames it needs. *physical is 1
// where the device is given physical addresses. On failure nothing is left, *step says
// what failed and the result is -errno.
int mr_port_attach(struct mr_port **ports, uint32_t n, const struct mr_config *c, int *physical, const char **step);

// mr_frame_stride is the bytes from one frame of the pool to the next.
uint32_t mr_frame_stride(const struct mr_config *c);

// mr_port_start makes a pool for each queue, over m if it has memory, and starts the
// device. Failure is as that of mr_port_attach.
int mr_port_start(struct mr_port **ports, uint32_t n, const struct mr_config *c, struct mr_memory *m, const char **step);

// mr_port_up returns 1 if the link is up.
int mr_port_up(struct mr_port *p);

// mr_port_close stops the device of ports[0..n), removes it and frees its pools, after
// which m may be freed. remove is 1 for a device that mr_port_attach attached.
int mr_port_close(struct mr_port **ports, uint32_t n, struct mr_memory *m, int remove);

// mr_memory_take makes m known to libdpdk and to the device; where that fails
// m->refused says why. mr_memory_release undoes it, when the device is closed.
void mr_memory_take(struct mr_memory *m, uint16_t port_id);
void mr_memory_release(struct mr_memory *m);

// mr_pool makes the pool of queue number i of a device. NULL: rte_errno.
void *mr_pool(const char *name, const struct mr_port *p, const struct mr_config *c, const struct mr_memory *m, uint32_t i);

// mr_count reads a counter of a port that another thread owns.
uint64_t mr_count(const uint64_t *counter);

// mr_heap_bytes is what is allocated from libdpdk's heaps.
uint64_t mr_heap_bytes(void);

// mr_memif_anchor makes an interface that is never started, so that net_memif
// keeps one listening socket for all server interfaces of this process.
int mr_memif_anchor(const char *name, const char *args);

// mr_memif_unanchor closes the listening socket at path and removes the anchor.
// Interfaces that are connected stay so.
int mr_memif_unanchor(const char *name, const char *path);

// mr_burst does in one call: transmit, receive, give back, refill.
void mr_burst(struct mr_port *p);

const char *mr_strerror(int err);

#endif
