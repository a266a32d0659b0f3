//go:build dpdk && cgo

#include <errno.h>
#include <stdlib.h>

#include <rte_mempool.h>

// A mempool for a port with a single owner: a last-in-first-out stack without
// atomics. libdpdk's default ring pays a locked instruction per element on
// threads that it did not make and walks through the whole pool's memory; the
// stack hands out the mbuf whose cache lines are still warm.
struct lifo {
	uint32_t n, size;
	void *obj[];
};

static int
lifo_alloc(struct rte_mempool *mp)
{
	struct lifo *l = malloc(sizeof(*l) + mp->size * sizeof(void *));

	if (l == NULL)
		return -ENOMEM;
	l->n = 0;
	l->size = mp->size;
	mp->pool_data = l;
	return 0;
}

static void
lifo_free(struct rte_mempool *mp)
{
	free(mp->pool_data);
}

static int
lifo_put(struct rte_mempool *mp, void *const *obj, unsigned int n)
{
	struct lifo *l = mp->pool_data;
	unsigned int i;

	if (n > l->size - l->n)
		return -ENOBUFS;
	for (i = 0; i < n; i++)
		l->obj[l->n + i] = obj[i];
	l->n += n;
	return 0;
}

static int
lifo_get(struct rte_mempool *mp, void **obj, unsigned int n)
{
	struct lifo *l = mp->pool_data;
	unsigned int i;

	if (n > l->n)
		return -ENOBUFS;
	for (i = 0; i < n; i++)
		obj[i] = l->obj[l->n - 1 - i];
	l->n -= n;
	return 0;
}

static unsigned int
lifo_count(const struct rte_mempool *mp)
{
	return ((const struct lifo *)mp->pool_data)->n;
}

static const struct rte_mempool_ops lifo_ops = {
	.name = "millrace_lifo",
	.alloc = lifo_alloc,
	.free = lifo_free,
	.enqueue = lifo_put,
	.dequeue = lifo_get,
	.get_count = lifo_count,
};

RTE_MEMPOOL_REGISTER_OPS(lifo_ops);
