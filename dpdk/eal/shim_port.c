//go:build dpdk && cgo

#define _GNU_SOURCE
#define ALLOW_EXPERIMENTAL_API // rte_intr_*
#include <errno.h>
#include <semaphore.h>
#include <stdio.h>
#include <string.h>

#include <rte_alarm.h>
#include <rte_dev.h>
#include <rte_eal.h>
#include <rte_errno.h>
#include <rte_ethdev.h>
#include <rte_interrupts.h>
#include <rte_malloc.h>
#include <rte_mbuf.h>
#include <rte_memory.h>
#include <rte_spinlock.h>

#include "shim.h"

// Exported by librte_ethdev to drivers; its result is opaque here.
extern void *rte_eth_dev_allocated(const char *name);

// dpdk_memory says whether n bytes at p lie in libdpdk's own memory and may be
// read.
static int
dpdk_memory(const void *p, size_t n)
{
	const struct rte_memseg_list *a, *b;

	if (((uintptr_t)p & 7) != 0)
		return 0;
	a = rte_mem_virt2memseg_list(p);
	b = rte_mem_virt2memseg_list((const char *)p + n - 1);
	return a != NULL && a == b;
}

// The start of struct pmd_internals of drivers/net/memif/rte_eth_memif.h, which
// is not a public header (unchanged from DPDK 19.11 to 24.11).
struct memif_private {
	uint32_t id;
	uint32_t role;
	uint32_t flags;
	char *socket;
	char secret[24];
	void *cc;
	rte_spinlock_t cc_lock;
};

// The start of struct memif_queue of the same header.
struct memif_queue_private {
	struct rte_mempool *mempool; // of a receive queue
	void *pmd;
	int type;
	uint16_t region, in_port;
	uint32_t ring_offset;
	uint16_t last_head, last_tail;
	void **buffers;
	uint64_t n_pkts, n_bytes;
	struct rte_intr_handle *intr_handle;
};

// find_guard locates net_memif's cc_lock. Nothing is taken on trust: the
// structure counts as found only when it lies in libdpdk's memory and holds the
// id, role, socket path and random secret that this interface was made with.
// Where it is not found the port runs without the guard.
static void
find_guard(struct mr_port *p, const struct mr_config *c)
{
	void **dev = rte_eth_dev_allocated(c->name), **data = NULL;
	struct memif_private *priv;
	int i;

	if (dev == NULL)
		return;
	// struct rte_eth_dev holds burst functions, then the pointer to its data,
	// which starts with the device's name.
	for (i = 0; i < 12 && data == NULL; i++)
		if (dpdk_memory(dev[i], 512) && strncmp(dev[i], c->name, 64) == 0)
			data = dev[i];
	if (data == NULL)
		return;
	for (i = 8; i < 64; i++) {
		if (!dpdk_memory(data[i], sizeof(*priv)))
			continue;
		priv = data[i];
		if (priv->id != c->memif_id || priv->role != c->memif_role ||
		    strncmp(priv->secret, c->memif_secret, sizeof(priv->secret)) != 0)
			continue;
		if (!dpdk_memory((void *)((uintptr_t)priv->socket & ~(uintptr_t)7), 128) ||
		    strcmp(priv->socket, c->memif_socket) != 0)
			continue;
		p->guard = &priv->cc_lock;
		p->guard_flags = &priv->flags;
		p->dev_data = (void **)data;
		return;
	}
}

// configure asks for n queues and for those offloads of the device that cost
// nothing to use.
static int
configure(struct mr_port **ports, uint32_t n, const struct mr_config *c)
{
	struct mr_port *p = ports[0];
	struct rte_eth_conf conf;
	struct rte_eth_dev_info info;
	uint64_t rss;
	uint16_t mtu;
	uint32_t i;
	int ret;

	ret = rte_eth_dev_info_get(p->port_id, &info);
	if (ret != 0)
		return ret;
	for (i = 0; i < n; i++)
		snprintf(ports[i]->driver, sizeof(ports[i]->driver), "%s", info.driver_name);
	memset(&conf, 0, sizeof(conf));
	conf.rxmode.mtu = c->mtu;
	// All mbufs of a queue come from one pool and nobody else refers to them.
	conf.txmode.offloads = info.tx_offload_capa & RTE_ETH_TX_OFFLOAD_MBUF_FAST_FREE;
	rss = info.flow_type_rss_offloads & (RTE_ETH_RSS_IP | RTE_ETH_RSS_UDP);
	if (n > 1 && rss != 0) {
		conf.rxmode.mq_mode = RTE_ETH_MQ_RX_RSS;
		conf.rx_adv_conf.rss_conf.rss_hf = rss;
	}
	ret = rte_eth_dev_configure(p->port_id, n, n, &conf);
	if (ret != 0 || c->memif_secret != NULL)
		return ret; // net_memif's MTU is the size of its buffers
	ret = rte_eth_dev_get_mtu(p->port_id, &mtu);
	for (i = 0; i < n; i++)
		ports[i]->mtu = mtu;
	return ret;
}

// size says how many mbufs can be out of a queue's pool at once: the driver's rings,
// the four arrays of struct mr_port, and the frames that the owner holds. net_memif's
// rings hold no mbufs.
static void
size(struct mr_port *p, const struct mr_config *c)
{
	p->rx_ring = p->tx_ring = c->ring;
	rte_eth_dev_adjust_nb_rx_tx_desc(p->port_id, &p->rx_ring, &p->tx_ring);
	p->mbufs = (c->memif_secret ? 0 : (uint32_t)p->rx_ring + p->tx_ring) + 4 * MR_BURST + c->frames;
}

static int
setup_queue(struct mr_port *p, const struct mr_config *c, const struct mr_memory *m, const char **step)
{
	char pool[RTE_MEMPOOL_NAMESIZE];
	int ret;

	*step = "rte_pktmbuf_pool_create";
	snprintf(pool, sizeof(pool), "mr_%u_%u", p->port_id, p->queue);
	p->pool = mr_pool(pool, p, c, m, p->queue);
	if (p->pool == NULL)
		return -rte_errno;

	*step = "rte_eth_rx_queue_setup";
	ret = rte_eth_rx_queue_setup(p->port_id, p->queue, p->rx_ring, SOCKET_ID_ANY, NULL, p->pool);
	if (ret != 0)
		return ret;
	*step = "rte_eth_tx_queue_setup";
	return rte_eth_tx_queue_setup(p->port_id, p->queue, p->tx_ring, SOCKET_ID_ANY, NULL);
}

static int
start(struct mr_port **ports, uint32_t n, const struct mr_config *c, const struct mr_memory *m, const char **step)
{
	struct mr_port *p = ports[0];
	struct rte_ether_addr mac;
	uint32_t i;
	int ret = 0;

	for (i = 0; i < n && ret == 0; i++)
		ret = setup_queue(ports[i], c, m, step);
	if (ret != 0)
		return ret;
	if (c->memif_secret != NULL)
		find_guard(p, c);
	*step = "rte_eth_dev_start";
	ret = rte_eth_dev_start(p->port_id);
	if (ret != 0)
		return ret;
	if (c->memif_secret == NULL)
		rte_eth_allmulticast_enable(p->port_id); // IPv6 neighbour discovery; a driver without the choice gets them all
	if (rte_eth_macaddr_get(p->port_id, &mac) == 0)
		for (i = 0; i < n; i++)
			memcpy(ports[i]->mac, mac.addr_bytes, 6);
	return 0;
}

static void
free_pools(struct mr_port **ports, uint32_t n)
{
	uint32_t i;

	for (i = 0; i < n; i++) {
		rte_mempool_free(ports[i]->pool);
		ports[i]->pool = NULL;
	}
}

int
mr_port_attach(struct mr_port **ports, uint32_t n, const struct mr_config *c, int *physical, const char **step)
{
	uint16_t id;
	uint32_t i;
	int ret;

	for (i = 0; i < n; i++) {
		memset(ports[i], 0, sizeof(*ports[i]));
		snprintf(ports[i]->name, sizeof(ports[i]->name), "%s", c->name);
		ports[i]->queue = i;
	}
	if (c->args != NULL) {
		*step = "rte_eal_hotplug_add";
		// libdpdk takes it for attached, and a failure below would remove it from
		// whoever has it.
		if (rte_eth_dev_get_port_by_name(c->name, &id) == 0)
			return -EEXIST;
		ret = rte_eal_hotplug_add("vdev", c->name, c->args);
		if (ret != 0)
			return ret;
	}
	*step = "rte_eth_dev_get_port_by_name";
	ret = rte_eth_dev_get_port_by_name(c->name, &id);
	if (ret == 0) {
		for (i = 0; i < n; i++)
			ports[i]->port_id = id;
		*step = "rte_eth_dev_configure";
		ret = configure(ports, n, c);
		if (ret != 0 && c->args != NULL)
			rte_eth_dev_close(id);
	}
	if (ret != 0) {
		if (c->args != NULL)
			rte_eal_hotplug_remove("vdev", c->name);
		return ret;
	}
	for (i = 0; i < n; i++)
		size(ports[i], c);
	*physical = c->args == NULL && strncmp(c->name, "net_", 4) != 0 && rte_eal_iova_mode() != RTE_IOVA_VA;
	return 0;
}

int
mr_port_start(struct mr_port **ports, uint32_t n, const struct mr_config *c, struct mr_memory *m, const char **step)
{
	int ret;

	if (m->base != NULL)
		mr_memory_take(m, ports[0]->port_id);
	ret = start(ports, n, c, m, step);
	if (ret == 0)
		return 0;
	if (c->args != NULL)
		rte_eth_dev_close(ports[0]->port_id);
	mr_memory_release(m);
	if (c->args != NULL)
		rte_eal_hotplug_remove("vdev", c->name);
	free_pools(ports, n);
	return ret;
}

int
mr_port_up(struct mr_port *p)
{
	struct rte_eth_link link;

	memset(&link, 0, sizeof(link));
	if (p->down || rte_eth_link_get_nowait(p->port_id, &link) != 0)
		return 0;
	return link.link_status == RTE_ETH_LINK_UP;
}

struct stop {
	struct mr_port *p;
	sem_t done;
	int ret;
};

static int
closed_handle(const struct rte_intr_handle *h)
{
	return dpdk_memory(h, 64) && rte_intr_type_get(h) == RTE_INTR_HANDLE_EXT && rte_intr_fd_get(h) == -1;
}

// take_tx_interrupt takes the interrupt handle of a stopped net_memif's transmit
// queue from it and returns it. net_memif frees that of the receive queue only
// (memif_tx_queue_release, DPDK 21.11 to 24.11), 27 KiB lost per port; a driver
// that frees both finds NULL, which it may free. NULL if it is not what it should be.
static struct rte_intr_handle *
take_tx_interrupt(struct mr_port *p)
{
	struct rte_eth_dev_data_head { // rte_ethdev's ethdev_driver.h
		char name[64];
		void **rx_queues, **tx_queues;
		uint16_t nb_rx_queues, nb_tx_queues;
	} *data = (void *)p->dev_data;
	struct memif_queue_private *rx, *tx;
	struct rte_intr_handle *handle;

	if (data == NULL || data->nb_rx_queues != 1 || data->nb_tx_queues != 1 ||
	    !dpdk_memory(data->rx_queues, sizeof(void *)) || !dpdk_memory(data->tx_queues, sizeof(void *)))
		return NULL;
	rx = data->rx_queues[0];
	tx = data->tx_queues[0];
	// Is the structure laid out as above? Both handles tell, and the pool.
	if (!dpdk_memory(rx, sizeof(*rx)) || !dpdk_memory(tx, sizeof(*tx)) || rx->mempool != p->pool ||
	    !closed_handle(rx->intr_handle) || !closed_handle(tx->intr_handle))
		return NULL;
	handle = tx->intr_handle;
	tx->intr_handle = NULL;
	return handle;
}

static void
stop_and_close(void *arg)
{
	struct stop *s = arg;
	struct rte_intr_handle *handle;
	int ret;

	s->ret = rte_eth_dev_stop(s->p->port_id);
	handle = take_tx_interrupt(s->p);
	ret = rte_eth_dev_close(s->p->port_id);
	rte_intr_instance_free(handle);
	if (s->ret == 0)
		s->ret = ret;
	sem_post(&s->done);
}

// empty_rings takes what is under way out of a net_ring's rings: libdpdk keeps these when
// the device goes and gives them to the next of that name, but the frames go with their
// pools. Only pointers move, so it does not matter whose pools are gone already.
static void
empty_rings(struct mr_port **ports, uint32_t n)
{
	struct rte_mbuf *m[MR_BURST];
	uint32_t i;

	for (i = 0; i < n; i++)
		while (rte_eth_rx_burst(ports[i]->port_id, ports[i]->queue, m, MR_BURST) > 0)
			;
}

int
mr_port_close(struct mr_port **ports, uint32_t n, struct mr_memory *m, int remove)
{
	struct mr_port *p = ports[0];
	struct stop s = {.p = p};
	int memif = strcmp(p->driver, "net_memif") == 0, ret;

	if (strcmp(p->driver, "net_ring") == 0)
		empty_rings(ports, n);
	sem_init(&s.done, 0, 0);
	// net_memif disconnects on the interrupt thread when the peer goes, without
	// a lock against a stop on another thread. Alarms run on that same thread,
	// so there the two cannot meet.
	if (!memif || rte_eal_alarm_set(1, stop_and_close, &s) != 0)
		stop_and_close(&s);
	while (sem_wait(&s.done) != 0 && errno == EINTR)
		;
	sem_destroy(&s.done);
	ret = s.ret;
	mr_memory_release(m);
	if (remove) {
		int r = rte_eal_hotplug_remove("vdev", p->name);

		if (ret == 0)
			ret = r;
	}
	// All mbufs go with their pools, whoever holds them.
	free_pools(ports, n);
	return ret;
}

uint64_t
mr_heap_bytes(void)
{
	struct rte_malloc_socket_stats s;
	uint64_t n = 0;
	int i;

	for (i = 0; i < RTE_MAX_NUMA_NODES; i++)
		if (rte_malloc_get_socket_stats(i, &s) == 0)
			n += s.heap_allocsz_bytes;
	return n;
}
